"""The One-Euro filter against its definition, and what it is for."""

from __future__ import annotations

import math

import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix

from models.reconstruction.one_euro import OneEuro, one_euro, one_euro_rotations

SETTINGS = OneEuro(min_cutoff_hz=1.0, speed_gain=0.5)


def low_pass(values: list[float], rate: float, settings: OneEuro) -> list[float]:
    """The published algorithm, a number at a time."""

    def share(cutoff: float) -> float:
        tau = 1.0 / (2.0 * math.pi * cutoff)
        return 1.0 / (1.0 + tau * rate)

    found, speed = [values[0]], 0.0
    for value in values[1:]:
        change = (value - found[-1]) * rate
        speed += share(settings.speed_cutoff_hz) * (change - speed)
        weight = share(settings.min_cutoff_hz + settings.speed_gain * abs(speed))
        found.append(weight * value + (1.0 - weight) * found[-1])
    return found


def test_value() -> None:
    values = [0.0, 1.0, 0.5, 2.0, -1.0, -1.0]
    times = torch.arange(6, dtype=torch.float64) / 25.0
    found = one_euro(torch.tensor(values, dtype=torch.float64)[:, None], times, SETTINGS)[:, 0]
    assert found.tolist() == pytest.approx(low_pass(values, 25.0, SETTINGS), abs=1e-12)


def test_a_still_signal_is_stiller_and_a_moving_one_is_followed() -> None:
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(100, dtype=torch.float64) / 25.0
    noise = 0.02 * torch.randn(100, 1, generator=generator, dtype=torch.float64)
    still = one_euro(noise, times, OneEuro(1.0, 1.0))
    assert still.diff(dim=0).std() < 0.5 * noise.diff(dim=0).std()
    step = (times > 2.0).double()[:, None]
    slow, quick = (one_euro(step, times, OneEuro(1.0, gain))[55, 0].item() for gain in (0.0, 5.0))
    assert quick > slow + 0.1


def test_constant_signals_stay_and_uneven_times_are_welcome() -> None:
    times = torch.tensor([0.0, 0.04, 0.3, 0.31])
    assert torch.equal(one_euro(torch.full((4, 2), 3.0), times, SETTINGS), torch.full((4, 2), 3.0))
    assert one_euro(torch.zeros(0, 2), times[:0], SETTINGS).shape == (0, 2)


def test_rotations_do_not_care_about_the_sign_of_quaternions() -> None:
    turn = torch.linspace(-3.6, 3.6, 60, dtype=torch.float64)
    rotations = torch.stack([torch.zeros(60).double(), turn, torch.zeros(60).double()], 1)
    # Beyond half a turn the same rotation has another axis-angle.
    wrapped = torch.where(rotations.abs() > math.pi, rotations - 2 * math.pi * rotations.sign(), rotations)
    times = torch.arange(60, dtype=torch.float64) / 30.0
    found = one_euro_rotations(wrapped, times, OneEuro(50.0, 0.0))
    error = axis_angle_to_rotation_matrix(found) - axis_angle_to_rotation_matrix(rotations)
    assert error.abs().max() < 0.12


def test_exceptions() -> None:
    values = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="times do not rise"):
        one_euro(values, torch.tensor([0.0, 0.1, 0.1]), SETTINGS)
    with pytest.raises(ValueError, match="expected positive cut-offs"):
        one_euro(values, torch.arange(3.0), OneEuro(0.0, 1.0))
