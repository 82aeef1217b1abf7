"""The moving average of a network's weights, which is less noisy than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of weights and buffers.

    The decay grows from 0.1 to its full value over the first steps, so that the random start is soon forgotten.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        """Starts from the present weights.

        Raises: ValueError if the decay is not in (0, 1).
        """
        if not 0.0 < decay < 1.0:
            raise ValueError(f"ema_decay is {decay:g}, expected a number between 0 and 1")
        self.decay = decay
        self.weights = _copy(network)

    @torch.no_grad()
    def update(self, network: nn.Module, *, step: int) -> None:
        """Move towards the weights after a step; counters are taken over as they are."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1.0 - decay)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """The network has the averaged weights inside the block and its own again after it."""
        own = _copy(network)
        network.load_state_dict(self.weights)
        try:
            yield
        finally:
            network.load_state_dict(own)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
