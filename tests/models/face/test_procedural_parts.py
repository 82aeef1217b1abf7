"""The mesh of the default face: one consistent, mirrored surface that is seen from outside."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from models.face.procedural_parts import LAYERS, FaceMesh, build_mesh
from models.face.procedural_shape import EYE_CENTRE


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return build_mesh()


def area_vectors(mesh: FaceMesh) -> np.ndarray:
    first, second, third = np.moveaxis(mesh.points[mesh.triangles], 1, 0)
    return 0.5 * np.cross(second - first, third - first)


def test_every_edge_joins_at_most_two_triangles_of_one_orientation(mesh: FaceMesh) -> None:
    triangles = mesh.triangles
    directed = Counter(
        map(tuple, np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).tolist())
    )
    assert max(directed.values()) == 1


def test_no_triangle_is_degenerate(mesh: FaceMesh) -> None:
    area = np.linalg.norm(area_vectors(mesh), axis=1)
    assert area.min() > 0.01
    corners = mesh.points[mesh.triangles]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
    assert np.median(area / longest**2) > 0.25


def test_every_vertex_is_used_once_or_more(mesh: FaceMesh) -> None:
    assert len(np.unique(mesh.triangles)) == len(mesh.points)


def test_triangles_face_outwards(mesh: FaceMesh) -> None:
    vectors, centres = area_vectors(mesh), mesh.points[mesh.triangles].mean(1)
    skin = (mesh.layer[mesh.triangles] == LAYERS.index("skin")).all(1)
    # The axis of the head, behind everything; nostrils and lip rolls may turn away from it.
    outwards = centres[skin] - np.stack([np.zeros(skin.sum()), 0.6 * centres[skin, 1], np.full(skin.sum(), -45.0)], 1)
    assert ((vectors[skin] * outwards).sum(1) > 0.0).mean() > 0.985
    eye = (mesh.layer[mesh.triangles] == LAYERS.index("eye")).all(1) & (centres[:, 0] > 0.0)
    assert ((vectors[eye] * (centres[eye] - EYE_CENTRE)).sum(1) > 0.0).all()
    teeth = np.isin(mesh.layer[mesh.triangles], [LAYERS.index("upper_teeth"), LAYERS.index("lower_teeth")]).all(1)
    front = teeth & (mesh.ring[mesh.triangles] <= 2).all(1)
    assert (vectors[front, 2] > 0.0).all()


def test_mirror_partners_are_exact(mesh: FaceMesh) -> None:
    np.testing.assert_allclose(mesh.points[mesh.mirror], mesh.points * np.array([-1.0, 1.0, 1.0]), atol=1e-9)
    np.testing.assert_array_equal(mesh.mirror[mesh.mirror], np.arange(len(mesh.points)))
    np.testing.assert_array_equal(mesh.layer[mesh.mirror], mesh.layer)
    np.testing.assert_array_equal(mesh.side[mesh.mirror], mesh.side)
    found = {tuple(sorted(row)) for row in mesh.triangles.tolist()}
    assert found == {tuple(sorted(row)) for row in mesh.mirror[mesh.triangles].tolist()}


def test_lips_are_two_rows_at_one_place(mesh: FaceMesh) -> None:
    upper, lower = mesh.rows["slit"], mesh.rows["slit_lower"]
    np.testing.assert_array_equal(mesh.points[upper], mesh.points[lower])
    assert upper[-1] == lower[-1]
    assert len(np.intersect1d(upper[:-1], lower[:-1])) == 0
    # No triangle spans the mouth.
    both = np.isin(mesh.triangles, upper[:-1]).any(1) & np.isin(mesh.triangles, lower[:-1]).any(1)
    assert not both.any()


def test_nothing_inside_the_mouth_shows_in_front_of_closed_lips(mesh: FaceMesh) -> None:
    inside = np.isin(mesh.layer, [LAYERS.index(name) for name in ("pouch", "upper_teeth", "lower_teeth", "tongue")])
    skin = mesh.layer == LAYERS.index("skin")
    for index in np.nonzero(inside & (mesh.ring > 0))[0]:
        near = skin & (np.hypot(*(mesh.points[:, :2] - mesh.points[index, :2]).T) < 4.0)
        if near.any():
            assert mesh.points[index, 2] < mesh.points[near, 2].max()
