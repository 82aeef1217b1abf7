from __future__ import annotations

import numpy as np
import pytest

from models.face.adapters import partial_landmarks
from models.face.adapters.partial_landmarks import complete_landmarks


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid of 40 × 40 mm, 68 true vertices on it, and a finder that finds each 3 mm too far to the right."""
    x, y = np.meshgrid(np.arange(40.0), np.arange(40.0))
    mean = np.stack([x.ravel(), y.ravel(), np.zeros(1600)], 1)
    true = np.random.default_rng(1).choice([v for v in range(1600) if v % 40 < 36], 68, replace=False).astype(np.int64)
    monkeypatch.setattr(partial_landmarks, "find_landmarks", lambda mean, triangles: true + 3)
    return mean, true, np.array([[0, 1, 40]])


def test_known_points_correct_their_neighbours(plane: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    mean, true, triangles = plane
    known = {point: int(true[point]) for point in range(0, 68, 4)}
    found = complete_landmarks(known, mean=mean, triangles=triangles)
    assert all(found[point] == vertex for point, vertex in known.items())
    assert np.linalg.norm(mean[found] - mean[true], axis=1).mean() < 0.3


def test_without_known_points_what_was_found_stands(plane: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    mean, true, triangles = plane
    assert np.array_equal(complete_landmarks({}, mean=mean, triangles=triangles), true + 3)


def test_one_known_point_moves_the_others_along(plane: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    mean, true, triangles = plane
    assert np.array_equal(complete_landmarks({5: int(true[5])}, mean=mean, triangles=triangles), true)


def test_two_points_found_on_one_vertex_are_allowed(plane: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    mean, true, triangles = plane
    true[1] = true[0]
    found = complete_landmarks({0: int(true[0]), 1: int(true[0]) + 40}, mean=mean, triangles=triangles)
    assert found[0] == true[0]
    assert found[1] == true[0] + 40
