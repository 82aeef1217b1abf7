from __future__ import annotations

import numpy as np
import pytest
import trimesh

from models.face.adapters.assemble import procedural_donor, vertex_normals
from models.face.adapters.borrowed_expressions import borrow_expressions
from models.types import PART_NAMES


@pytest.fixture(scope="module")
def skin() -> np.ndarray:
    """Vertices of the procedural face that are neither eye nor inside of the mouth, nor at its rim."""
    donor = procedural_donor()
    outside = ~np.isin(donor.parts.numpy(), [PART_NAMES.index("eyes"), PART_NAMES.index("mouth")])
    return np.flatnonzero(outside)


def borrow(scale: float, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    donor = procedural_donor()
    mean = scale * donor.mean.numpy() + np.float32(shift)
    landmarks = mean[donor.landmark_vertices.numpy()]
    basis, names = borrow_expressions(mean, donor.triangles.numpy(), landmarks, donor.parts.numpy())
    assert names == donor.expression_names
    return basis


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest typical error of an expression, as a share of what it moves."""
    error = np.sqrt(((found - expected) ** 2).sum(2).mean(1))
    motion = np.sqrt((expected**2).sum(2).mean(1))
    return float((error[motion > 0.05] / motion[motion > 0.05]).max())


def test_the_procedural_face_gets_its_own_expressions_back(skin: np.ndarray) -> None:
    assert worst(borrow(1.0)[:, skin], procedural_donor().expression_basis.numpy()[:, skin]) < 0.12


def test_a_larger_face_elsewhere_moves_as_much_more(skin: np.ndarray) -> None:
    expected = 1.3 * procedural_donor().expression_basis.numpy()[:, skin]
    assert worst(borrow(1.3, (0.0, 40.0, -100.0))[:, skin], expected) < 0.12


def test_a_finer_mesh_moves_as_the_surface_between_the_donors_vertices(skin: np.ndarray) -> None:
    donor = procedural_donor()
    triangles = donor.triangles.numpy()
    motion = donor.expression_basis.numpy().transpose(1, 0, 2).reshape(donor.vertex_count, -1)
    outside = triangles[np.isin(triangles, skin).all(1)]
    mean, finer, values = trimesh.remesh.subdivide(donor.mean.numpy(), outside, vertex_attributes={"motion": motion})
    parts = np.zeros(len(mean), np.int64)
    basis, _ = borrow_expressions(mean.astype(np.float32), finer, donor.landmark_mean.numpy(), parts)
    expected = values["motion"].reshape(len(mean), -1, 3).transpose(1, 0, 2)
    assert worst(basis[:, donor.vertex_count :], expected[:, donor.vertex_count :]) < 0.085


def test_lips_part_when_the_jaw_opens() -> None:
    donor = procedural_donor()
    basis = borrow(1.1)
    opened = basis[donor.expression_names.index("jawOpen")]
    upper, lower = donor.landmark_vertices.numpy()[[62, 66]]
    assert opened[upper, 1] > -3.0
    assert opened[lower, 1] < -15.0


def test_eyes_rest() -> None:
    eyes = procedural_donor().parts.numpy() == PART_NAMES.index("eyes")
    assert not borrow(1.0)[:, eyes].any()


def test_what_lies_far_behind_the_face_rests() -> None:
    donor = procedural_donor()
    neck = np.array([[0.0, -200.0, -100.0], [10.0, -200.0, -100.0], [0.0, -210.0, -100.0]], np.float32)
    mean = np.concatenate([donor.mean.numpy(), neck])
    count = donor.vertex_count
    triangles = np.concatenate([donor.triangles.numpy(), [[count, count + 1, count + 2]]])
    parts = np.concatenate([donor.parts.numpy(), [0, 0, 0]])
    basis, _ = borrow_expressions(mean, triangles, mean[donor.landmark_vertices.numpy()], parts)
    assert np.abs(basis[:, count:]).max() < 1e-3


def test_normals_of_a_corner_are_weighted_by_area() -> None:
    points = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 1]])
    normals = vertex_normals(points, np.array([[0, 1, 2], [0, 2, 3]]))
    np.testing.assert_allclose(normals[0], np.array([1.0, 0.0, 2.0]) / np.sqrt(5.0))
    np.testing.assert_allclose(normals[1], [0.0, 0.0, 1.0])
