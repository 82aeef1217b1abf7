"""How fast each step learns: the learning rate over a run and between the parts of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

Schedule = Literal["cosine", "step", "constant"]

FINAL_SHARE = 0.02
"""Of the learning rate, where the cosine ends."""

STEP_FACTOR = 0.1
"""By which the rate falls in the schedule `step`. Source: Deng et al. 2019."""


def rate_share(
    step: int, *, steps: int, warmup_steps: int, schedule: Schedule = "cosine", decay_at: float = 0.5
) -> float:
    """Learning rate of a step as a share of the highest: a linear warm-up, then the schedule.

    `cosine` falls to `FINAL_SHARE`, `step` by `STEP_FACTOR` once the share `decay_at` of the steps is done.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return STEP_FACTOR if step >= decay_at * steps else 1.0
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * done))


def parameter_groups(network: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters by the factor of their learning rate; those with 0 stop requiring gradients."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        factor = next((factor for prefix, factor in factors.items() if name.startswith(prefix)), 1.0)
        parameter.requires_grad_(factor > 0.0)
        if factor > 0.0:
            groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
