from __future__ import annotations

import math

import torch

from models.face.camera import angles_from_rotation
from models.face.sampling import sample_expressions, sample_rotation

NAMES = ("jawOpen", "mouthClose", "eyeBlinkLeft", "eyeBlinkRight", "tongueOut", "browInnerUp")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_arkit_shapes_stay_in_their_range() -> None:
    found = sample_expressions(NAMES, 3000, seed=0)
    assert found.shape == (3000, len(NAMES))
    assert found.min() == 0
    assert 0.9 < found.max() <= 1


def test_the_mouth_closes_no_further_than_the_jaw_opens() -> None:
    found = sample_expressions(NAMES, 3000, seed=1)
    assert (found[:, 1] <= found[:, 0]).all()
    assert found[:, 1].max() > 0.3
    assert not found[:, 4].any()


def test_left_and_right_mostly_go_together() -> None:
    left, right = sample_expressions(NAMES, 3000, seed=2)[:, 2:4].T
    both = (left > 0) & (right > 0) & (left < 1) & (right < 1)
    assert both.sum() > 0.9 * ((left > 0) | (right > 0)).sum() - (torch.maximum(left, right) == 1).sum()
    assert torch.corrcoef(torch.stack([left[both], right[both]]))[0, 1] > 0.8
    assert (left[both] != right[both]).all()


def test_statistical_modes_are_gaussian() -> None:
    found = sample_expressions(("mode0", "mode1"), 20000, seed=3)
    assert found.abs().max() <= 0.7 * 2.5
    torch.testing.assert_close(found.std(0), torch.tensor([0.69, 0.69]), atol=0.02, rtol=0)


def test_statistical_modes_beside_named_ones_are_gaussian() -> None:
    """FLAME's: before, all but the jaw stayed at rest."""
    mixed = ("expression00", "jawOpen", "expression01", "tongueOut", "eyeLookInLeft", "eyeLookInRight")
    found = sample_expressions(mixed, 6000, seed=3)
    statistical = found[:, [0, 2]]
    torch.testing.assert_close(statistical.std(0), torch.tensor([0.69, 0.69]), atol=0.03, rtol=0)
    torch.testing.assert_close(statistical.mean(0), torch.zeros(2), atol=0.03, rtol=0)
    assert abs(torch.corrcoef(statistical.T)[0, 1]) < 0.05
    jaw = found[:, 1]
    assert jaw.min() == 0
    assert 0.9 < jaw.max() <= 1
    assert 0.3 < (jaw > 0.02).float().mean() < 0.9
    assert not found[:, 3].any()


def test_named_shapes_are_drawn_as_they_would_be_alone() -> None:
    alone = sample_expressions(NAMES, 1, seed=0)
    assert torch.equal(sample_expressions((*NAMES, "expression00"), 1, seed=0)[:, : len(NAMES)], alone)


def test_poses_fill_the_allowed_range() -> None:
    angles = angles_from_rotation(sample_rotation(6000, max_yaw_deg=80.0, generator=seeded(4))).rad2deg().abs()
    yaw, pitch, roll = angles.T
    assert 75 < yaw.max() <= 80.1
    # Half the draws, and 30/80 of the other half.
    assert abs((yaw <= 30).float().mean() - (0.5 + 0.5 * 30 / 80)) < 0.03
    assert max(pitch.max(), roll.max()) <= 30.1
    assert abs(pitch.square().mean().sqrt() - 12) < 1
    assert abs(roll.square().mean().sqrt() - 10) < 1


def test_a_small_limit_of_yaw_holds() -> None:
    rotation = sample_rotation(500, max_yaw_deg=10.0, generator=seeded(5))
    assert angles_from_rotation(rotation)[:, 0].abs().max() <= math.radians(10.1)


def test_the_same_seed_draws_the_same_face() -> None:
    assert torch.equal(sample_expressions(NAMES, 9, seed=6), sample_expressions(NAMES, 9, seed=6))
    assert torch.equal(
        sample_rotation(9, max_yaw_deg=60.0, generator=seeded(6)),
        sample_rotation(9, max_yaw_deg=60.0, generator=seeded(6)),
    )
