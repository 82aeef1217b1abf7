"""As many faces at large poses as at small ones, and within both an even spread over yaw.

Convention: yaw in degrees; small means |yaw| up to the limit, inclusive. Bins are open towards zero: with 10 degrees,
30 lies in the bin from 20 to 30.
Source: method.md, section C: | #large - #small | within a preset range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class BalancedPoses:
    """Faces to train on; the same photo may occur mirrored and several times."""

    index: Int[np.ndarray, "R"]
    """Row of the original."""
    flipped: Bool[np.ndarray, "R"]
    duplicate: Bool[np.ndarray, "R"]
    """The same photo, flipped alike, is in the set already, so this one must be perturbed."""
    yaw_deg: Float[np.ndarray, "R"]
    """After the flip."""


@dataclass(frozen=True)
class PoseBin:
    """One row of the table of the balance."""

    low_deg: float
    high_deg: float
    before: int
    after: int
    flipped: int
    duplicated: int
    turned: int = 0
    """Photos whose heads were turned to this pose; straight or flipped, the first time."""


def balance_poses(
    yaw_deg: Float[np.ndarray, "M"],
    *,
    large_pose_deg: float = 30.0,
    bin_deg: float = 10.0,
    generator: np.random.Generator,
) -> BalancedPoses:
    """Fill up the rarer poses by flips, then by duplicates, until both groups and the bins within them are even.

    Nothing is dropped. Both groups end with the same number of faces; the bins of a group differ by at most one.
    Degenerate: a group or bin without any face, mirrored or not, cannot be filled and stays empty.
    Raises: ValueError if a yaw is not finite.
    """
    yaw = np.asarray(yaw_deg, np.float64)
    if not np.isfinite(yaw).all():
        raise ValueError("pose balance: a yaw angle is not finite, expected degrees; fit the pose first")
    straight = _bins(yaw, large_pose_deg, bin_deg)
    mirrored = _bins(-yaw, large_pose_deg, bin_deg)
    used = sorted(set(straight) | set(mirrored))
    groups = [[key for key in used if key[0] == large] for large in (False, True)]
    members = {key: [row for row, its in enumerate(straight) if its == key] for key in used}
    fullest = [max((len(members[key]) for key in group), default=0) * len(group) for group in groups]
    target = max(fullest)
    rows: list[tuple[int, bool, bool]] = []
    for group in groups:
        for place, key in enumerate(group):
            # The first bins take what does not divide evenly, so that the groups agree to the face.
            wanted = target // len(group) + (place < target % len(group))
            flips = [row for row, its in enumerate(mirrored) if its == key]
            rows += _fill(members[key], flips, wanted, generator)
    index = np.array([row for row, _, _ in rows], np.int64)
    flipped = np.array([flip for _, flip, _ in rows], bool)
    duplicate = np.array([again for _, _, again in rows], bool)
    return BalancedPoses(index, flipped, duplicate, np.where(flipped, -yaw[index], yaw[index]))


def imbalance(yaw_deg: Float[np.ndarray, "R"], *, large_pose_deg: float = 30.0) -> float:
    """| #large - #small | as a share of the set; 0 for an empty set."""
    large = int((np.abs(yaw_deg) > large_pose_deg).sum())
    return abs(2 * large - len(yaw_deg)) / max(1, len(yaw_deg))


def pose_table(
    before_deg: Float[np.ndarray, "M"],
    poses: BalancedPoses,
    *,
    bin_deg: float = 10.0,
    turned: Bool[np.ndarray, "N"] | None = None,
) -> list[PoseBin]:
    """Counts per bin of signed yaw, before and after the balance; `turned` tells which photos heads were turned in."""
    made = np.zeros(len(poses.index), bool) if turned is None else turned[poses.index]
    reach = max(90.0, float(np.abs(np.concatenate([before_deg, poses.yaw_deg, [0.0]])).max()))
    last = int(np.ceil(reach / bin_deg))
    before, after = _signed_bin(before_deg, bin_deg), _signed_bin(poses.yaw_deg, bin_deg)
    table = []
    for number in range(-last, last):
        here = after == number
        table.append(
            PoseBin(
                low_deg=number * bin_deg,
                high_deg=(number + 1) * bin_deg,
                before=int((before == number).sum()),
                after=int(here.sum()),
                flipped=int((here & poses.flipped & ~poses.duplicate & ~made).sum()),
                turned=int((here & made & ~poses.duplicate).sum()),
                duplicated=int((here & poses.duplicate).sum()),
            )
        )
    return table


def _fill(
    straight: list[int], mirrored: list[int], wanted: int, generator: np.random.Generator
) -> list[tuple[int, bool, bool]]:
    rows = [(row, False, False) for row in straight]
    flips = generator.permutation(np.array(mirrored, np.int64))[: max(0, wanted - len(rows))]
    rows += [(int(row), True, False) for row in flips]
    distinct = list(rows)
    while len(rows) < wanted:
        # Whole rounds, so that no face is repeated twice before another is repeated once.
        for place in generator.permutation(len(distinct))[: wanted - len(rows)]:
            row, flip, _ = distinct[place]
            rows.append((row, flip, True))
    return rows


def _bins(yaw_deg: Float[np.ndarray, "M"], large_pose_deg: float, bin_deg: float) -> list[tuple[bool, bool, int]]:
    size = np.abs(yaw_deg)
    number = np.maximum(np.ceil(size / bin_deg), 1.0).astype(int)
    return [
        (bool(one > large_pose_deg), bool(angle < 0.0), int(place))
        for one, angle, place in zip(size, yaw_deg, number, strict=True)
    ]


def _signed_bin(yaw_deg: Float[np.ndarray, "M"], bin_deg: float) -> Int[np.ndarray, "M"]:
    number = np.maximum(np.ceil(np.abs(yaw_deg) / bin_deg), 1.0).astype(np.int64)
    return np.where(yaw_deg < 0.0, -number, number - 1)
