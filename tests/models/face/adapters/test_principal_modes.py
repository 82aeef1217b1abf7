from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.face.adapters.principal_modes import (
    face_outwards,
    modes_from_columns,
    triangles_from_rows,
    vertices_from_vector,
)
from models.face.morphable import MorphableModel

PATH = Path("model.mat")


@pytest.mark.parametrize("shape", [(6,), (1, 6), (6, 1)])
def test_vectors_become_vertices_whichever_way_they_lie(shape: tuple[int, ...]) -> None:
    found = vertices_from_vector(np.arange(6.0).reshape(shape), key="mean", path=PATH)
    assert found.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_modes_are_columns_times_sigma() -> None:
    basis = np.zeros((6, 2))
    basis[0, 0], basis[4, 1] = 1.0, 1.0
    found = modes_from_columns(basis, sigma=np.array([[2.0], [5.0]]), vertex_count=2, key="basis", path=PATH)
    assert found.tolist() == [[[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 5.0, 0.0]]]


def test_a_count_keeps_the_first_modes_with_their_own_sigma() -> None:
    found = modes_from_columns(np.eye(3), sigma=np.array([3.0, 2.0, 1.0]), vertex_count=1, key="b", path=PATH, count=2)
    assert found.tolist() == [[[3.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]]


def test_directions_of_a_cropped_model_may_be_short_but_not_long() -> None:
    ones = np.ones(3)
    short = modes_from_columns(0.5 * np.eye(3), sigma=ones, vertex_count=1, key="b", path=PATH)
    assert np.linalg.norm(short[0]) == 0.5
    with pytest.raises(ValueError, match=r"model\.mat: a direction in b has length 2, expected at most 1 before σ"):
        modes_from_columns(2.0 * np.eye(3), sigma=ones, vertex_count=1, key="b", path=PATH)


def test_displacements_may_have_any_length() -> None:
    assert modes_from_columns(7.0 * np.eye(3), vertex_count=1, key="b", path=PATH)[2].tolist() == [[0.0, 0.0, 7.0]]


def test_triangles_are_counted_from_zero() -> None:
    found = triangles_from_rows(np.array([[1.0, 2.0, 3.0]]), vertex_count=3, first=1, key="tri", path=PATH)
    assert found.tolist() == [[0, 1, 2]]
    assert found.dtype == np.int64


def test_damaged_numbers_are_no_numbers() -> None:
    for value in (np.nan, np.inf, 1e30):
        with pytest.raises(ValueError, match="mean holds something else than finite numbers"):
            vertices_from_vector(np.array([0.0, value, 1.0]), key="mean", path=PATH)


@pytest.mark.parametrize("turned", [False, True])
def test_a_closed_surface_faces_outwards(turned: bool) -> None:
    tetrahedron = np.array([[0.0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 3]])
    outside = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    corners = tetrahedron[face_outwards(outside[:, ::-1] if turned else outside, tetrahedron)]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("fc,fc->f", normals, corners.mean(1) - 0.75) > 0).all()


@pytest.mark.parametrize("turned", [False, True])
def test_an_open_bump_faces_outwards(turned: bool, face: MorphableModel) -> None:
    triangles, mean = face.triangles.numpy(), face.mean.numpy()
    corners = mean[face_outwards(triangles[:, ::-1] if turned else triangles, mean)]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2] > 0).mean() > 0.95
