"""Further points of a face model: on the front of the face, spread out, in mirrored pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.face.dense import OUTSIDE, dense_vertices, face_front
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.types import PART_NAMES
from tests.tiny_face import tiny_face


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return procedural_face(identity_modes=2)


def changed(model: MorphableModel, mean: torch.Tensor, triangles: torch.Tensor, parts: torch.Tensor) -> MorphableModel:
    """A face without modes and colours that has the landmarks of another."""
    count = len(mean)
    return MorphableModel(
        name="changed",
        licence="",
        mean=mean,
        identity_basis=torch.zeros(1, count, 3),
        expression_basis=torch.zeros(0, count, 3),
        expression_names=(),
        albedo_mean=torch.full((count, 3), 0.5),
        albedo_basis=torch.zeros(0, count, 3),
        triangles=triangles,
        landmark_vertices=model.landmark_corners,
        landmark_weights=model.landmark_weights,
        uv=torch.zeros(count, 2),
        parts=parts,
    )


@pytest.mark.parametrize("count", [1, 2, 7, 40, 201])
def test_pairs_of_the_procedural_face_are_mirror_images(face: MorphableModel, count: int) -> None:
    indices, mirror = dense_vertices(face, count)
    assert len(indices) == len(set(indices.tolist())) == len(mirror) == count
    assert mirror[mirror].tolist() == list(range(count))
    places = face.mean[indices].numpy()
    np.testing.assert_allclose(places[mirror], places * [-1.0, 1.0, 1.0], atol=1e-4)
    # Only what lies on the midline is its own mirror image.
    assert ((mirror == np.arange(count)) == (np.abs(places[:, 0]) < 0.7)).all()


def test_points_are_spread_over_the_whole_front(face: MorphableModel) -> None:
    indices, _ = dense_vertices(face, 100)
    chosen, front = face.mean[indices], face.mean[torch.from_numpy(face_front(face))]
    apart = torch.cdist(chosen, chosen) + 1e3 * torch.eye(100)
    assert apart.min() > 8.0
    assert torch.cdist(front, chosen).min(1).values.max() < 16.0
    # From the chin to above the brows, and out to the jaw on both sides.
    landmarks = face.landmark_mean
    assert chosen[:, 1].min() < landmarks[8, 1] + 10.0
    assert chosen[:, 1].max() > landmarks[19, 1] + 25.0
    assert chosen[:, 0].abs().max() > 0.9 * landmarks[16, 0]


def test_more_points_begin_with_the_same_ones(face: MorphableModel) -> None:
    few, many = dense_vertices(face, 31)[0], dense_vertices(face, 60)[0]
    assert many[:30].tolist() == few[:30].tolist()
    assert dense_vertices(face, 60)[0].tolist() == many.tolist()


def test_a_model_that_does_not_tell_its_parts(face: MorphableModel) -> None:
    without = changed(face, face.mean, face.triangles, torch.zeros(face.vertex_count, dtype=torch.long))
    indices, _ = dense_vertices(without, 400)
    found = {PART_NAMES[part] for part in face.parts[torch.from_numpy(indices)].tolist()}
    assert found == set(OUTSIDE)


def test_a_whole_head(face: MorphableModel) -> None:
    back = face.mean * torch.tensor([1.0, 1.0, -1.0]) - torch.tensor([0.0, 0.0, 150.0])
    triangles = torch.cat([face.triangles, face.triangles.flip(1) + face.vertex_count])
    head = changed(face, torch.cat([face.mean, back]), triangles, face.parts.repeat(2))
    assert dense_vertices(head, 60)[0].tolist() == dense_vertices(face, 60)[0].tolist()


def test_a_face_that_is_not_symmetric() -> None:
    face = tiny_face()
    indices, mirror = dense_vertices(face, 24)
    assert len(indices) == 24
    assert mirror[mirror].tolist() == list(range(24))
    middle = float(face.landmark_mean[:, 0].mean())
    reflected = face.mean[indices] * torch.tensor([-1.0, 1.0, 1.0]) + torch.tensor([2 * middle, 0.0, 0.0])
    # Three hundredths of a face that is 180 mm high.
    assert (face.mean[indices[mirror]] - reflected).norm(dim=1).max() < 5.5


def test_an_odd_number_without_a_midline(face: MorphableModel) -> None:
    middle = face.mean[:, 0].abs() < 1.0
    parts = torch.where(middle, PART_NAMES.index("mouth"), face.parts)
    indices, mirror = dense_vertices(changed(face, face.mean, face.triangles, parts), 9)
    assert len(indices) == 8
    assert (mirror != np.arange(8)).all()


@pytest.mark.parametrize("count", [0, 100_000])
def test_too_many_points_are_refused(face: MorphableModel, count: int) -> None:
    with pytest.raises(ValueError, match=rf"procedural: \d+ vertices for {count} dense points.*ingest.dense_points"):
        dense_vertices(face, count)
