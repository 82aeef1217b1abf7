from __future__ import annotations

import math

import pytest
import torch

from models.face.camera import crop_camera
from models.losses.image import INNER_LANDMARKS, landmark_distance, photo_distance


def test_photo_distance_is_the_mean_colour_distance_of_the_mask() -> None:
    image, rendering = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    rendering[0, :, 0, 0] = torch.tensor([0.2, 0.3, 0.6])
    rendering[0, :, 1, 1] = 9.0
    mask = torch.tensor([[[True, True], [False, False]], [[False, False], [False, False]]])
    found = photo_distance(image, rendering, mask=mask)
    # √(0.04 + 0.09 + 0.36) = 0.7 over two pixels, the equal one being 0.001 by the ε under the root; no mask, nothing.
    torch.testing.assert_close(found, torch.tensor([(math.sqrt(0.49 + 1e-6) + 1e-3) / 2, 0.0]))


def test_equal_images_have_a_finite_gradient() -> None:
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    photo_distance(image, image.detach().clone(), mask=torch.ones(1, 4, 4, dtype=torch.bool)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_gradients_of_the_photo_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    image, rendering = torch.rand(2, 2, 3, 3, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 3, generator=generator) < 0.6
    assert torch.autograd.gradcheck(
        lambda drawn: photo_distance(image, drawn, mask=mask), (rendering.requires_grad_(),)
    )


@pytest.mark.parametrize(
    ("point", "weight"), [(0, 1), (27, 1), (28, 20), (30, 20), (31, 1), (59, 1), (60, 20), (67, 20)]
)
def test_bridge_and_inner_lips_weigh_twenty_times(point: int, weight: int) -> None:
    target = torch.zeros(1, 68, 2)
    predicted = target.clone()
    predicted[0, point] = torch.tensor([3.0, 4.0])
    found = landmark_distance(predicted, target, confidence=torch.ones(1, 68), camera=crop_camera(1, 224))
    assert found.item() == pytest.approx(weight * 25 / 68)
    assert len(INNER_LANDMARKS) == 11


def test_landmark_errors_count_in_pixels_of_a_large_crop_and_by_confidence() -> None:
    target = torch.zeros(1, 68, 2)
    confidence = torch.zeros(1, 68)
    confidence[0, 5] = 0.25
    predicted = torch.full((1, 68, 2), 2.0)
    # In a crop of half the size, 2 px are 4: 2 · 4² · 0.25 / 68.
    found = landmark_distance(predicted, target, confidence=confidence, camera=crop_camera(1, 112))
    assert found.item() == pytest.approx(8 / 68)
