"""Nearest points on a mesh against every triangle tried by another implementation."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from models.face.surface_tree import SurfaceTree
from tests.bumpy_patch import bumpy_patch


def oracle(points: np.ndarray, mesh: trimesh.Trimesh) -> np.ndarray:
    """Distance of every point, against every triangle."""
    distances = []
    for point in points:
        closest = trimesh.triangles.closest_point(mesh.triangles, np.tile(point, (len(mesh.triangles), 1)))
        distances.append(np.linalg.norm(closest - point, axis=1).min())
    return np.array(distances)


def place(tree_result, mesh: trimesh.Trimesh) -> np.ndarray:
    corners = mesh.vertices[mesh.faces[tree_result.triangle]]
    return np.einsum("nk,nkc->nc", tree_result.weights, corners)


@pytest.mark.parametrize("spread_mm", [0.1, 3.0, 60.0])
def test_is_exact_near_and_far(spread_mm: float) -> None:
    mesh, random = bumpy_patch(), np.random.default_rng(1)
    points = mesh.vertices[random.integers(0, len(mesh.vertices), 100)] + random.normal(0, spread_mm, (100, 3))
    found = SurfaceTree.build(mesh.vertices, mesh.faces).nearest(points)
    np.testing.assert_allclose(found.distance, oracle(points, mesh), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(place(found, mesh) - points, axis=1), found.distance, atol=1e-9)
    assert (found.weights >= -1e-12).all()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0)


def test_a_closed_mesh_of_large_and_small_triangles_is_exact() -> None:
    """Every second triangle is a needle: nearest vertices would not tell the nearest triangle."""
    mesh = trimesh.creation.cylinder(radius=20.0, height=90.0, sections=60)
    points = np.random.default_rng(2).uniform(-60, 60, (80, 3))
    found = SurfaceTree.build(mesh.vertices, mesh.faces).nearest(points)
    np.testing.assert_allclose(found.distance, oracle(points, mesh), atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 31])
def test_any_number_of_triangles(count: int) -> None:
    random = np.random.default_rng(count)
    mesh = trimesh.Trimesh(random.normal(0, 10, (3 * count, 3)), np.arange(3 * count).reshape(-1, 3), process=False)
    points = random.normal(0, 20, (20, 3))
    found = SurfaceTree.build(mesh.vertices, mesh.faces).nearest(points)
    np.testing.assert_allclose(found.distance, oracle(points, mesh), atol=1e-9)


def test_a_start_changes_nothing_but_the_way() -> None:
    mesh, random = bumpy_patch(), np.random.default_rng(3)
    points = mesh.vertices[:200] + random.normal(0, 4, (200, 3))
    tree = SurfaceTree.build(mesh.vertices, mesh.faces)
    free = tree.nearest(points)
    for start in (free.triangle, random.integers(0, len(mesh.faces), 200)):
        np.testing.assert_allclose(tree.nearest(points, start=start).distance, free.distance, atol=1e-12)


def test_triangles_without_area_are_segments_and_points() -> None:
    vertices = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    points = np.array([[1.0, 1.0, 0.0], [5.0, 0.0, 0.0], [3.0, 0.0, -2.0], [0.0, 9.0, 1.0]])
    tree = SurfaceTree.build(vertices, np.array([[0, 1, 2], [3, 3, 3], [2, 2, 0]]))
    np.testing.assert_allclose(tree.nearest(points).distance, [1.0, 1.0, 2.0, 1.0], atol=1e-12)


def test_no_points_have_no_distance() -> None:
    mesh = bumpy_patch(side=4)
    assert len(SurfaceTree.build(mesh.vertices, mesh.faces).nearest(np.zeros((0, 3))).distance) == 0


def test_broken_meshes_are_refused() -> None:
    vertices = np.zeros((3, 3))
    for triangles in (np.array([[0, 1, 3]]), np.array([[0, -1, 2]]), np.zeros((0, 3), np.int64)):
        with pytest.raises(ValueError, match="outside 0 to 2"):
            SurfaceTree.build(vertices, triangles)
    with pytest.raises(ValueError, match="not finite"):
        SurfaceTree.build(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))
