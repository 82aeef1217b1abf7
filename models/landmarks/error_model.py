"""How a detector errs: bias and covariance of its points, for small and large poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from models.landmarks.framing import FLIP_PERMUTATION
from models.types import LANDMARK_COUNT

MIN_FACES = 8
"""Fewer faces than this say nothing about a group; the other group, or the default, stands in."""

CLIP = 0.25
"""Larger errors (fraction of the face) are missed faces, not noise."""


@dataclass(frozen=True)
class DetectorErrors:
    """Errors x0, y0, x1, … as fractions of the larger side of the landmarks' box; index 0 small poses, 1 large ones."""

    covariance: Float[np.ndarray, "2 136 136"]
    bias: Float[np.ndarray, "2 136"]
    count: tuple[int, int]
    """Faces that each was measured on."""


def independent_errors(sigma: float) -> DetectorErrors:
    """Noise without bias, the same for every coordinate."""
    size = 2 * LANDMARK_COUNT
    covariance = np.broadcast_to(sigma**2 * np.eye(size), (2, size, size)).copy()
    return DetectorErrors(covariance, np.zeros((2, size)), (0, 0))


def measure_errors(
    errors: Float[np.ndarray, "N 68 2"], yaw_deg: Float[np.ndarray, "N"], *, large_pose_deg: float, default_sigma: float
) -> DetectorErrors:
    """Error model from (detected - annotated) / larger box side; every error counts mirrored, too.

    The correlations are shrunk towards zero by the amount that minimises their expected error.
    Source: Schäfer and Strimmer 2005, target D.
    """
    small = np.abs(yaw_deg) <= large_pose_deg
    groups = [np.clip(errors[rows], -CLIP, CLIP) for rows in (small, ~small)]
    noise = independent_errors(default_sigma)
    enough = [group for group in groups if len(group) >= MIN_FACES]
    for number, group in enumerate(groups):
        if not enough:
            break
        used = group if len(group) >= MIN_FACES else enough[0]
        noise.bias[number], noise.covariance[number] = _moments(_with_mirrored(used))
    return DetectorErrors(noise.covariance, noise.bias, (len(groups[0]), len(groups[1])))


def _with_mirrored(errors: Float[np.ndarray, "N 68 2"]) -> Float[np.ndarray, "M 136"]:
    mirrored = errors[:, FLIP_PERMUTATION] * np.array([-1.0, 1.0])
    return np.concatenate([errors, mirrored]).reshape(2 * len(errors), -1)


def _moments(errors: Float[np.ndarray, "M 136"]) -> tuple[Float[np.ndarray, "136"], Float[np.ndarray, "136 136"]]:
    bias = errors.mean(0)
    centred = errors - bias
    deviation = np.maximum(centred.std(0), 1e-6)
    whitened = centred / deviation
    # A face and its mirror image are one observation.
    count = len(errors) / 2
    correlation = whitened.T @ whitened / len(errors)
    variance = ((whitened**2).T @ (whitened**2) / len(errors) - correlation**2) / max(count - 1.0, 1.0)
    off_diagonal = ~np.eye(len(correlation), dtype=bool)
    power = (correlation[off_diagonal] ** 2).sum()
    # With fewer faces than coordinates the correlations are singular, so a little shrinkage there always is.
    shrinkage = float(np.clip(variance[off_diagonal].sum() / max(power, 1e-12), 1.0 / (count + 1.0), 1.0))
    shrunk = np.where(off_diagonal, (1.0 - shrinkage) * correlation, 1.0)
    return bias, shrunk * deviation[:, None] * deviation
