"""Muon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.training.orthogonal import Muon, is_matrix, orthogonalize


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (32, 32)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7.0
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.35


def test_orthogonal_matrix_keeps_its_directions() -> None:
    matrix = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)))[0]
    found = orthogonalize(3.0 * matrix)
    cosine = (found * matrix).sum() / (found.norm() * matrix.norm())
    assert float(cosine) > 0.999


def test_zero_stays_zero() -> None:
    assert float(orthogonalize(torch.zeros(16, 20)).abs().max()) == 0.0


def test_which_parameters_are_matrices() -> None:
    assert is_matrix(torch.zeros(32, 16, 3, 3))
    assert is_matrix(torch.zeros(16, 64))
    assert not is_matrix(torch.zeros(64))
    assert not is_matrix(torch.zeros(64, 1, 3, 3))


def test_step_is_as_long_as_that_of_adamw() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 32)
    before = layer.weight.detach().clone()
    optimizer = Muon(layer.parameters(), lr=1e-2)
    layer(torch.randn(64, 48)).square().mean().backward()
    optimizer.step()
    change = (layer.weight.detach() - before).square().mean().sqrt()
    assert 0.1e-2 < float(change) < 0.3e-2
    # The first step of AdamW has the length of the rate.
    torch.testing.assert_close(optimizer.state[layer.bias]["step"], torch.tensor(1.0))


def test_fits_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(20, 16, generator=generator)
    layer = nn.Linear(20, 16)
    optimizer = Muon(layer.parameters(), lr=0.4)
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.4 * (1 - step / 200)
        inputs = torch.randn(128, 20, generator=generator)
        loss = (layer(inputs) - inputs @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_weight_decay_shrinks() -> None:
    weight = nn.Parameter(torch.ones(16, 16))
    weight.grad = torch.zeros(16, 16)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((16, 16), 0.95))


def test_state_survives_saving() -> None:
    def run(split: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(20, 16)
        optimizer = Muon(layer.parameters(), lr=0.01)
        for step in range(4):
            if split and step == 2:
                state = optimizer.state_dict()
                optimizer = Muon(layer.parameters(), lr=0.01)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            layer(torch.ones(2, 20) * step).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(run(split=False), run(split=True))
