"""A folded network computes what the original does, without a normalisation, and leaves the original alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.landmarks.finder import FaceFinder, FinderWidths
from models.landmarks.folding import without_norms
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths


def network() -> HierarchicalNetwork:
    widths = NetworkWidths(stem=8, patch=16, second=24, third=32, level_two=32, fused=24, hidden=64)
    return HierarchicalNetwork(48, widths=widths, outline=True)


def lived(module: nn.Module) -> nn.Module:
    """As after training: no statistic, factor or projection is what it started as."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize(
    ("module", "size"),
    [(network(), (48, 48)), (FaceFinder(widths=FinderWidths(8, 8, 16, 16, 16)), (64, 96))],
    ids=["landmarks", "finder"],
)
def test_the_same_without_norms(module: nn.Module, size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2))
    lived(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folded = without_norms(module)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    with torch.no_grad():
        for ours, expected in zip(folded(image), module(image), strict=True):
            scale = max(1e-3, float(expected.abs().amax())) if expected.numel() else 1.0
            torch.testing.assert_close(ours / scale, expected / scale, rtol=0.0, atol=1e-4)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
