"""The detector looks at new photos alone; what it said of the others stays to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.face.formats import build_face_model, save_face_model
from models.face.morphable import MorphableModel
from models.landmarks.detector import Detection
from tasks import detect, face_model
from tasks.artifacts import LANDMARKS, QUARANTINE, SAMPLES, Workspace, read_json, read_table
from tasks.detect import detect_landmarks
from tasks.ingest import ingest
from tasks.params import DetectLandmarksParams, Params
from tests.ingest_sources import HEADER, POINTS, TINY, content, params, photos, picture, put, row_of
from tests.tiny_face import tiny_face
from tests.tiny_workspace import Recorder

PARAMS = params(photos(), shard_rows=3, face_model=TINY).model_copy(
    update={"detect_landmarks": DetectLandmarksParams(detector="face_alignment")}
)


class Fake:
    """Finds points that follow from the photo and from how many it was shown with, as networks round."""

    def __init__(self) -> None:
        self.seen = 0

    def detect(self, images: Sequence[np.ndarray], *, annotations: Any = None) -> list[Detection | None]:
        self.seen += len(images)
        return [None if image.mean() < 50 else self._found(image, len(images)) for image in images]

    @staticmethod
    def _found(image: np.ndarray, company: int) -> Detection:
        points = np.float32(image[:34, :4, 0].reshape(68, 2)) / 8 + np.arange(136).reshape(68, 2) + 1e-3 * company
        return Detection(np.float32(points), np.full(68, 0.5, np.float32), np.zeros(4, np.float32), 0.9)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Fake:
    @contextmanager
    def track(*_: Any) -> Iterator[Recorder]:
        yield Recorder()

    fake = Fake()
    monkeypatch.setattr(detect, "track", track)
    monkeypatch.setattr(detect, "open_detector", lambda *_, **__: fake)
    detect._shared_detector.cache_clear()
    return fake


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    save_face_model(tiny_face(), tmp_path / "tiny.npz")
    dark = np.zeros((60, 80, 3), np.uint8)
    put(workspace, {f"{number}.png": content(picture(number)) for number in range(7)} | {"dark.png": content(dark)})
    ingest(PARAMS, workspace)
    return workspace


def run(workspace: Workspace, detector: Fake, settings: Params = PARAMS) -> tuple[dict[str, Any], int]:
    """Rows by file name, and how many photos the detector was shown."""
    detector.seen = 0
    detect_landmarks(settings, workspace)
    names = {row["sample_id"]: row["path"] for row in read_table(samples(workspace), SAMPLES).to_pylist()}
    folder = workspace.folder("detect_landmarks")
    rows = read_table(folder / "landmarks.parquet", LANDMARKS).to_pylist()
    refused = read_table(folder / "quarantine.parquet", QUARANTINE).to_pylist()
    assert [row["reason"] for row in refused] == ["no_face"]
    return {names[row["sample_id"]]: row for row in rows}, detector.seen


def samples(workspace: Workspace) -> Path:
    return workspace.folder("ingest") / "samples.parquet"


def test_new_photos_alone_are_looked_at(workspace: Workspace, detector: Fake) -> None:
    first, seen = run(workspace, detector)
    assert (len(first), seen) == (7, 8)
    again, seen = run(workspace, detector)
    assert (again, seen) == (first, 0)
    put(workspace, {"00.png": content(picture(40)), "99.png": content(picture(41))})
    ingest(PARAMS, workspace)
    more, seen = run(workspace, detector)
    assert seen == 2
    assert {name: more[name] for name in first} == first
    assert set(more) - set(first) == {"00.png", "99.png"}
    assert list(more) == sorted(more)


def test_the_face_model_is_built_once_for_all_shards(
    workspace: Workspace, detector: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(*arguments: Any, **options: Any) -> MorphableModel:
        built.append(arguments)
        return build_face_model(*arguments, **options)

    monkeypatch.setattr(face_model, "build_face_model", build)
    face_model._shared.cache_clear()
    run(workspace, detector)
    assert len(list(workspace.folder("ingest").glob("images-*.parquet"))) == 3
    assert len(built) == 1


def test_photos_that_are_gone_leave_nothing_behind(workspace: Workspace, detector: Fake) -> None:
    first, _ = run(workspace, detector)
    (workspace.root / "album" / "3.png").unlink()
    ingest(PARAMS, workspace)
    fewer, seen = run(workspace, detector)
    assert seen == 0
    assert fewer == {name: row for name, row in first.items() if name != "3.png"}
    kept = list((workspace.root / ".mien" / "kept" / "detect_landmarks").rglob("*.parquet"))
    assert len(kept) == 3


def test_another_setting_looks_at_everything_again(workspace: Workspace, detector: Fake) -> None:
    run(workspace, detector)
    other = DetectLandmarksParams(detector="face_alignment", min_face_score=0.4)
    _, seen = run(workspace, detector, PARAMS.model_copy(update={"detect_landmarks": other}))
    assert seen == 8
    assert len(list((workspace.root / ".mien" / "kept" / "detect_landmarks").iterdir())) == 1


def test_a_part_that_cannot_be_read_is_made_again(workspace: Workspace, detector: Fake) -> None:
    first, _ = run(workspace, detector)
    parts = sorted((workspace.root / ".mien" / "kept" / "detect_landmarks").rglob("*.parquet"))
    parts[0].write_bytes(b"spoiled")
    again, seen = run(workspace, detector)
    assert again == first
    assert seen in (2, 3)


def test_annotations_that_come_later_are_measured_without_looking_again(workspace: Workspace, detector: Fake) -> None:
    run(workspace, detector)
    put(workspace, {"landmarks.csv": f"{HEADER}\n{row_of('3.png', POINTS)}\n"})
    ingest(PARAMS, workspace)
    _, seen = run(workspace, detector)
    assert seen == 0
    assert read_json(workspace.folder("detect_landmarks") / "summary.json")["annotated"] == 1
