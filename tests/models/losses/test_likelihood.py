from __future__ import annotations

import math

import pytest
import torch

from models.face.procedural import procedural_face
from models.losses.likelihood import laplacian_likelihood, mirror_partners


def pictures(difference: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image = torch.full((2, 3, 4, 5), 0.5)
    mask = torch.ones(2, 4, 5, dtype=torch.bool)
    return image, image + difference, mask


def test_the_likelihood_by_hand() -> None:
    image, rendering, mask = pictures(0.1)
    found = laplacian_likelihood(image, rendering, torch.full((2, 4, 5), 0.2), mask=mask)
    assert found.tolist() == pytest.approx([math.sqrt(2) * 0.5 + math.log(0.2)] * 2, rel=1e-4)


def test_the_best_sigma_is_the_error_times_the_root_of_two() -> None:
    image, rendering, mask = pictures(0.1)
    sigma = (math.sqrt(2) * 0.1 * torch.ones(2, 4, 5)).requires_grad_()
    laplacian_likelihood(image, rendering, sigma, mask=mask).sum().backward()
    assert sigma.grad is not None
    assert sigma.grad.abs().max() < 1e-4


def test_pixels_outside_the_mask_do_not_count() -> None:
    image, rendering, mask = pictures(0.1)
    rendering[0, :, :2] = 9.0
    mask[0, :2] = False
    found = laplacian_likelihood(image, rendering, torch.full((2, 4, 5), 0.2), mask=mask)
    assert found[0].item() == pytest.approx(found[1].item(), rel=1e-5)
    nothing = laplacian_likelihood(image, rendering, torch.full((2, 4, 5), 0.2), mask=torch.zeros_like(mask))
    assert nothing.tolist() == [0.0, 0.0]


def test_partners_lie_across_the_middle_of_the_face() -> None:
    mean = procedural_face(identity_modes=1).mean
    partner = mirror_partners(mean)
    mirrored = mean * torch.tensor([-1.0, 1.0, 1.0])
    assert (mean[partner] - mirrored).norm(dim=1).max() < 0.1
    # Where vertices lie on each other, as at the seams of parts, either may be the partner.
    assert (mean[partner[partner]] - mean).norm(dim=1).max() < 0.1
