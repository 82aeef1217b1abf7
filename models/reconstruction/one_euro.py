"""The One-Euro filter: still when the signal is still, quick when it moves.

Source: Casiez, Roussel and Vogel 2012; here for many channels and uneven times, and for rotations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from kornia.geometry.conversions import axis_angle_to_quaternion, quaternion_to_axis_angle
from torch import Tensor


@dataclass(frozen=True)
class OneEuro:
    """How strongly a signal is smoothed."""

    min_cutoff_hz: float
    """Where it stands still; less is stiller."""
    speed_gain: float
    """Hertz of cut-off per unit of speed (signal units per second); more follows quicker."""
    speed_cutoff_hz: float = 1.0
    """By which the speed itself is smoothed."""


def one_euro(
    values: Float[Tensor, "T C"], times_s: Float[Tensor, "T"], settings: OneEuro, *, together: bool = False
) -> Float[Tensor, "T C"]:
    """The filtered signal; every value depends on those before it only.

    `together`: all channels share the cut-off of their common speed, the length of the vector of speeds.
    Raises: ValueError if times do not rise, or the settings are not positive.
    """
    if settings.min_cutoff_hz <= 0.0 or settings.speed_cutoff_hz <= 0.0 or settings.speed_gain < 0.0:
        raise ValueError(f"one_euro: {settings}, expected positive cut-offs and no negative gain")
    if len(times_s) > 1 and not bool((times_s.diff() > 0).all()):
        raise ValueError("one_euro: times do not rise, expected one value per moment")
    if len(values) == 0:
        return values.clone()
    found = [values[0]]
    speed = torch.zeros_like(values[0])
    for place in range(1, len(values)):
        step = times_s[place] - times_s[place - 1]
        speed = _towards(speed, (values[place] - found[-1]) / step, _share(step, settings.speed_cutoff_hz))
        size = speed.norm().expand_as(speed) if together else speed.abs()
        cutoff = settings.min_cutoff_hz + settings.speed_gain * size
        found.append(_towards(found[-1], values[place], _share(step, cutoff)))
    return torch.stack(found)


def one_euro_rotations(
    rotations: Float[Tensor, "T 3"], times_s: Float[Tensor, "T"], settings: OneEuro
) -> Float[Tensor, "T 3"]:
    """Filtered rotations, axis-angle in radians; the speed is that of unit quaternions, half the angular one."""
    if len(rotations) == 0:
        return rotations.clone()
    quaternions = axis_angle_to_quaternion(rotations)
    # q and -q are one rotation; the signs are chosen so that neighbours are close.
    agree = (quaternions[1:] * quaternions[:-1]).sum(1).sign()
    agree = torch.where(agree == 0, 1.0, agree)
    signs = torch.cat([quaternions.new_ones(1), agree]).cumprod(0)
    filtered = one_euro(signs[:, None] * quaternions, times_s, settings, together=True)
    return quaternion_to_axis_angle(torch.nn.functional.normalize(filtered, dim=1))


def _share(step_s: Tensor, cutoff_hz: Tensor | float) -> Tensor:
    """How much of a new value counts: a first-order low pass over one step."""
    return 1.0 / (1.0 + 1.0 / (2.0 * math.pi * cutoff_hz * step_s))


def _towards(before: Tensor, now: Tensor, share: Tensor) -> Tensor:
    return before + share * (now - before)
