from __future__ import annotations

import pytest
import torch
from torch import nn

from models.training.averaging import WeightAverage


def test_weights_and_statistics_are_averaged_and_counters_taken_over() -> None:
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, decay=0.75)
    with torch.no_grad():
        network.weight.fill_(5.0)
        network.running_mean.fill_(8.0)
        network.num_batches_tracked.fill_(3)
    # Late enough for the full decay.
    average.update(network, step=1000)
    assert average.weights["weight"].tolist() == [0.75 * 1.0 + 0.25 * 5.0]
    assert average.weights["running_mean"].tolist() == [2.0]
    assert average.weights["num_batches_tracked"].tolist() == 3


def test_the_start_is_soon_forgotten() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, decay=0.999)
    with torch.no_grad():
        network.weight.fill_(1.0)
    average.weights["weight"].zero_()
    average.update(network, step=0)
    assert float(average.weights["weight"]) == pytest.approx(0.9)
    for step in range(1, 40):
        average.update(network, step=step)
    assert float(average.weights["weight"]) > 0.999


def test_the_network_has_its_own_weights_back_afterwards() -> None:
    network = nn.Linear(2, 2)
    own = network.weight.detach().clone()
    average = WeightAverage(network, decay=0.9)
    average.weights["weight"].zero_()

    def broken() -> None:
        with average.applied(network):
            assert not network.weight.any()
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert torch.equal(network.weight, own)
    assert not average.weights["weight"].any()


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_that_averages_nothing_is_an_error(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema_decay is .* expected a number between 0 and 1"):
        WeightAverage(nn.Linear(1, 1), decay=decay)
