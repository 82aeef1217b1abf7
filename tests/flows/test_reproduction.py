"""A version of a small project is checked out and made again; other code, data or weights do not go unnoticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import reproduction
from flows.reproduction import reproduce_version
from tasks import provenance
from tasks.artifacts import Workspace, load_checkpoint
from tasks.provenance import trace
from tasks.registry import keep_sources

GRAPH = """
stages:
  ingest:
    cmd: mkdir artifacts/ingest; echo 7 > artifacts/ingest/number.txt
    params: [project]
    outs: [artifacts/ingest]
  refusion:
    cmd: python tasks/train.py
    deps: [artifacts/ingest, ./tasks/train.py]
    params: [project, refusion]
    outs: [artifacts/refusion]
"""

TRAIN = """
import pathlib, torch, yaml
scale = yaml.safe_load(open("params.yaml"))["refusion"]["scale"]
number = float(open("artifacts/ingest/number.txt").read())
folder = pathlib.Path("artifacts/refusion"); folder.mkdir(parents=True)
torch.save({"weights": scale * number * torch.arange(3.0)}, folder / "checkpoint.pt")
"""


class Client:
    """Of MLflow only what a reproduction asks for: files of the run."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept

    def download_artifacts(self, _run: str, path: str, out: str) -> str:
        return str(shutil.copytree(self.kept / path, Path(out) / path))


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def commit(folder: Path) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A repository in which everything ran, and the version that was registered there."""
    root = tmp_path_factory.mktemp("reproduction") / "project"
    (root / "tasks").mkdir(parents=True)
    (root / "artifacts").mkdir()
    (root / "artifacts" / ".gitignore").write_text("*\n")
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "params.yaml").write_text("project: {code: ., seed: 0}\nrefusion: {scale: 2.0}\n")
    (root / "tasks" / "train.py").write_text(TRAIN)
    (root / "tasks" / "provenance.py").write_text("")
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (root / ".dvc" / ".gitignore").write_text("/cache\n/tmp\n/config.local\n")
    run(root, "git", "init", "-q")
    commit(root)
    run(root, sys.executable, "-m", "dvc", "repro", "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "CODE", root)
        content = load_checkpoint(root / "artifacts" / "refusion" / "checkpoint.pt")
        found = trace(Workspace(root), ["refusion"], checkpoints=[content])
    assert {one.state for one in found.known.values()} == {"yes"}
    keep_sources(root.parent, Workspace(root), found)
    version = SimpleNamespace(name="mien-reconstructor", version=1, run_id="r", tags=found.tags())
    # What the working folder holds now is not what the version was made of.
    (root / "params.yaml").write_text("project: {code: ., seed: 0}\nrefusion: {scale: 5.0}\n")
    (root / "tasks" / "train.py").write_text("raise SystemExit(1)")
    commit(root)
    return root, version


@pytest.fixture
def again(trained: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    root, version = trained
    monkeypatch.setattr(reproduction, "CODE", root)

    def reproduce(*, train: bool = False, **tags: str) -> dict[str, bool]:
        one = SimpleNamespace(**{**vars(version), "tags": version.tags | tags})
        client: Any = Client(root.parent)
        compared = reproduce_version(
            client,
            one,
            workspace=root,
            out=tmp_path / "again",
            train=train,
            say=lambda _: None,  # type: ignore[arg-type]
        )
        return {found.what: found.same for found in compared}

    return reproduce


def test_weights_come_back_from_the_cache(again: Callable[..., Any], tmp_path: Path) -> None:
    assert again() == {"code": True, "weights": True}
    assert "scale: 2.0" in (tmp_path / "again" / "code" / "params.yaml").read_text()


def test_training_anew_gives_the_same_weights(again: Callable[..., Any], tmp_path: Path) -> None:
    assert again(train=True) == {"code": True, "output of refusion": True, "weights": True}


def test_other_weights_are_noticed(again: Callable[..., Any]) -> None:
    assert again(**{"source.weights": "0" * 64}) == {"code": True, "weights": False}


def test_other_code_is_noticed(again: Callable[..., Any], trained: tuple[Path, Any]) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=trained[0], capture_output=True, text=True, check=True)
    assert again(**{"source.commit": head.stdout.strip()})["code"] is False


def test_a_commit_that_is_not_there(again: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"commit 000000000000 is not in the repository of .*; run `git fetch` there"):
        again(**{"source.commit": "0" * 40})


def test_a_folder_that_is_not_empty_is_left_alone(again: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "mine").write_text("")
    with pytest.raises(ValueError, match="is not empty; name another folder with --out"):
        again()
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["mine"]
