"""The shift between the face model's points and those of annotated photos, fixed on the face."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.types import MIRRORED_LANDMARKS
from tasks.annotated_photos import ANNOTATED, AnnotatedPhotos
from tasks.point_conventions import MIN_PHOTOS, annotation_offsets, as_annotated

PHOTOS, RENDERS, SIZE_PX = 60, 12, 160
INNER = slice(17, None)


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return procedural_face(identity_modes=10)


@pytest.fixture(scope="module")
def moved() -> torch.Tensor:
    """Brows 4 mm lower, the base of the nose 3 mm higher, the jaw 6 mm higher; all else as the model has it."""
    offsets = torch.zeros(68, 3)
    offsets[17:27, 1], offsets[31:36, 1], offsets[:17, 1] = -4.0, 3.0, 6.0
    return offsets


def points_of(face: MorphableModel, offsets: torch.Tensor, *, count: int, yaw_deg: float, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randn(count, face.identity_size, generator=generator)
    landmarks = face.landmarks(face.vertices(identity)) + offsets
    yaw, pitch = torch.deg2rad(torch.rand(2, count, generator=generator) * 2.0 - 1.0) * torch.tensor(
        [[yaw_deg], [10.0]]
    )
    seen = to_camera_space(
        landmarks,
        rotation=rotation_from_angles(yaw, pitch, torch.zeros(count)),
        translation=torch.tensor([[0.0, 0.0, 1500.0]]).expand(count, 3),
    )
    pixels = project(seen, crop_camera(count, SIZE_PX))
    return (pixels + 0.3 * torch.randn(pixels.shape, generator=generator)).numpy()


def photos_of(points: np.ndarray, convention: np.ndarray) -> AnnotatedPhotos:
    blank = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
    return AnnotatedPhotos([blank] * len(points), points, np.zeros(len(points)), convention)


@pytest.fixture(scope="module")
def photos(face: MorphableModel, moved: torch.Tensor) -> AnnotatedPhotos:
    annotated = points_of(face, moved, count=PHOTOS, yaw_deg=25.0, seed=1)
    rendered = points_of(face, torch.zeros(68, 3), count=RENDERS, yaw_deg=70.0, seed=2)
    convention = np.array([ANNOTATED] * PHOTOS + [0] * RENDERS)
    return photos_of(np.concatenate([annotated, rendered]), convention)


def test_offsets_are_found(photos: AnnotatedPhotos, face: MorphableModel, moved: torch.Tensor) -> None:
    offsets = annotation_offsets(photos, face)
    assert offsets is not None
    # Sixty faces are not quite the mean face, and their distance is a guess.
    assert (offsets - moved)[INNER, :2].norm(dim=1).mean() < 1.0
    assert offsets[17:27, 1].mean() < offsets[36:48, 1].mean() - 2.5
    assert offsets[31:36, 1].mean() > offsets[36:48, 1].mean() + 1.5
    # Both sides of the face are annotated alike.
    mirrored = offsets[list(MIRRORED_LANDMARKS)] * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(offsets, mirrored, atol=1e-4, rtol=0)


def test_a_photo_with_wild_points_hardly_counts(photos: AnnotatedPhotos, face: MorphableModel) -> None:
    wild = photos.points.copy()
    wild[3] = wild[3, ::-1]
    before, after = annotation_offsets(photos, face), annotation_offsets(replace(photos, points=wild), face)
    assert before is not None
    assert after is not None
    assert (before - after)[INNER, :2].norm(dim=1).mean() < 0.5


def test_renders_get_the_points_that_annotators_would_give(
    photos: AnnotatedPhotos, face: MorphableModel, moved: torch.Tensor
) -> None:
    found = as_annotated(photos, face, moved)
    assert np.isnan(found[:PHOTOS]).all()
    # The same faces under the same poses, annotated; noise and all.
    expected = points_of(face, moved, count=RENDERS, yaw_deg=70.0, seed=2)
    without = np.linalg.norm(photos.points[PHOTOS:] - expected, axis=2).mean()
    assert np.linalg.norm(found[PHOTOS:] - expected, axis=2).mean() < 0.1 * without


def test_no_offsets_leave_the_points_where_they_are(photos: AnnotatedPhotos, face: MorphableModel) -> None:
    found = as_annotated(photos, face, torch.zeros(68, 3))
    np.testing.assert_allclose(found[PHOTOS:], photos.points[PHOTOS:], atol=1e-3)


def test_few_photos_say_nothing(photos: AnnotatedPhotos, face: MorphableModel) -> None:
    few = photos.take(np.r_[: MIN_PHOTOS - 1, PHOTOS : PHOTOS + RENDERS])
    assert annotation_offsets(few, face) is None
    assert annotation_offsets(photos.take(np.arange(PHOTOS)), face) is None
