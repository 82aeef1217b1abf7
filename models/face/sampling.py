"""Random faces and poses for simulation: what a face model and a camera may plausibly show."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from models.face.camera import rotation_from_angles

ACTIVE_SHARE = 0.12
"""Chance of a single ARKit shape to be active in a photo."""

COUPLING = 0.8
"""How far the left and right halves of a shape go together."""


def sample_expression(names: tuple[str, ...], count: int, *, generator: Generator) -> Float[Tensor, "B E"]:
    """Random expressions: a third nearly neutral, else a few shapes at once; statistical modes are Gaussian.

    Convention: ARKit names (ending in Left and Right, with jawOpen among them) lie in [0, 1], left and right mostly
    together, and `mouthClose` never exceeds `jawOpen`, without which it is meaningless.
    """
    if "jawOpen" not in names:
        return 0.7 * torch.randn(count, len(names), generator=generator).clamp(-2.5, 2.5)
    groups: dict[str, int] = {}
    group = torch.tensor(
        [groups.setdefault(name.removesuffix("Left").removesuffix("Right"), len(groups)) for name in names]
    )
    active = (torch.rand(count, len(groups), generator=generator) < ACTIVE_SHARE)[:, group]
    shared = torch.rand(count, len(groups), generator=generator)[:, group]
    own = torch.rand(count, len(names), generator=generator)
    activation = (COUPLING * shared + (1.0 - COUPLING) * own) * active
    lively = (torch.rand(count, 1, generator=generator) > 1.0 / 3.0).float()
    activation = activation * (0.1 + 0.9 * lively)
    index = {name: place for place, name in enumerate(names)}
    if "mouthClose" in index:
        closed, opened = index["mouthClose"], index["jawOpen"]
        activation[:, closed] = torch.minimum(activation[:, closed], activation[:, opened])
    if "tongueOut" in index:
        activation[:, index["tongueOut"]] = 0.0
    return activation


def sample_rotation(count: int, *, max_yaw_deg: float, generator: Generator) -> Float[Tensor, "B 3"]:
    """Random head poses as axis-angle: half of them within 30° of yaw, the rest up to the limit."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    small = min(30.0, max_yaw_deg)
    frontal = torch.rand(count, generator=generator) < 0.5
    yaw = torch.where(frontal, uniform(-small, small), uniform(-max_yaw_deg, max_yaw_deg))
    pitch = (12.0 * torch.randn(count, generator=generator)).clamp(-30.0, 30.0)
    roll = (10.0 * torch.randn(count, generator=generator)).clamp(-30.0, 30.0)
    radians = math.pi / 180.0
    return rotation_from_angles(yaw * radians, pitch * radians, roll * radians)
