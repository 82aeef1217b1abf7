"""Point-to-surface distance against a brute-force oracle, and the alignment that precedes it."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from models.face.surface import SurfaceTopology, now_crop, refine_to_surface, scan_distance, surface_distance


def bumpy_patch(side: int = 24, *, size_mm: float = 120.0, seed: int = 0) -> trimesh.Trimesh:
    """A curved height field without symmetries, about as large as a face."""
    generator = np.random.default_rng(seed)
    place = np.linspace(-0.5, 0.5, side)
    x, y = (axis.ravel() * size_mm for axis in np.meshgrid(place, place))
    z = (
        40 * np.exp(-((x - 8) ** 2 + (y + 5) ** 2) / 900)
        - (x**2 + 1.4 * y**2) / 90
        + 4 * np.sin(x / 11) * np.cos(y / 17)
    )
    x, y = x + generator.normal(0, 0.8, x.shape), y + generator.normal(0, 0.8, y.shape)
    corner = np.arange(side * side).reshape(side, side)
    a, b, c, d = corner[:-1, :-1].ravel(), corner[:-1, 1:].ravel(), corner[1:, :-1].ravel(), corner[1:, 1:].ravel()
    triangles = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
    return trimesh.Trimesh(np.stack([x, y, z], 1), triangles, process=False)


def oracle(points: np.ndarray, mesh: trimesh.Trimesh) -> np.ndarray:
    """Every point against every triangle, by another implementation."""
    distances = []
    for point in points:
        closest = trimesh.triangles.closest_point(mesh.triangles, np.tile(point, (len(mesh.triangles), 1)))
        distances.append(np.linalg.norm(closest - point, axis=1).min())
    return np.array(distances)


@pytest.fixture(scope="module")
def patch() -> trimesh.Trimesh:
    return bumpy_patch()


@pytest.fixture(scope="module")
def topology(patch: trimesh.Trimesh) -> SurfaceTopology:
    return SurfaceTopology.build(patch.faces, len(patch.vertices))


def test_every_vertex_knows_exactly_its_triangles(patch: trimesh.Trimesh, topology: SurfaceTopology) -> None:
    for vertex in (0, 5, 100, len(patch.vertices) - 1):
        expected = set(np.nonzero((patch.faces == vertex).any(1))[0])
        start = topology.start[vertex]
        assert set(topology.around[start : start + topology.degree[vertex]]) == expected


def test_triangles_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="outside 0 to 2"):
        SurfaceTopology.build(np.array([[0, 1, 3]]), 3)


def test_loose_points_are_refused() -> None:
    with pytest.raises(ValueError, match="vertex 3 belongs to no triangle"):
        SurfaceTopology.build(np.array([[0, 1, 2]]), 4)


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


def test_agrees_with_brute_force(patch: trimesh.Trimesh, topology: SurfaceTopology) -> None:
    generator = np.random.default_rng(1)
    points = patch.vertices[generator.integers(0, len(patch.vertices), 150)] + generator.normal(0, 3, (150, 3))
    found, expected = surface_distance(points, patch.vertices, topology), oracle(points, patch)
    # Looking only around the nearest vertices can overlook a triangle, never invent one.
    assert (found >= expected - 1e-9).all()
    assert np.mean(np.abs(found - expected) < 1e-6) > 0.98
    assert np.abs(found - expected).max() < 0.1


def test_refinement_undoes_a_small_motion(patch: trimesh.Trimesh) -> None:
    inner = np.abs(patch.vertices[:, :2]).max(1) < 45
    scan = patch.vertices[inner]
    moved = Rotation.from_euler("xyz", [1.5, -2, 1], degrees=True).apply(scan) + np.array([0.8, -0.6, 0.5])
    found, factor = refine_to_surface(
        moved, patch.vertices, patch.vertex_normals, tree=cKDTree(patch.vertices), steps=8
    )
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
