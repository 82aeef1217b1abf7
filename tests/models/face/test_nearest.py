from __future__ import annotations

import numpy as np
import pytest
from trimesh.triangles import closest_point

from models.face.nearest import NearestSurface
from tests.tiny_face import tiny_face


def test_agrees_with_every_triangle() -> None:
    model = tiny_face()
    vertices, triangles = model.mean.double().numpy(), model.triangles.numpy()
    random = np.random.default_rng(0)
    points = vertices[random.integers(len(vertices), size=80)] + 4.0 * random.standard_normal((80, 3))
    found = NearestSurface(vertices, triangles).query(points)
    corners = vertices[triangles]
    exact = np.array(
        [
            np.linalg.norm(closest_point(corners, np.tile(point, (len(corners), 1))) - point, axis=1).min()
            for point in points
        ]
    )
    np.testing.assert_allclose(np.linalg.norm(found.points - points, axis=1), found.distance)
    np.testing.assert_allclose(found.distance, exact, atol=1e-9)


def test_normals_and_border() -> None:
    rows = np.arange(3.0)
    x, y = np.meshgrid(rows, rows, indexing="ij")
    vertices = np.concatenate([np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], 1), [[50.0, 50.0, 50.0]]])
    index = np.arange(9).reshape(3, 3)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    found = NearestSurface(vertices, triangles).query(
        np.array([[1.0, 1.0, 0.3], [1.2, 0.9, -0.2], [-1.0, 1.0, 0.0], [1.0, 3.0, 0.0], [49.0, 49.0, 49.0]])
    )
    np.testing.assert_allclose(found.normals, [[0, 0, 1]] * 5, atol=1e-12)
    assert found.at_border.tolist() == [False, False, True, True, True]
    np.testing.assert_allclose(found.distance[:4], [0.3, 0.2, 1.0, 1.0])


@pytest.mark.parametrize("triangles", [np.zeros((0, 3), int), np.array([[0, 1, 3]]), np.array([[-1, 0, 1]])])
def test_triangles_must_be_of_the_mesh(triangles: np.ndarray) -> None:
    with pytest.raises(ValueError, match="triangles refer to vertices outside 0 to 2"):
        NearestSurface(np.eye(3), triangles)
