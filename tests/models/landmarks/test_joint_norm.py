"""Blocks over several feature maps: one normalisation for all of them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models.landmarks.joint_norm import convolve_jointly, merge_jointly, normalize_jointly
from models.landmarks.transforms import ConvNorm, ResidualMerge


def test_statistics_are_those_of_all_positions() -> None:
    """Maps of constant 0 (4 positions) and 5 (1 position): mean 1, variance 4, so -1/2 and 2."""
    norm = nn.BatchNorm2d(1, eps=1e-12, momentum=1.0)
    first, second = normalize_jointly(norm, [torch.zeros(3, 1, 2, 2), torch.full((3, 1, 1, 1), 5.0)])
    torch.testing.assert_close(first, torch.full((3, 1, 2, 2), -0.5))
    torch.testing.assert_close(second, torch.full((3, 1, 1, 1), 2.0))
    torch.testing.assert_close(norm.running_mean, torch.tensor([1.0]))
    torch.testing.assert_close(norm.running_var, torch.tensor([4.0 * 15 / 14]))


def test_one_map_alone_is_normalised_as_ever() -> None:
    torch.manual_seed(0)
    block = ResidualMerge(3, 8, stride=2)
    image = torch.randn(4, 3, 9, 7)
    usual = copy.deepcopy(block)(image)
    torch.testing.assert_close(merge_jointly(block, [image])[0], usual)


def test_after_training_every_map_stands_for_itself() -> None:
    torch.manual_seed(0)
    block = ConvNorm(3, 8, 3)
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)]
    for _ in range(400):
        trained = convolve_jointly(block, maps)
    block.eval()
    # The running variance is the unbiased one, hence not equal to the last digit.
    for alone, together in zip(convolve_jointly(block, maps), trained, strict=True):
        torch.testing.assert_close(alone, together, rtol=0.01, atol=0.01)


def test_gradients_reach_every_map() -> None:
    norm = nn.BatchNorm2d(2).double()
    maps = [torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.randn(2, 2, 2, 1, dtype=torch.float64)]

    def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.cat([value.flatten() for value in normalize_jointly(norm, [first, second])])

    assert torch.autograd.gradcheck(joined, tuple(value.requires_grad_() for value in maps))
