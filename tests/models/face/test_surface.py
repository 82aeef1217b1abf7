"""Scan errors by the NoW protocol: crop, alignment, refinement, distance. The search itself: test_surface_tree.py."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from models.face.surface import (
    SurfaceTopology,
    align_by_landmarks,
    now_crop,
    now_distance,
    refine_to_surface,
    scan_distance,
    surface_distance,
)
from tests.bumpy_patch import bumpy_patch


@pytest.fixture(scope="module")
def patch() -> trimesh.Trimesh:
    return bumpy_patch()


@pytest.fixture(scope="module")
def topology(patch: trimesh.Trimesh) -> SurfaceTopology:
    return SurfaceTopology.build(patch.faces, len(patch.vertices))


def test_triangles_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="outside 0 to 2"):
        SurfaceTopology.build(np.array([[0, 1, 3]]), 3)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ([0.2, 0.2, 0.7], 0.7),  # over the inside
        ([0.5, -2.0, 0.0], 2.0),  # beyond the first side
        ([-3.0, 0.5, 4.0], 5.0),  # beyond the second
        ([1.0, 1.0, 0.0], np.sqrt(0.5)),  # beyond the third
        ([-3.0, -4.0, 0.0], 5.0),  # beyond a corner
    ],
)
def test_distance_to_one_triangle(point: list[float], expected: float) -> None:
    vertices = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    topology = SurfaceTopology.build(np.array([[0, 1, 2]]), 3)
    assert surface_distance(np.array([point]), vertices, topology)[0] == pytest.approx(expected)


def test_refinement_undoes_a_small_motion(patch: trimesh.Trimesh, topology: SurfaceTopology) -> None:
    inner = np.abs(patch.vertices[:, :2]).max(1) < 45
    scan = patch.vertices[inner]
    moved = Rotation.from_euler("xyz", [1.5, -2, 1], degrees=True).apply(scan) + np.array([0.8, -0.6, 0.5])
    found, factor = refine_to_surface(moved, patch.vertices, patch.vertex_normals, topology, steps=8)
    assert np.abs(found - scan).max() < 0.02
    assert factor == 1.0


def test_only_the_scaled_distance_forgives_a_wrong_size(patch: trimesh.Trimesh, topology: SurfaceTopology) -> None:
    scan = patch.vertices[np.abs(patch.vertices[:, :2]).max(1) < 45]
    rigid, scaled = scan_distance(1.05 * scan, patch.vertices, patch.vertex_normals, topology)
    assert np.median(rigid) > 0.1
    assert np.median(scaled) < np.median(rigid) / 3


def test_crop_is_a_ball_around_the_nose() -> None:
    landmarks = np.zeros((68, 3))
    landmarks[27], landmarks[33] = [0.0, 50.0, 0.0], [0.0, 0.0, 0.0]
    landmarks[36], landmarks[45] = [-45.0, 40.0, 0.0], [45.0, 40.0, 0.0]
    # Centre at 15 above the bottom of the nose, radius 1.4 (90 + 50) / 2 = 98.
    points = np.array([[0.0, 112.0, 0.0], [0.0, 114.0, 0.0], [97.0, 15.0, 0.0], [99.0, 15.0, 0.0]])
    assert now_crop(points, landmarks).tolist() == [True, False, True, False]


def landmarks_on(patch: trimesh.Trimesh) -> np.ndarray:
    """Sixty-eight vertices, the seven that count at places like those of a face."""
    wanted = {36: (-42, 30), 39: (-15, 30), 42: (15, 30), 45: (42, 30), 33: (0, -12), 48: (-24, -38), 54: (24, -38)}
    places = np.zeros((68, 2)) + [[0.0, 30.0]]
    for index, place in wanted.items():
        places[index] = place
    nearest = np.linalg.norm(patch.vertices[None, :, :2] - places[:, None], axis=2).argmin(axis=1)
    return patch.vertices[nearest]


class TestProtocol:
    def test_a_moved_scan_of_the_same_face_has_no_error(
        self, patch: trimesh.Trimesh, topology: SurfaceTopology
    ) -> None:
        landmarks = landmarks_on(patch)
        scan = patch.subdivide().vertices
        turn = Rotation.from_euler("xyz", [20, -35, 10], degrees=True)
        moved, moved_landmarks = turn.apply(scan) + [300.0, 5.0, -80.0], turn.apply(landmarks) + [300.0, 5.0, -80.0]
        plain, scaled = now_distance(moved, moved_landmarks, patch.vertices, patch.vertex_normals, landmarks, topology)
        assert len(plain) == now_crop(scan, landmarks).sum()
        assert np.abs(plain).max() < 1e-2
        assert np.abs(scaled).max() < 1e-2

    def test_size_costs_in_the_metrical_variant_alone(self, patch: trimesh.Trimesh, topology: SurfaceTopology) -> None:
        landmarks = landmarks_on(patch)
        plain, scaled = now_distance(
            1.2 * patch.vertices, 1.2 * landmarks, patch.vertices, patch.vertex_normals, landmarks, topology
        )
        assert np.median(plain) > 1.0
        assert np.median(scaled) < 0.02

    def test_distances_are_in_the_millimetres_of_the_scan(
        self, patch: trimesh.Trimesh, topology: SurfaceTopology
    ) -> None:
        """A scan three times as large, with relief that the prediction lacks: its errors are three times as large."""
        landmarks = landmarks_on(patch)
        relief = patch.vertices + 0.8 * np.sin(patch.vertices[:, :1] / 3.0) * patch.vertex_normals
        errors = [
            now_distance(size * relief, size * landmarks, patch.vertices, patch.vertex_normals, landmarks, topology)[1]
            for size in (1.0, 3.0)
        ]
        assert np.median(errors[1]) == pytest.approx(3.0 * np.median(errors[0]), rel=1e-2)

    def test_seven_points_decide_the_alignment(self, patch: trimesh.Trimesh) -> None:
        landmarks = landmarks_on(patch)
        wrong = landmarks.copy()
        wrong[0] += 500.0
        np.testing.assert_allclose(align_by_landmarks(landmarks, wrong, landmarks)[1:], landmarks[1:], atol=1e-9)
        bigger = align_by_landmarks(landmarks / 2.0, landmarks / 2.0, landmarks, scale=True)
        np.testing.assert_allclose(bigger, landmarks, atol=1e-9)
