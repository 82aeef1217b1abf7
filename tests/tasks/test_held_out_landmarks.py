"""What the evaluation says of the detector."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.landmarks.detector import Detection
from models.landmarks.framing import landmark_box
from tasks import held_out_landmarks as module
from tasks.annotated_photos import AnnotatedPhotos
from tasks.artifacts import Workspace
from tasks.held_out_landmarks import measure_held_out
from tasks.params import Params, parse_params
from tests.models.landmarks.conftest import draw_face

TRAINING = {"steps": 1, "sources": [{"source": "photos", "share": 1.0, "losses": {"photo": 1.0}}]}


def params(detector: str) -> Params:
    return parse_params(
        {
            "ingest": {"sources": [{"kind": "synthetic", "name": "photos", "persons": 3}]},
            "detect_landmarks": {"detector": detector},
            **{f"train_{stage}": {"init": "train_geometry", **TRAINING} for stage in ("self_supervised", "supervised")},
            "train_fused": {"init": "train_supervised", **TRAINING},
        }
    )


class Shifted:
    """Finds every face but the first, two pixels to the right of where it is annotated."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = points
        self.seen = 0

    def detect(self, images: list[np.ndarray], *, annotations: object = None) -> list[Detection | None]:
        found: list[Detection | None] = []
        for _ in images:
            points = (self.points[self.seen] + [2.0, 0.0]).astype(np.float32)
            face = Detection(points, np.full(68, 0.5, np.float32), landmark_box(points[None])[0], 1.0)
            found.append(face if self.seen else None)
            self.seen += 1
        return found


@pytest.fixture
def photos() -> AnnotatedPhotos:
    """Five photos: the last three annotated, the others rendered."""
    drawn = [draw_face(96, np.array([48.0, 48.0]), 60.0, 0.0, seed) for seed in range(5)]
    points = np.array([face for _, face in drawn], np.float32)
    return AnnotatedPhotos(
        [image for image, _ in drawn], points, np.array([0, 40, 0, 20, -50.0]), np.array([0, 0, 1, 1, 1])
    )


def test_annotated_photos_go_before_rendered_ones(
    photos: AnnotatedPhotos, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "load_annotated", lambda *_, **__: photos)
    asked = []

    def open_shifted(*_: object, convention: str) -> Shifted:
        asked.append(convention)
        return Shifted(photos.points[2:])

    monkeypatch.setattr(module, "open_detector", open_shifted)
    measured = measure_held_out(params("hierarchical"), Workspace(tmp_path))
    assert measured is not None
    assert asked == ["annotated"]
    numbers = json.loads(json.dumps(measured.numbers((0.0, 30.0, 60.0, 90.0)), allow_nan=False))
    eyes = np.linalg.norm(photos.points[3, 45] - photos.points[3, 36])
    assert (numbers["count"], numbers["missed"], numbers["convention"]) == (3, 1, "annotated")
    assert numbers["nme68"] == pytest.approx(2.0 / eyes, rel=1e-4)
    assert set(numbers["by_yaw"]) == {"0-30", "30-60"}
    measured.write_pictures(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"landmarks_worst.png", "landmarks_accuracy.png"}


def test_rendered_photos_where_there_are_no_others(
    photos: AnnotatedPhotos, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rendered = photos.take(np.array([0, 1]))
    monkeypatch.setattr(module, "load_annotated", lambda *_, **__: rendered)
    monkeypatch.setattr(module, "open_detector", lambda *_, convention: Shifted(rendered.points))
    measured = measure_held_out(params("hierarchical"), Workspace(tmp_path))
    assert measured is not None
    assert measured.numbers((0.0, 90.0))["convention"] == "model"


def test_annotations_that_are_handed_on_are_not_measured(tmp_path: Path) -> None:
    assert measure_held_out(params("provided"), Workspace(tmp_path)) is None
