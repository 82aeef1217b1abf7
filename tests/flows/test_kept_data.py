"""Whether DVC still has what a model was made of, and that push and pull bring it to a clean clone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.kept_data import kept_data
from flows.workspace import create_workspace, preset_path
from tasks.artifacts import STAGES
from tasks.provenance import read_lock
from tests.local_servers import object_store

WANTED = ("artifacts/refusion", "artifacts/register")


def dvc(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted((folder / "artifacts").rglob("*"))
        if path.is_file()
    }


def clone(original: Path, folder: Path) -> Path:
    """What git would bring: everything but the outputs and the cache."""
    (folder / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore", ".dvc/config"):
        shutil.copyfile(original / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace over our own graph in which every stage has left something, as `dvc repro` would record it."""
    root = tmp_path_factory.mktemp("finished") / "workspace"
    create_workspace(root, preset=preset_path("smoke"))
    for stage in STAGES:
        folder = root / "artifacts" / stage
        (folder / "inner").mkdir(parents=True)
        (folder / "summary.json").write_text(f'{{"stage": "{stage}"}}')
        (folder / "inner" / "weights.bin").write_bytes(stage.encode() * 1000)
    dvc(root, "commit", "--force", "--quiet")
    return root


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "workspace", symlinks=True))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Address of a server on this machine that speaks S3, with a bucket `mien`."""
    pytest.importorskip("dvc_s3", reason="needs the extra team-test")
    with object_store("mien") as address:
        yield address


def test_the_cache_counts_where_there_is_no_remote(workspace: Path) -> None:
    lock = read_lock(workspace / "dvc.lock")
    assert set(lock) == set(STAGES)
    assert kept_data(workspace, lock).state == "yes"
    cached = next((workspace / ".dvc" / "cache" / "files" / "md5").glob(f"{lock['refusion']['outs'][0]['md5'][:2]}/*"))
    cached.chmod(0o644)
    cached.unlink()
    found = kept_data(workspace, lock)
    assert found.state == "no"
    assert found.detail.startswith("artifacts/refusion of it are not in DVC's cache; run `dvc repro`")


def test_one_file_of_a_folder_that_is_missing(workspace: Path) -> None:
    lock = read_lock(workspace / "dvc.lock")
    weights = [path for path in (workspace / ".dvc" / "cache").rglob("*") if path.is_file()]
    (victim,) = (path for path in weights if path.read_bytes() == b"train_fused" * 1000)
    victim.chmod(0o644)
    victim.unlink()
    assert kept_data(workspace, {"train_fused": lock["train_fused"]}).state == "no"
    assert kept_data(workspace, {"refusion": lock["refusion"]}).state == "yes"


def test_nothing_is_known_without_a_record_or_a_project(tmp_path: Path) -> None:
    assert kept_data(tmp_path, {}).state == "unknown"
    assert kept_data(tmp_path, {"x": {"outs": [{"path": "x", "md5": "00"}]}}).state == "unknown"


def test_a_local_remote_restores_a_clean_clone(workspace: Path, tmp_path: Path) -> None:
    lock = read_lock(workspace / "dvc.lock")
    dvc(workspace, "remote", "add", "--default", "team", str(tmp_path / "remote"))
    found = kept_data(workspace, lock)
    assert (found.state, "run `dvc push`" in found.detail) == ("no", True)
    dvc(workspace, "push", "--quiet")
    assert kept_data(workspace, lock).state == "yes"
    other = clone(workspace, tmp_path / "clone")
    dvc(other, "pull", "--quiet")
    assert contents(other) == contents(workspace)
    assert len(contents(other)) == 2 * len(STAGES)


def test_an_s3_remote_restores_what_a_model_needs(workspace: Path, bucket: str, tmp_path: Path) -> None:
    lock = {name.split("/")[1]: read_lock(workspace / "dvc.lock")[name.split("/")[1]] for name in WANTED}
    dvc(workspace, "remote", "add", "--default", "team", "s3://mien/data")
    for key, value in (("endpointurl", bucket), ("access_key_id", "mien"), ("secret_access_key", "secret")):
        dvc(workspace, "remote", "modify", "team", key, value)
    assert kept_data(workspace, lock).state == "no"
    dvc(workspace, "push", "--quiet", *WANTED)
    assert kept_data(workspace, lock).state == "yes"
    other = clone(workspace, tmp_path / "clone")
    dvc(other, "pull", "--quiet", *WANTED)
    expected = {name: value for name, value in contents(workspace).items() if name.startswith(WANTED)}
    assert contents(other) == expected
    assert len(expected) == 4
