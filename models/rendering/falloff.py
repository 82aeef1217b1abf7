"""Where a region of a texture begins and ends: distance to a line on the face, and weights that give way smoothly."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

STEPS = 8
"""Points on every piece of a chain, its ends included."""


def ramp(values: Float[np.ndarray, "*N"] | float, low: float, high: float) -> Float[np.ndarray, "*N"]:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(share * share * (3.0 - 2.0 * share))


def densely(chain: Float[np.ndarray, "L 3"]) -> Float[np.ndarray, "N 3"]:
    """Points along a chain of points, so close that the nearest of them is as good as the nearest of the line."""
    steps = np.linspace(0.0, 1.0, STEPS)[None, :, None]
    return (chain[:-1, None] * (1.0 - steps) + chain[1:, None] * steps).reshape(-1, 3)
