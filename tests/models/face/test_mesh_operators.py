from __future__ import annotations

import math

import numpy as np
import pytest
import trimesh

from models.face.mesh_operators import cotangent_laplacian, mesh_normals, unit_vectors, vertex_areas

BALL = trimesh.creation.icosphere(subdivisions=3, radius=2.0)
VERTICES, TRIANGLES = np.asarray(BALL.vertices), np.asarray(BALL.faces)


def test_normals_of_a_sphere_point_outwards() -> None:
    normals = mesh_normals(VERTICES, TRIANGLES)
    assert (normals * VERTICES / 2.0).sum(1).min() > 0.998
    np.testing.assert_allclose(mesh_normals(VERTICES, TRIANGLES[:, ::-1]), -normals, atol=1e-12)


def test_areas_of_a_sphere() -> None:
    areas = vertex_areas(VERTICES, TRIANGLES)
    assert areas.sum() == pytest.approx(BALL.area)
    assert areas.sum() == pytest.approx(16 * math.pi, rel=0.02)


def test_the_laplacian_knows_area_and_constants() -> None:
    """The Dirichlet energy of a mesh's own coordinates is twice its area, whatever its triangles."""
    laplacian = cotangent_laplacian(VERTICES, TRIANGLES)
    assert (VERTICES * (laplacian @ VERTICES)).sum() == pytest.approx(2 * BALL.area)
    np.testing.assert_allclose(laplacian @ np.ones(len(VERTICES)), 0.0, atol=1e-12)
    assert abs(laplacian - laplacian.T).max() < 1e-12
    # On a ball of radius 2 the mean curvature normal has length 2 / 2.
    curvature = (laplacian @ VERTICES) / vertex_areas(VERTICES, TRIANGLES)[:, None]
    assert np.median((curvature * VERTICES / 2.0).sum(1)) == pytest.approx(1.0, abs=0.02)


def test_right_angles_by_hand() -> None:
    """The weight of a side is half the cotangent of the angle opposite: a half, or nearly nothing for 90 degrees."""
    corner = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = cotangent_laplacian(corner, np.array([[0, 1, 2]])).toarray()
    np.testing.assert_allclose(found, [[1, -0.5, -0.5], [-0.5, 0.51, -0.01], [-0.5, -0.01, 0.51]])


def test_a_vector_of_no_length() -> None:
    np.testing.assert_array_equal(
        unit_vectors(np.array([[0.0, 3.0, 4.0], [0.0, 0.0, 0.0]])), [[0, 0.6, 0.8], [0, 0, 0]]
    )
