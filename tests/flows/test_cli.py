"""The command line: help, and errors of one line without a trace."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import typer.testing
import yaml
from jaxtyping import config
from PIL import Image

from flows import cli
from flows.workspace import create_workspace, preset_path
from models.face.formats import build_face_model, save_face_model
from tests.tasks.trained_workspace import trained_workspace, write_photo
from tests.tiny_face import tiny_face

Call = Callable[..., subprocess.CompletedProcess[str]]


def invoke(*arguments: str) -> tuple[int, str]:
    result = typer.testing.CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, result.output


def test_help_names_every_command() -> None:
    code, text = invoke("--help")
    assert code == 0
    for name in ("reconstruct", "landmarks", "run", "workspace", "status", "model"):
        assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_folder_that_is_no_workspace(tmp_path: Path, command: str) -> None:
    code, text = invoke(command, "--workspace", str(tmp_path))
    assert code == 2
    expected = f"error: {tmp_path}/params.yaml: no such file; run in a Mien workspace or name one with --workspace"
    assert text.strip() == expected
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_is_named_before_anything_runs(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    with (tmp_path / "w" / "params.yaml").open("a") as file:
        file.write("trian_fused: {}\n")
    code, text = invoke("run", "--workspace", str(tmp_path / "w"))
    assert code == 2
    assert text.strip() == "error: params.yaml: trian_fused = {}: unknown key; remove it or check its spelling"


def test_a_workspace_from_the_command_line(tmp_path: Path) -> None:
    code, text = invoke("workspace", str(tmp_path / "w"), "--preset", "smoke", "--set", "project.seed=3")
    assert code == 0
    assert f"mien run --workspace {tmp_path / 'w'}" in text
    assert "seed: 3" in (tmp_path / "w" / "params.yaml").read_text()


def test_a_setting_that_does_not_fit(tmp_path: Path) -> None:
    code, text = invoke("workspace", str(tmp_path / "w"), "--preset", "smoke", "--set", "project.seed=many")
    assert code == 2
    assert text.startswith("error: smoke.yaml with the settings given: project.seed = 'many': expected")
    assert len(text.strip().splitlines()) == 1


def test_model_info_counts_the_face_model(tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    code, text = invoke("model", "info", "--workspace", str(tmp_path / "w"))
    assert code == 0
    assert re.search(r"identity modes\s*│\s*12\b", text)
    assert "jawOpen" in text


@pytest.fixture(scope="module")
def face_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("face") / "tiny.npz"
    save_face_model(tiny_face(), path)
    return path


def test_model_info_of_a_file(face_file: Path) -> None:
    code, text = invoke("model", "info", str(face_file))
    assert code == 0
    assert re.search(r"kind\s*│\s*npz\b", text)
    assert re.search(r"vertices, triangles\s*│\s*210, 364\b", text)
    assert tiny_face().content_hash() in text


def test_model_convert_says_what_to_do_next(face_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted.safetensors"
    code, text = invoke("model", "convert", str(face_file), str(out), "--identity-modes", "3")
    assert code == 0
    assert re.search(r"identity modes\s*│\s*3\b", text)
    lines = yaml.safe_load(text[text.index("  face_model:") : text.index("To look at it")])
    assert lines == {"face_model": {"kind": "npz", "path": str(out), "identity_modes": 3}}
    assert build_face_model("npz", path=out).identity_size == 3
    assert [path.name for path in tmp_path.iterdir()] == ["converted.safetensors"]


def test_model_convert_replaces_a_file_only_when_told(face_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    out.write_text("mine")
    code, text = invoke("model", "convert", str(face_file), str(out))
    assert code == 2
    assert text.strip() == f"error: {out}: exists already; choose another name, or add --force"
    assert out.read_text() == "mine"
    assert invoke("model", "convert", str(face_file), str(out), "--force")[0] == 0
    assert build_face_model("npz", path=out).content_hash() == tiny_face().content_hash()
    # Not even then is a file read and replaced at once.
    assert invoke("model", "convert", str(out), str(out), "--force")[0] == 2


def test_landmarks_of_a_trained_workspace(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    trained_workspace(tmp_path / "w")
    photo, out = write_photo(tmp_path / "face.png"), tmp_path / "out"
    for convention in ("annotated", "model"):
        here = ["--workspace", str(tmp_path / "w"), "--out", str(out / convention), "--convention", convention]
        code, text = invoke("landmarks", str(photo), *here, "--min-score", "0")
        assert code == 0
        assert text.split()[-1] == str(out / convention / "landmarks.csv")
        names = {path.name for path in (out / convention).iterdir()}
        assert {"face.pts", "face_landmarks.png", "landmarks.csv"} <= names
    code, text = invoke("landmarks", str(photo), "-w", str(tmp_path / "w"), "-o", str(out), "--convention", "handmade")
    assert code == 2
    assert text.count("\n") == 1
    assert "knows no outline, which points of convention handmade need; take annotated or model" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "artifacts/train_detector: no trained detector; run `mien run` first or name one with --weights"),
        (["--weights", "weights.pt"], "weights.pt: not a checkpoint of Mien"),
        (["--detector", "dlib"], "detector 'dlib' is unknown, expected one of provided, hierarchical, face_alignment"),
        (["--detector", "provided"], "detector provided: it finds no faces"),
    ],
)
def test_landmarks_without_a_detector_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_text("no weights")
    write_photo(tmp_path / "face.png")
    code, text = invoke("landmarks", "face.png", "--out", "out", *arguments)
    assert code == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


class Command:
    """What a malicious pickle asks for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def wrong_sources(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no face model, and what the message must say."""
    arrays = {
        name.replace("landmark_corners", "landmark_vertices"): array.numpy()
        for name, array in tiny_face().named_buffers()
    }
    arrays |= {"name": np.array("tiny"), "licence": np.array("CC0-1.0"), "expression_names": np.array(["a", "b", "c"])}
    lacking = {key: array for key, array in arrays.items() if key != "triangles"}
    np.savez(folder / "missing_key.npz", **lacking)
    np.savez(folder / "wrong_shape.npz", **{**arrays, "uv": arrays["uv"][:7]})
    np.savez(folder / "objects.npz", mean=np.array([Command(folder / "ran")], dtype=object))
    (folder / "text.npz").write_text("no archive")
    (folder / "text.mat").write_text("no matrix")
    (folder / "text.h5").write_text("no hierarchy")
    (folder / "picture.png").write_bytes(b"")
    (folder / "code.pkl").write_bytes(pickle.dumps({"v_template": Command(folder / "ran")}, protocol=2))
    (folder / "folder").mkdir()
    return {
        "missing_key": (folder / "missing_key.npz", "triangles"),
        "wrong_shape": (folder / "wrong_shape.npz", r"uv has shape \(7, 2\), expected \(210, 2\)"),
        "objects": (folder / "objects.npz", "objects.npz"),
        "text_npz": (folder / "text.npz", "npz"),
        "text_mat": (folder / "text.mat", "text.mat"),
        "text_h5": (folder / "text.h5", "text.h5"),
        "picture": (folder / "picture.png", "a picture, expected a face model"),
        "code": (folder / "code.pkl", "code.pkl"),
        "folder": (folder / "folder", "folder"),
        "absent": (folder / "absent.npz", "no such"),
    }


@pytest.fixture
def as_users_have_it() -> Iterator[None]:
    """Without the checks of shapes that only tests make."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


WRONG = ["missing_key", "wrong_shape", "objects", "text_npz", "text_mat", "text_h5"]
WRONG += ["picture", "code", "folder", "absent"]


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("action", ["convert", "info", "preview"])
def test_a_wrong_face_model_is_one_line(tmp_path: Path, case: str, action: str) -> None:
    source, message = wrong_sources(tmp_path)[case]
    out = tmp_path / "out" / ("sheet.png" if action == "preview" else "model.npz")
    more = {"convert": [str(out)], "info": [], "preview": ["--out", str(out)]}[action]
    before = sorted(tmp_path.rglob("*"))
    code, text = invoke("model", action, str(source), *more)
    assert code == 2
    assert text.startswith(f"error: {source}: ")
    assert re.search(message, text)
    assert len(text.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written, and nothing has run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.obj"], "model.obj: expected a name that ends in .npz or .safetensors"),
        (["model.npz", "--kind", "nobody"], "face model kind 'nobody' is unknown, expected one of procedural, npz"),
        (["model.npz", "--landmarks", "none.txt"], "none.txt: no such"),
    ],
)
def test_wrong_options_of_convert_are_one_line(
    face_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = invoke("model", "convert", str(face_file), *arguments)
    assert code == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_model_preview_of_a_file_and_of_a_workspace(face_file: Path, tmp_path: Path) -> None:
    create_workspace(tmp_path / "w", preset=preset_path("smoke"))
    for name, arguments in {"file": [str(face_file)], "workspace": ["--workspace", str(tmp_path / "w")]}.items():
        out = tmp_path / f"{name}.png"
        code, text = invoke("model", "preview", *arguments, "--out", str(out))
        assert (code, text.strip()) == (0, str(out))
        with Image.open(out) as image:
            assert image.info["face_model_name"] == {"file": "tiny", "workspace": "procedural"}[name]


def test_no_trace_in_a_process_of_its_own(tmp_path: Path, call: Call) -> None:
    done = call("flows", "ingest", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr.strip() == "error: params.yaml: no such file; run in a Mien workspace or name one with --workspace"
    )


def test_an_unknown_stage_lists_the_stages(tmp_path: Path, call: Call) -> None:
    done = call("flows", "inges", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'inges'" in done.stderr
    assert "train_self_supervised" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--refine-steps", "5"), "--refine-steps says how to refine, but --refine is missing; add it"),
        (("--aggregate", "mean"), "--aggregate is about photos of one person; add --same-person or"),
        (("--same-person", "--folder-per-person"), "--same-person and --folder-per-person exclude each other"),
    ],
)
def test_options_that_need_others_say_so(tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    code, text = invoke("reconstruct", "photo.png", "--out", str(tmp_path / "out"), *options)
    assert code == 2
    assert f"error: {reason}" in " ".join(text.split())
    assert not (tmp_path / "out").exists()
