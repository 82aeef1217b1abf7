from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.face.formats import OWN_KEYS, build_face_model, detect_kind, save_face_model
from models.face.morphable import MorphableModel
from models.face.skinning import Skinning
from models.types import LANDMARK_COUNT


@pytest.fixture
def saved(face: MorphableModel, tmp_path: Path) -> Path:
    save_face_model(face, tmp_path / "face.npz")
    return tmp_path / "face.npz"


def changed(path: Path, **arrays: Any) -> Path:
    """The file with some arrays replaced, or left out where None."""
    with np.load(path) as file:
        data = {key: file[key] for key in file.files} | arrays
    np.savez(path, **{key: value for key, value in data.items() if value is not None})
    return path


@pytest.fixture
def jointed(face: MorphableModel) -> MorphableModel:
    """With everything that is optional: landmarks within triangles, a source, joints."""
    count, stream = face.vertex_count, torch.Generator().manual_seed(1)
    arrays = {key: buffer for key, buffer in face.named_buffers() if not key.startswith("landmark")}
    skinning = Skinning(
        joint_names=("root", "jaw"),
        joint_regressor=torch.full((2, count), 1.0 / count),
        pose_basis=torch.randn(9, count, 3, generator=stream),
        joint_weights=torch.rand(count, 2, generator=stream).softmax(1),
        joint_parents=torch.tensor([-1, 0]),
        mode_rotations=torch.rand(3, 2, 3, generator=stream),
    )
    return MorphableModel(
        name="joïnted",
        licence="two\nlines",
        expression_names=face.expression_names,
        landmark_vertices=torch.randint(0, count, (LANDMARK_COUNT, 3), generator=stream),
        landmark_weights=torch.rand(LANDMARK_COUNT, 3, generator=stream).softmax(1),
        source_sha256="ab" * 32,
        skinning=skinning,
        **arrays,
    )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".SafeTensors"])
def test_a_saved_model_comes_back(face: MorphableModel, jointed: MorphableModel, tmp_path: Path, suffix: str) -> None:
    for model in (face, jointed):
        path = tmp_path / f"{model.name}{suffix}"
        save_face_model(model, path)
        found = build_face_model("npz", path=path, identity_modes=None)
        assert found.stamp() == model.stamp()
        assert found.expression_names == model.expression_names
        written, read = dict(model.named_buffers()), dict(found.named_buffers())
        assert written.keys() == read.keys()
        assert all(torch.equal(written[key], read[key]) for key in written)
        if model.skinning is not None:
            assert found.skinning is not None
            assert found.skinning.joint_names == model.skinning.joint_names
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"joïnted{suffix}", f"tiny{suffix}"]


def test_a_file_without_a_note_on_its_source_is_the_source(saved: Path) -> None:
    found = build_face_model("npz", path=changed(saved, source_sha256=None))
    assert len(found.source_sha256) == 64
    assert build_face_model("npz", path=changed(saved, licence=np.array("other"))).source_sha256 != found.source_sha256


def test_other_names_are_not_written(face: MorphableModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"face\.pt: a face model is saved as \.npz or \.safetensors"):
        save_face_model(face, tmp_path / "face.pt")
    assert not list(tmp_path.iterdir())


def test_the_users_landmarks_replace_those_of_the_file(saved: Path, tmp_path: Path) -> None:
    table = tmp_path / "points.json"
    table.write_text(json.dumps(list(range(100, 168))))
    found = build_face_model("npz", path=saved, landmarks=table)
    assert found.landmark_vertices.tolist() == list(range(100, 168))
    table.write_text(json.dumps(list(range(167))))
    with pytest.raises(ValueError, match=r"points\.json: holds an array of shape \(167,\)") as caught:
        build_face_model("npz", path=saved, landmarks=table)
    assert str(caught.value).startswith(str(table))


def test_identity_modes_are_cut_to_the_number_asked_for(face: MorphableModel, saved: Path) -> None:
    found = build_face_model("npz", path=saved, identity_modes=2)
    assert torch.equal(found.identity_basis, face.identity_basis[:2])


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'bfm' is unknown, expected one of procedural"):
        build_face_model("bfm")


@pytest.mark.parametrize("kind", ["npz", "ict", "basel", "flame", "surrey"])
def test_a_kind_that_is_read_needs_a_path(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"kind {kind} needs a path; set face_model\.path"):
        build_face_model(kind)


def test_the_procedural_face_takes_no_file(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"made by code; remove face_model\.path"):
        build_face_model("procedural", path=saved)
    with pytest.raises(ValueError, match=r"made by code; remove face_model\.landmarks"):
        build_face_model("procedural", landmarks=saved)


def test_only_ict_has_regions(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"kind npz has no regions; remove face_model\.region"):
        build_face_model("npz", path=saved, region="face")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such face model"):
        build_face_model("npz", path=tmp_path / "none.npz")


@pytest.mark.parametrize("content", ["text", "empty", "truncated", "garbled", "plain array", "pickled"])
def test_files_that_cannot_be_read_are_refused_in_one_line(saved: Path, content: str) -> None:
    whole = saved.read_bytes()
    if content == "text":
        saved.write_text("not a model")
    elif content == "empty":
        saved.write_bytes(b"")
    elif content == "truncated":
        saved.write_bytes(whole[: len(whole) // 2])
    elif content == "garbled":
        saved.write_bytes(whole[:2000] + bytes(255 - byte for byte in whole[2000:2400]) + whole[2400:])
    elif content == "plain array":
        with saved.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        changed(saved, mean=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"face\.npz: not an \.npz file without pickles") as caught:
        build_face_model("npz", path=saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["text", "empty", "truncated", "npz"])
def test_safetensors_that_cannot_be_read_are_refused_in_one_line(
    face: MorphableModel, saved: Path, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "face.safetensors"
    save_face_model(face, path)
    whole = path.read_bytes()
    path.write_bytes({"text": b"no model", "empty": b"", "truncated": whole[:-9], "npz": saved.read_bytes()}[content])
    with pytest.raises(ValueError, match=r"face\.safetensors: not a \.safetensors file") as caught:
        build_face_model("npz", path=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["mean", "parts", "expression_names"])
def test_missing_arrays_are_named(saved: Path, key: str) -> None:
    assert key in OWN_KEYS
    with pytest.raises(ValueError, match=rf"face\.npz: keys {key} are missing, found albedo_basis"):
        build_face_model("npz", path=changed(saved, **{key: None}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("uv", np.zeros((5, 2), np.float32), r"uv has shape \(5, 2\), expected \(210, 2\)"),
        ("identity_basis", np.zeros((4, 9, 3), np.float32), r"identity_basis has shape \(4, 9, 3\)"),
        ("identity_basis", np.float32(3), "face.npz: "),
        (
            "expression_names",
            np.array(["jawOpen"]),
            r"expression_basis has shape \(3, 210, 3\), expected \(1, 210, 3\)",
        ),
        ("landmark_vertices", np.arange(60), r"landmark_vertices has shape \(60,\), expected \(68, 3\)"),
        (
            "landmark_vertices",
            np.arange(68)[:, None] + 200 + np.zeros((1, 3), int),
            "landmark_vertices holds 200 to 267, expected 0 to 209",
        ),
        ("triangles", np.full((2, 3), -1), "triangles holds -1 to -1"),
        ("parts", np.full(210, 5), "parts holds 5 to 5, expected 0 to 4"),
        ("mean", np.full((210, 3), np.nan, np.float32), "mean has values that are not finite"),
        ("uv", np.array(["text"]), "face.npz: "),
        ("skinning_joint_weights", np.zeros((210, 2), np.float32), "face.npz: "),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_arrays_that_do_not_fit_are_named(saved: Path, key: str, value: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_face_model("npz", path=changed(saved, **{key: value}))
    assert str(caught.value).startswith(str(saved))
    assert "\n" not in str(caught.value)


def test_the_kind_is_told_from_the_file(saved: Path, tmp_path: Path) -> None:
    assert detect_kind(saved) == "npz"
    np.savez(tmp_path / "ict.npz", arkit52_to_expression=np.zeros(1), identity_basis=np.zeros(1))
    np.savez(tmp_path / "flame.npz", v_template=np.zeros(1))
    (tmp_path / "FaceXModel").mkdir()
    (tmp_path / "FaceXModel" / "generic_neutral_mesh.obj").touch()
    expected = {"ict.npz": "ict", "flame.npz": "flame", "FaceXModel": "ict"}
    for name, kind in {"a.mat": "basel", "b.h5": "basel", "c.PKL": "flame", "d.bin": "surrey"}.items():
        (tmp_path / name).touch()
        expected[name] = kind
    assert {name: detect_kind(tmp_path / name) for name in expected} == expected


def test_what_is_no_face_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "scan.npz", points=np.zeros(3))
    (tmp_path / "broken.npz").write_text("text")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"empty: a folder without generic_neutral_mesh\.obj"):
        detect_kind(tmp_path / "empty")
    for name in ("scan.npz", "broken.npz", "photo.jpg"):
        with pytest.raises(ValueError, match=rf"{name}: no known face model, expected ICT-FaceKit's folder or a file"):
            detect_kind(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such face model"):
        detect_kind(tmp_path / "none.npz")
