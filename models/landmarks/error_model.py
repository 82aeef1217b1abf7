"""How a detector errs, for small and large poses: bias, and the covariance of errors in units of the error it expects.

A covered mouth makes some points wrong by much and says so in their confidence, while most faces are found well. One
covariance of plain errors would call all of them mediocre; so expected errors are kept as they occurred, face by face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from models.face.camera import crop_camera, project, to_camera_space
from models.face.crop import apply_affine, crop_affine
from models.landmarks.framing import FLIP_PERMUTATION
from models.reconstruction.fit import fit_pose
from models.reconstruction.geometry_branch import affine_residual
from models.types import LANDMARK_COUNT

MIN_FACES = 8
"""Fewer faces than this say nothing about a group; the other group, or the default, stands in."""

CLIP = 0.25
"""Larger errors (fraction of the face) are missed faces, not noise."""

POSE_CROP_PX = 224

POOLED_FACES = 10.0
"""Faces' worth of the common value in every point's shrinkage."""

MAX_SHRINKAGE = 0.9

RELATIVE_CLIP = 4.0
"""Errors beyond so many expected ones are outliers that no covariance describes."""


@dataclass(frozen=True)
class DetectorErrors:
    """Errors x0, y0, x1, … as fractions of the larger side of the landmarks' box; index 0 small poses, 1 large ones."""

    covariance: Float[np.ndarray, "2 136 136"]
    """Of errors less bias, each divided by the error that the detector expected."""
    bias: Float[np.ndarray, "2 136"]
    shrinkage: Float[np.ndarray, "2 68"]
    """Share of a face's individual deviation that its points leave out: a detector draws faces towards the mean."""
    sigma: Float[np.ndarray, "N 68"]
    """Expected errors of the points of N faces, from which a simulation may draw."""
    large: Bool[np.ndarray, "N"]
    """Which of these faces are turned far."""
    count: tuple[int, int]
    """Faces that each was measured on."""


def independent_errors(sigma: float) -> DetectorErrors:
    """Noise without bias, the same for every coordinate."""
    size = 2 * LANDMARK_COUNT
    covariance = np.broadcast_to(np.eye(size), (2, size, size)).copy()
    stock = np.full((2, LANDMARK_COUNT), sigma)
    return DetectorErrors(
        covariance, np.zeros((2, size)), np.zeros((2, LANDMARK_COUNT)), stock, np.array([False, True]), (0, 0)
    )


def measure_errors(
    errors: Float[np.ndarray, "N 68 2"],
    sigma: Float[np.ndarray, "N 68"],
    yaw_deg: Float[np.ndarray, "N"],
    *,
    deviation: Float[np.ndarray, "N 68 2"],
    large_pose_deg: float,
    default_sigma: float,
) -> DetectorErrors:
    """Noise model from (detected - annotated) / larger box side, and the errors that the detector expected.

    `deviation` is what makes each face individual, in the same unit, see `individual_deviation`.
    Every face counts mirrored, too, as a mirrored face would err. The correlations are shrunk towards zero by the
    amount that minimises their expected error. A group of fewer than `MIN_FACES` is described by the other one.
    Source: Schäfer and Strimmer 2005, target D.
    """
    noise = independent_errors(default_sigma)
    large = np.abs(yaw_deg) > large_pose_deg
    groups = [np.flatnonzero(~large), np.flatnonzero(large)]
    enough = [rows for rows in groups if len(rows) >= MIN_FACES]
    if not enough:
        return noise
    stock, flags = [], []
    for number, group in enumerate(groups):
        rows = group if len(group) >= MIN_FACES else enough[0]
        expected = np.concatenate([sigma[rows], sigma[rows][:, FLIP_PERMUTATION]])
        clipped, own = np.clip(errors[rows], -CLIP, CLIP), deviation[rows]
        noise.shrinkage[number] = _shrinkage(clipped, own)
        plain = _with_mirrored(clipped + noise.shrinkage[number][:, None] * own)
        noise.bias[number] = plain.mean(0)
        relative = (plain - noise.bias[number]) / np.repeat(expected, 2, axis=1)
        noise.covariance[number] = _covariance(np.clip(relative, -RELATIVE_CLIP, RELATIVE_CLIP))
        stock.append(expected)
        flags.append(np.full(len(expected), bool(number)))
    counts = (len(groups[0]), len(groups[1]))
    return DetectorErrors(
        noise.covariance, noise.bias, noise.shrinkage, np.concatenate(stock), np.concatenate(flags), counts
    )


def individual_deviation(
    points: Float[np.ndarray, "N 68 2"], mean_points: Float[np.ndarray, "68 3"]
) -> Float[np.ndarray, "N 68 2"]:
    """How each face differs from the mean face in the same pose, in the points' unit."""
    found = torch.from_numpy(points).float()
    affine = crop_affine(found, size_px=POSE_CROP_PX, scale=1.3)
    inside = apply_affine(torch.linalg.inv(affine), found)
    camera = crop_camera(len(found), POSE_CROP_PX)
    model = torch.from_numpy(mean_points).float().expand(len(found), -1, -1)
    rotation, translation = fit_pose(model, inside, confidence=torch.ones(inside.shape[:2]), camera=camera)
    reference = project(to_camera_space(model, rotation=rotation, translation=translation), camera)
    return (affine_residual(inside, reference) * affine[:, :1, :1]).numpy()


def _shrinkage(errors: Float[np.ndarray, "M 68 2"], deviation: Float[np.ndarray, "M 68 2"]) -> Float[np.ndarray, "68"]:
    """Regression of errors on deviations, per point and its mirror image; few faces lean on all points together."""
    product = -(errors * deviation).sum((0, 2))
    power = (deviation**2).sum((0, 2))
    product, power = product + product[FLIP_PERMUTATION], power + power[FLIP_PERMUTATION]
    common = product.sum() / max(power.sum(), 1e-12)
    weight = POOLED_FACES / len(errors) * power.mean()
    return np.clip((product + weight * common) / np.maximum(power + weight, 1e-12), 0.0, MAX_SHRINKAGE)


def _with_mirrored(errors: Float[np.ndarray, "N 68 2"]) -> Float[np.ndarray, "M 136"]:
    mirrored = errors[:, FLIP_PERMUTATION] * np.array([-1.0, 1.0])
    return np.concatenate([errors, mirrored]).reshape(2 * len(errors), -1)


def _covariance(errors: Float[np.ndarray, "M 136"]) -> Float[np.ndarray, "136 136"]:
    """Second moments, with correlations shrunk; errors have no mean."""
    deviation = np.maximum(np.sqrt(np.mean(errors**2, axis=0)), 1e-6)
    whitened = errors / deviation
    # A face and its mirror image are one observation.
    count = len(errors) / 2
    correlation = whitened.T @ whitened / len(errors)
    variance = ((whitened**2).T @ (whitened**2) / len(errors) - correlation**2) / max(count - 1.0, 1.0)
    off_diagonal = ~np.eye(len(correlation), dtype=bool)
    power = (correlation[off_diagonal] ** 2).sum()
    # With fewer faces than coordinates the correlations are singular, so a little shrinkage there always is.
    shrinkage = float(np.clip(variance[off_diagonal].sum() / max(power, 1e-12), 1.0 / (count + 1.0), 1.0))
    shrunk = np.where(off_diagonal, (1.0 - shrinkage) * correlation, 1.0)
    return np.asarray(shrunk * deviation[:, None] * deviation)
