"""The FAN adapter, with a stand-in for the package's network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.landmarks import face_alignment
from models.landmarks.detector import build_detector
from models.landmarks.face_alignment import FACE_WEIGHTS, LANDMARK_WEIGHTS, FaceAlignmentDetector, read_heat_maps

SPOTS = np.stack([np.linspace(60, 140, 68), np.linspace(70, 150, 68)], 1)


class StandIn:
    """Heat maps with the same peak for every point; boxes around the middle of the photo."""

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self.face_detector = self

    def detect_from_image(self, image: np.ndarray) -> list[np.ndarray]:
        return (
            [] if image.max() == 0 else [np.array([50.0, 60.0, 150.0, 160.0, 0.9]), np.array([0.0, 0.0, 9.0, 9.0, 0.6])]
        )

    def face_alignment_net(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape == (1, 3, 256, 256)
        maps = torch.zeros(1, 68, 64, 64)
        maps[:, :, 20, 40] = self.peak
        return maps


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_missing_weights_name_file_and_folder(cache: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        build_detector("face_alignment")
    assert LANDMARK_WEIGHTS in str(error.value)
    assert FACE_WEIGHTS in str(error.value)
    assert str(cache) in str(error.value)


@pytest.fixture
def detector(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FaceAlignmentDetector:
    cache.mkdir(parents=True)
    for name in (LANDMARK_WEIGHTS, FACE_WEIGHTS):
        (cache / name).touch()

    def build(**options: Any) -> StandIn:
        assert options["with_faces"]
        return StandIn(1.0)

    monkeypatch.setattr(face_alignment, "build_face_alignment", build)
    return FaceAlignmentDetector()


def test_points_come_back_to_the_photo(detector: FaceAlignmentDetector) -> None:
    found = detector.detect([np.full((200, 200, 3), 99, np.uint8)])[0]
    assert found is not None
    # The crop is a square of 200 · 200/195 px around (100, 110 - 12); the peak's centre lies at 40.5/64, 20.5/64 of it.
    side = 200 * 200 / 195
    expected = [100 + (40.5 / 64 - 0.5) * side, 98 + (20.5 / 64 - 0.5) * side]
    np.testing.assert_allclose(found.landmarks, np.tile(expected, (68, 1)), atol=1e-3)
    assert found.face_score == pytest.approx(0.9)
    np.testing.assert_allclose(found.confidence, 1 / (1 + 0.6**2), rtol=1e-5)


def test_no_face(detector: FaceAlignmentDetector) -> None:
    assert detector.detect([np.zeros((50, 50, 3), np.uint8)]) == [None]


def test_heat_map_centroid_lies_between_cells() -> None:
    maps = np.zeros((1, 8, 8))
    maps[0, 3, 4], maps[0, 3, 5] = 1.0, 0.5
    cells, peaks = read_heat_maps(maps)
    np.testing.assert_allclose(cells, [[4.5 + 1 / 3, 3.5]])
    np.testing.assert_allclose(peaks, [1.0])


def test_heat_map_peak_in_a_corner() -> None:
    maps = np.zeros((1, 8, 8))
    maps[0, 0, 7] = 1.0
    np.testing.assert_allclose(read_heat_maps(maps)[0], [[7.5, 0.5]])
