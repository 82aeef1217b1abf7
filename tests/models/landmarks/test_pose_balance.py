"""Balance of small and large poses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.landmarks.pose_balance import balance_poses, imbalance, pose_table

small = st.floats(-30.0, 30.0)
large = st.one_of(st.floats(-110.0, -30.5), st.floats(30.5, 110.0))


@settings(max_examples=80, deadline=None)
@given(st.lists(small, min_size=1, max_size=60), st.lists(large, min_size=1, max_size=40), st.integers(0, 5))
def test_any_mixture_is_balanced(low: list[float], high: list[float], seed: int) -> None:
    yaw = np.array(low + high)
    poses = balance_poses(yaw, generator=np.random.default_rng(seed))
    assert imbalance(poses.yaw_deg) <= 0.02
    # Nothing is lost.
    kept = set(poses.index[~poses.flipped & ~poses.duplicate].tolist())
    assert kept == set(range(len(yaw)))
    # The yaw of a row is that of its photo, mirrored or not.
    np.testing.assert_allclose(poses.yaw_deg, np.where(poses.flipped, -yaw[poses.index], yaw[poses.index]))
    # A row that is no duplicate is unique.
    originals = list(zip(poses.index[~poses.duplicate], poses.flipped[~poses.duplicate], strict=True))
    assert len(set(originals)) == len(originals)
    # Within each group the bins that can be filled are even.
    for group in (np.abs(poses.yaw_deg) <= 30.0, np.abs(poses.yaw_deg) > 30.0):
        bins = np.ceil(np.abs(poses.yaw_deg[group]) / 10.0).clip(1) * np.where(poses.yaw_deg[group] < 0, -1, 1)
        counts = np.unique(bins, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1


def test_flips_come_before_duplicates() -> None:
    # Four to the left, none to the right: the right side is filled by mirroring all four.
    poses = balance_poses(np.array([-45.0, -44.0, -43.0, -42.0, 5.0]), generator=np.random.default_rng(0))
    right = (poses.yaw_deg > 40.0) & ~poses.duplicate
    assert right.sum() == 4
    assert poses.flipped[right].all()


def test_group_without_faces_stays_empty() -> None:
    poses = balance_poses(np.array([1.0, 2.0, -3.0]), generator=np.random.default_rng(0))
    assert imbalance(poses.yaw_deg) == 1.0
    assert (np.abs(poses.yaw_deg) <= 10.0).all()


def test_no_faces() -> None:
    poses = balance_poses(np.zeros(0), generator=np.random.default_rng(0))
    assert len(poses.index) == 0
    assert imbalance(poses.yaw_deg) == 0.0


def test_refuses_unknown_yaw() -> None:
    with pytest.raises(ValueError, match="not finite"):
        balance_poses(np.array([1.0, np.nan]), generator=np.random.default_rng(0))


def test_table_counts_every_row() -> None:
    yaw = np.array([-45.0, 5.0, 6.0, 30.0, 31.0])
    poses = balance_poses(yaw, generator=np.random.default_rng(0))
    table = pose_table(yaw, poses)
    assert sum(row.before for row in table) == 5
    assert sum(row.after for row in table) == len(poses.index)
    assert sum(row.flipped for row in table) == int((poses.flipped & ~poses.duplicate).sum())
    assert next(row.before for row in table if row.low_deg == 20.0) == 1  # 30 lies in the bin below it
    assert next(row.before for row in table if row.low_deg == 30.0) == 1
