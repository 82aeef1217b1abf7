"""Reading features around points: the compiled step against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.landmarks.local_features import read_around

REACH = (-4.0, 0.0, 4.0)


def reference(features: Tensor, points: Tensor, size_px: int) -> Tensor:
    steps = torch.tensor(REACH, dtype=points.dtype)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = points[:, :, None] + torch.stack([x, y], -1).flatten(0, 1)
    sampled = functional.grid_sample(features, places * (2.0 / size_px) - 1.0, align_corners=False)
    return sampled.permute(0, 2, 3, 1).flatten(2)


@pytest.mark.parametrize("size", [(12, 12), (24, 24), (8, 16)])
def test_agrees_with_grid_sample_inside_and_outside(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, *size, generator=generator).requires_grad_()
    points = 64.0 * torch.rand(3, 68, 2, generator=generator) - 8.0
    points[0, 0] = torch.tensor([-500.0, 1e6])
    weights = torch.randn(3, 68, 45, generator=generator)
    found, expected = read_around(features, points, REACH, 48), reference(features, points, 48)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    (ours,) = torch.autograd.grad((found * weights).sum(), features)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), features)
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
    assert found[0, 0].abs().max() == 0


def test_without_gradient_the_same_is_read() -> None:
    features = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(1))
    points = torch.full((2, 68, 2), 20.0)
    learning = read_around(features.clone().requires_grad_(), points, REACH, 48)
    torch.testing.assert_close(read_around(features, points, REACH, 48), learning.detach(), atol=2e-5, rtol=0)


def test_a_centre_reads_its_feature_and_halfway_the_mean() -> None:
    features = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
    points = torch.tensor([[[6.0, 2.0], [8.0, 2.0]]]).repeat(1, 34, 1)
    found = read_around(features, points, (0.0,), 16)
    assert found[0, :2, 0].tolist() == [1.0, 1.5]


def test_half_precision_and_places_that_are_no_numbers() -> None:
    features = torch.randn(1, 3, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    points = torch.full((1, 68, 2), float("nan"))
    found = read_around(features, points, REACH, 32)
    assert found.abs().max() == 0
    found.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().max() == 0


def test_the_number_of_threads_changes_no_bit() -> None:
    features = torch.randn(4, 6, 24, 24, generator=torch.Generator().manual_seed(2)).requires_grad_()
    points = 48.0 * torch.rand(4, 68, 2, generator=torch.Generator().manual_seed(3))
    threads, gradients = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            (gradient,) = torch.autograd.grad(read_around(features, points, REACH, 48).square().sum(), features)
            gradients.append(gradient)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*gradients)


class Reader(nn.Module):
    """Features that need a gradient, as in a network that is exported without a thought of it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        return read_around(self.features(image), points, REACH, 48)


def test_the_exported_network_reads_by_torch_alone() -> None:
    reader, image = Reader(), torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    points = 48.0 * torch.rand(1, 68, 2, generator=torch.Generator().manual_seed(5))
    exported = torch.export.export(reader, (image, points)).module()
    torch.testing.assert_close(exported(image, points), reader(image, points), atol=2e-5, rtol=0)
