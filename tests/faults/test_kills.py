"""`kill -9`, a full disk and two runs at once: what is there is whole, and the next run ends where it would have."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows.failures import StageError
from flows.locks import alone
from tasks import detect, prepared_photos
from tasks.artifacts import Workspace, remove_leftovers, replace_folder
from tasks.detect import detect_landmarks
from tasks.ingest import ingest
from tasks.params import Params, parse_params
from tests.faults.killed import DONE, REFUSED, digests, ended, killed_after, start
from tests.ingest_sources import content, params, photos, picture, put, quarantine
from tests.tasks.trained_workspace import trained_workspace, write_photo
from tests.tiny_workspace import Recorder

STAGES: dict[str, Callable[[Params, Workspace], None]] = {"ingest": ingest, "detect_landmarks": detect_landmarks}

KILLS = int(os.environ.get("MIEN_KILLS", "3"))
"""Of each of these stages; `python -m benchmarks.kills` does fifty over the whole pipeline."""


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def track(*_: Any) -> Iterator[Recorder]:
        yield Recorder()

    monkeypatch.setattr(detect, "track", track)
    monkeypatch.setattr(prepared_photos, "CHUNK", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Workspace]:
    """Twenty photos, a face model and a detector that takes anything for a face."""
    params, workspace = trained_workspace(tmp_path_factory.mktemp("faults"))
    put(workspace, {f"{number:02d}.png": content(picture(number, 200, 240)) for number in range(18)})
    put(workspace, {"broken.jpg": "text"})
    write_photo(workspace.root / "album" / "face.png")
    data = params.model_dump(mode="json", by_alias=True)
    source = {"kind": "photos", "name": "faces", "path": "album"}
    data["ingest"] = data["ingest"] | {"sources": [source], "shard_rows": 6}
    return parse_params(data), workspace


@pytest.fixture(scope="module")
def undisturbed(made: tuple[Params, Workspace]) -> dict[str, tuple[dict[str, str], float]]:
    """Outputs of the stages and the seconds that they took, run like all others in a child."""
    settings, workspace = made
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "track", lambda *_: Recorder().track(*_))
        patch.setattr(prepared_photos, "CHUNK", 4)
        for name, stage in STAGES.items():
            started = time.monotonic()
            assert ended(start(partial(stage, settings, workspace))) == DONE
            found[name] = (digests(workspace.folder(name)), time.monotonic() - started)
    return found


def forget(workspace: Workspace, stage: str) -> None:
    """Let the stage do all of its work again; the earlier output stays where it is."""
    kept = workspace.root / ".mien" / "kept" / stage
    for path in sorted(kept.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def nothing_left(workspace: Workspace) -> list[str]:
    return [path.name for path in (workspace.root / "artifacts").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", STAGES)
def test_killed_at_random_moments(
    made: tuple[Params, Workspace], undisturbed: dict[str, tuple[dict[str, str], float]], name: str
) -> None:
    settings, workspace = made
    whole, seconds = undisturbed[name]
    work = partial(STAGES[name], settings, workspace)
    moments = random.Random(name)
    codes = []
    for _ in range(KILLS):
        forget(workspace, name)
        codes.append(killed_after(work, moments.uniform(0.05, 0.9) * seconds))
        assert not workspace.folder(name).exists() or digests(workspace.folder(name)) == whole
    assert -signal.SIGKILL in codes
    assert ended(start(work)) == DONE
    assert digests(workspace.folder(name)) == whole
    assert nothing_left(workspace) == []


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk(
    made: tuple[Params, Workspace], undisturbed: dict[str, tuple[dict[str, str], float]], name: str
) -> None:
    """No file may grow beyond some bytes, so a write breaks off in the middle."""
    settings, workspace = made
    whole, _ = undisturbed[name]
    work = partial(STAGES[name], settings, workspace)
    for limit in (100, 4000):
        forget(workspace, name)
        assert ended(start(work, file_bytes=limit)) == REFUSED
        assert digests(workspace.folder(name)) == whole
        assert nothing_left(workspace) == []
    assert ended(start(work)) == DONE
    assert digests(workspace.folder(name)) == whole


def test_a_spoiled_shard_is_named_with_its_remedy(
    made: tuple[Params, Workspace], undisturbed: dict[str, tuple[dict[str, str], float]]
) -> None:
    settings, workspace = made
    shard = workspace.folder("ingest") / "images-00001.parquet"
    sound = shard.read_bytes()
    shard.write_bytes(sound[: len(sound) // 2])
    forget(workspace, "detect_landmarks")
    try:
        with pytest.raises(ValueError, match=r"images-00001\.parquet: cannot be read .*; run ingest again") as caught:
            detect_landmarks(settings, workspace)
        assert "\n" not in str(caught.value)
        assert digests(workspace.folder("detect_landmarks")) == undisturbed["detect_landmarks"][0]
        assert ended(start(partial(ingest, settings, workspace))) == DONE
        assert shard.read_bytes() == sound
    finally:
        shard.write_bytes(sound)


def test_a_folder_killed_between_its_two_names_comes_back(tmp_path: Path) -> None:
    """Killed when the old output is moved aside and the new one not yet in place."""
    output = tmp_path / "ingest"
    aside = tmp_path / ".ingest-old-abcdefgh"
    (aside / "ingest").mkdir(parents=True)
    (aside / "ingest" / "old").touch()
    half = tmp_path / ".ingest-abcdefgh"
    half.mkdir()
    (half / "half").touch()
    remove_leftovers(output)
    assert [path.name for path in tmp_path.iterdir()] == ["ingest"]
    assert (output / "old").exists()


def test_what_another_run_is_writing_stays(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "ingest") as first:
        (first / "first").touch()
        with replace_folder(tmp_path / "ingest") as second:
            (second / "second").touch()
        assert (first / "first").exists()
    assert [path.name for path in (tmp_path / "ingest").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["ingest"]


def test_a_stage_runs_once_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(StageError, match=r"ingest: runs already in .* as process \d+; wait")
    with alone(tmp_path, "ingest"), refused, alone(tmp_path, "ingest"):
        pass
    with alone(tmp_path, "ingest"), alone(tmp_path, "detect_landmarks"):
        pass


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    def hold() -> None:
        with alone(tmp_path, "ingest"):
            (tmp_path / "held").touch()
            time.sleep(60)

    child = start(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(StageError, match=f"process {child};"), alone(tmp_path, "ingest"):
        pass
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    with alone(tmp_path, "ingest"):
        pass


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_files_that_cannot_be_read_are_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    workspace = Workspace(tmp_path)
    put(workspace, {"good.png": content(picture(0)), "bad.png": content(picture(1))})
    read_bytes = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name == "bad.png":
            raise error
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    ingest(params(photos()), workspace)
    assert quarantine(workspace) == {"bad.png": "unreadable"}
