"""Which vertices are lips, brows and eyes, for a model that covers them with one surface and names none."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from models.types import PART_NAMES

OUTER_LIPS = tuple(range(48, 60))
EYES = (tuple(range(36, 42)), tuple(range(42, 48)))
BROWS = (tuple(range(17, 22)), tuple(range(22, 27)))

BROW_HALF_HEIGHT_MM = 4.0
DEPTH_MM = 20.0
"""What lies further behind a feature's outline than this belongs to something else, such as the back of the head."""


def feature_parts(mean: Float[np.ndarray, "V 3"], landmarks: Float[np.ndarray, "68 3"]) -> Int[np.ndarray, "V"]:
    """Part of every vertex, by the outlines that the 68 points draw on a face seen from the front.

    Convention: millimetres, our axes. A model without eyeballs of its own has the eyes' surface between the lids, which
    counts as eyes; nothing counts as the inside of the mouth.
    """
    parts = np.full(len(mean), PART_NAMES.index("skin"), dtype=np.int64)
    for brow in BROWS:
        parts[_near_line(mean, landmarks[list(brow)], BROW_HALF_HEIGHT_MM)] = PART_NAMES.index("brows")
    for eye in EYES:
        parts[_within(mean, landmarks[list(eye)])] = PART_NAMES.index("eyes")
    parts[_within(mean, landmarks[list(OUTER_LIPS)])] = PART_NAMES.index("lips")
    return parts


def _within(points: Float[np.ndarray, "V 3"], outline: Float[np.ndarray, "P 3"]) -> Bool[np.ndarray, "V"]:
    """Inside the outline seen from the front: a ray to the left crosses it an odd number of times."""
    x, y = points[:, 0], points[:, 1]
    inside = np.zeros(len(points), dtype=bool)
    for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if start[1] == end[1]:
            continue
        crosses = (start[1] > y) != (end[1] > y)
        at = start[0] + (y - start[1]) / (end[1] - start[1]) * (end[0] - start[0])
        inside ^= crosses & (x < at)
    return inside & (np.abs(points[:, 2] - outline[:, 2].mean()) < DEPTH_MM)


def _near_line(
    points: Float[np.ndarray, "V 3"], line: Float[np.ndarray, "P 3"], distance: float
) -> Bool[np.ndarray, "V"]:
    near = np.zeros(len(points), dtype=bool)
    for start, end in pairwise(line):
        along = end - start
        share = np.clip((points - start) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
        near |= np.linalg.norm(points - start - share[:, None] * along, axis=1) < distance
    return near
