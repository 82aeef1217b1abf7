"""Per-photo optimisation on rendered photos whose faces are known."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from models.face.camera import crop_camera, rotation_distance
from models.face.morphable import MorphableModel
from models.reconstruction.geometry_branch import confidence_of
from models.reconstruction.photo_fit import (
    SMALLEST_SIGMA,
    landmark_precision,
    mean_start,
    refine,
    refine_coefficients,
    robust_distance,
)
from models.reconstruction.reconstructor import Reconstructor, ReconstructorSettings
from models.training.data import CropSet, make_batch
from models.types import Batch, FaceCoefficients, map_tensors
from tests.tiny_face import tiny_crops, tiny_face

SIZE_PX = 64


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return tiny_face()


def noisy_crops(model: MorphableModel, count: int, *, noise_px: float) -> CropSet:
    crops = tiny_crops(model, count, size_px=SIZE_PX)
    noise = noise_px * torch.randn(crops.landmarks.shape, generator=torch.Generator().manual_seed(2))
    sigma = torch.full_like(crops.confidence, noise_px / 45.0)
    return replace(crops, landmarks=crops.landmarks + noise, confidence=confidence_of(sigma))


def photos(model: MorphableModel, count: int, *, noise_px: float = 0.7) -> tuple[Batch, Tensor]:
    """A batch and the true neutral shapes (B, V, 3)."""
    crops = noisy_crops(model, count, noise_px=noise_px)
    batch = make_batch(crops, torch.arange(count), model=model, source="photos", labelled=False)
    return batch, crops.neutral[crops.mesh_index]


def shape_error(model: MorphableModel, found: FaceCoefficients, truth: Tensor) -> Tensor:
    return (model.vertices(found.identity) - truth).norm(dim=2).mean(1)


def test_precision_is_the_inverse_of_the_expected_error() -> None:
    landmarks = torch.zeros(1, 68, 2)
    landmarks[0, 0] = torch.tensor([100.0, 50.0])
    sigma = torch.full((1, 68), 0.01)
    sigma[0, 1] = 0.0
    precision = landmark_precision(landmarks, confidence_of(sigma), temper=1.0)
    assert precision[0, 2].item() == pytest.approx(1.0)
    assert precision[0, 1].item() == pytest.approx((100.0 * SMALLEST_SIGMA) ** -2)
    assert landmark_precision(landmarks, torch.zeros(1, 68))[0, 0].item() < 1e-9
    assert landmark_precision(torch.full((1, 68, 2), 7.0), torch.ones(1, 68)).isfinite().all()


def test_robust_distance_by_hand() -> None:
    squared = torch.tensor([[[0.0, 0.03, 9.0], [1e4, 0.0, 0.0]]]).sqrt().square()
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    value = robust_distance(squared, torch.tensor([0.1]), mask=mask)
    expected = 0.5 * (torch.tensor(4.0).log() + torch.tensor(1e6 + 1.0).log()) / 3
    torch.testing.assert_close(value[0], expected)
    assert robust_distance(squared, torch.tensor([0.1]), mask=torch.zeros_like(mask)).item() == 0.0


def test_the_photo_tells_more_of_the_shape_than_its_landmarks(model: MorphableModel) -> None:
    batch, truth = photos(model, 12)
    start = mean_start(model, batch)
    found = refine_coefficients(model, batch, start, anchor=None, photo_steps=40)
    by_landmarks = refine_coefficients(model, batch, start, anchor=None, photo_steps=0)
    error, before = shape_error(model, found, truth), shape_error(model, by_landmarks, truth)
    assert error.mean() < 0.75 * before.mean()
    assert (error < before).float().mean() > 0.7


def test_what_is_covered_hardly_matters(model: MorphableModel) -> None:
    batch, truth = photos(model, 12)
    image = batch.image.clone()
    image[:, :, 26:38, 20:32] = torch.tensor([0.0, 1.0, 0.2])[None, :, None, None]
    covered = replace(batch, image=image)
    free, hidden = (
        refine_coefficients(model, one, mean_start(model, one), anchor=None, photo_steps=40) for one in (batch, covered)
    )
    by_landmarks = refine_coefficients(model, batch, mean_start(model, batch), anchor=None, photo_steps=0)
    errors = [shape_error(model, found, truth).mean() for found in (free, hidden, by_landmarks)]
    assert errors[1] < errors[2]
    assert errors[1] < 1.25 * errors[0]


def test_a_face_does_not_depend_on_its_batch(model: MorphableModel) -> None:
    batch, _ = photos(model, 4)
    start = mean_start(model, batch)
    together = refine_coefficients(model, batch, start, anchor=None, photo_steps=20)
    crops = noisy_crops(model, 4, noise_px=0.7)
    one = make_batch(crops, torch.tensor([2]), model=model, source="photos", labelled=False)
    own = map_tensors(start, lambda values: values[2:3])
    alone = refine_coefficients(model, one, own, anchor=None, photo_steps=20)
    assert (alone.identity - own.identity).abs().max() > 0.05
    for field in fields(FaceCoefficients):
        torch.testing.assert_close(
            getattr(alone, field.name)[0], getattr(together, field.name)[2], rtol=2e-3, atol=2e-3
        )


def test_photos_of_a_person_share_identity_and_albedo_and_gain_by_it(model: MorphableModel) -> None:
    batch, truth = photos(model, 12, noise_px=1.5)
    # Each photo of the tiny crops shows another face; a second photo of each is one with other noise.
    again = noisy_crops(model, 12, noise_px=1.5)
    noise = torch.randn(again.landmarks.shape, generator=torch.Generator().manual_seed(9))
    again = replace(again, landmarks=again.annotation + 1.5 * noise)
    second = make_batch(again, torch.arange(12), model=model, source="photos", labelled=False)
    both = Batch(
        source="photos",
        sample_ids=batch.sample_ids + second.sample_ids,
        camera=crop_camera(24, SIZE_PX),
        **{
            name: torch.cat([getattr(batch, name), getattr(second, name)])
            for name in ("image", "mask", "landmarks", "confidence", "person")
        },
    )
    person = torch.arange(12).repeat(2)
    settings = {"anchor": None, "photo_steps": 20}
    shared = refine_coefficients(model, both, mean_start(model, both, person=person), person=person, **settings)
    torch.testing.assert_close(shared.identity[:12], shared.identity[12:], rtol=0, atol=1e-5)
    torch.testing.assert_close(shared.albedo[:12], shared.albedo[12:], rtol=0, atol=1e-5)
    assert (shared.lighting[:12] - shared.lighting[12:]).abs().max() > 1e-3
    alone = refine_coefficients(model, batch, mean_start(model, batch), **settings)
    both_error = shape_error(model, shared, truth.repeat(2, 1, 1)).mean()
    assert both_error < shape_error(model, alone, truth).mean()


def test_a_spoiled_photo_keeps_its_start_and_spoils_no_other(model: MorphableModel) -> None:
    batch, _ = photos(model, 3)
    start = mean_start(model, batch)
    expected = refine_coefficients(model, batch, start, anchor=None, photo_steps=20)
    image = batch.image.clone()
    image[1] = torch.nan
    found = refine_coefficients(model, replace(batch, image=image), start, anchor=None, photo_steps=20)
    by_landmarks = refine_coefficients(model, batch, start, anchor=None, photo_steps=0)
    for field in fields(FaceCoefficients):
        value = getattr(found, field.name)
        assert value.isfinite().all()
        torch.testing.assert_close(value[1], getattr(by_landmarks, field.name)[1])
        torch.testing.assert_close(value[[0, 2]], getattr(expected, field.name)[[0, 2]])


def test_expressions_stay_within_their_bounds(model: MorphableModel) -> None:
    batch, _ = photos(model, 6, noise_px=2.0)
    found = refine_coefficients(model, batch, mean_start(model, batch), anchor=None, photo_steps=10)
    assert found.expression.min() >= 0.0
    assert found.expression.max() <= 1.0


def test_refinement_starts_from_the_network_and_is_held_by_it(model: MorphableModel) -> None:
    torch.manual_seed(0)
    settings = ReconstructorSettings(
        crop_size_px=SIZE_PX,
        crop_scale=1.35,
        geometry_width=32,
        geometry_blocks=1,
        geometry_refinements=1,
        backbone="resnet-slim",
        width=8,
        features=32,
    )
    reconstructor = Reconstructor(model, settings).eval()
    batch, _ = photos(model, 6)
    with torch.no_grad():
        start = reconstructor(batch.image, batch.landmarks, batch.confidence)
    untouched = refine(reconstructor, batch, landmark_steps=0, photo_steps=0)
    for field in fields(FaceCoefficients):
        value = getattr(start, field.name)
        expected = value.clamp(0.0, 1.0) if field.name == "expression" else value
        torch.testing.assert_close(getattr(untouched, field.name), expected)
    points = reconstructor.reconstruct(start, batch.camera).landmarks
    landmarks = replace(batch, landmarks=points.detach())
    with torch.no_grad():
        stays = refine_coefficients(model, landmarks, start, anchor=1.0, photo_steps=0)
    assert (stays.identity - start.identity).abs().max() < 0.2
    turned = rotation_distance(stays.rotation, start.rotation)
    assert turned.rad2deg().max() < 5.0
