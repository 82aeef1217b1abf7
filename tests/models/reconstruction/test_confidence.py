from __future__ import annotations

import pytest
import torch

from models.reconstruction.confidence import MIN_SIGMA, START_SIGMA, ConfidenceNetwork


def network(**options: int) -> ConfidenceNetwork:
    torch.manual_seed(0)
    return ConfidenceNetwork(**({"width": 4, "size_px": 32} | options))


def test_every_pixel_starts_with_the_same_doubt() -> None:
    found = network()(torch.rand(2, 3, 32, 32))
    assert found.shape == (2, 2, 32, 32)
    torch.testing.assert_close(found, torch.full_like(found, START_SIGMA))


def test_it_learns_where_pictures_differ() -> None:
    learner = network()
    image = torch.zeros(4, 3, 32, 32)
    error = torch.full((4, 32, 32), 0.05)
    error[:, :16] = 0.3
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for _ in range(60):
        sigma = learner(image)[:, 0]
        loss = (2**0.5 * error / sigma + sigma.log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sigma = learner(image)[0, 0]
    assert sigma[:12].mean() > 2.0 * sigma[20:].mean()
    assert sigma.min() > MIN_SIGMA


def test_a_checkpoint_holds_it() -> None:
    first = network(width=3, size_px=48)
    torch.nn.init.normal_(first.head.weight)
    again = ConfidenceNetwork.load(first.content())
    image = torch.rand(1, 3, 48, 48)
    assert torch.equal(again(image), first.eval()(image))
    assert not again.training


def test_a_side_that_cannot_be_halved_four_times_is_refused() -> None:
    with pytest.raises(ValueError, match="crops of 40 px, expected a multiple of 16"):
        network(size_px=40)
