"""How a detector errs, for small and large poses: what it does to a face, bias, and the covariance of what is left.

A detector that has learned from many faces draws every face towards what it expects: broad motions are seen, fine
individual ones hardly. These errors depend on the face; taken for noise they would hide what the points still tell.
A covered mouth makes some points wrong by much and says so in their confidence, while most faces are found well. One
covariance of plain errors would call all of them mediocre; so expected errors are kept as they occurred, face by face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from models.face.camera import crop_camera, to_camera_space
from models.face.crop import apply_affine, crop_affine
from models.landmarks.framing import FLIP_PERMUTATION
from models.reconstruction.fit import fit_pose
from models.reconstruction.geometry_branch import pose_residual, with_depth
from models.types import LANDMARK_COUNT

MIN_FACES = 8
"""Fewer faces than this say nothing about a group; the other group, or the default, stands in."""

CLIP = 0.25
"""Larger errors (fraction of the face) are missed faces, not noise."""

POSE_CROP_PX = 224

DIRECTIONS = 60
"""Principal directions of the individual deviations on which errors may depend; what lies beyond is below a tenth of a
pixel."""

RIDGE_FACES = 20.0
"""Faces' worth of the belief that errors do not depend on the face."""

RELATIVE_CLIP = 4.0
"""Errors beyond so many expected ones are outliers that no covariance describes."""

COORDINATES = 2 * LANDMARK_COUNT


@dataclass(frozen=True)
class FoundFaces:
    """Faces whose points are known, as a detector found them. Units: larger sides of the points' boxes."""

    errors: Float[np.ndarray, "N 68 2"]
    """Detected less true points."""
    deviation: Float[np.ndarray, "N 68 2"]
    """What makes each face individual, see `individual_deviation`."""
    sigma: Float[np.ndarray, "N 68"]
    """Errors that the detector expected."""
    yaw_deg: Float[np.ndarray, "N"]


@dataclass(frozen=True)
class DetectorErrors:
    """Errors x0, y0, x1, … as fractions of the larger side of the landmarks' box; index 0 small poses, 1 large ones.

    Convention: of faces with a yaw of zero or more. Others err in mirror image.
    """

    covariance: Float[np.ndarray, "2 136 136"]
    """Of what is left of the errors, each divided by the error that the detector expected."""
    bias: Float[np.ndarray, "2 136"]
    response: Float[np.ndarray, "2 136 136"]
    """Error per individual deviation: -1 on the diagonal is a point whose individual place is not seen at all."""
    sigma: Float[np.ndarray, "N 68"]
    """Expected errors of the points of N faces, from which a simulation may draw."""
    large: Bool[np.ndarray, "N"]
    """Which of these faces are turned far."""
    count: tuple[int, int]
    """Faces that each was measured on."""


def independent_errors(sigma: float) -> DetectorErrors:
    """Noise without bias, the same for every coordinate."""
    covariance = np.broadcast_to(np.eye(COORDINATES), (2, COORDINATES, COORDINATES)).copy()
    stock = np.full((2, LANDMARK_COUNT), sigma)
    return DetectorErrors(
        covariance, np.zeros((2, COORDINATES)), np.zeros_like(covariance), stock, np.array([False, True]), (0, 0)
    )


def measure_errors(
    faces: FoundFaces,
    *,
    seen_in_training: FoundFaces | None = None,
    large_pose_deg: float,
    default_sigma: float,
) -> DetectorErrors:
    """Error model from faces that the detector was not trained on.

    `seen_in_training`: how errors depend on the face and go together is much the same on faces that the detector knows,
    of which there are many more; how large they are is not, so these say nothing of it.
    Small poses count mirrored, too, as a mirrored face would err. The correlations are shrunk towards zero by the
    amount that minimises their expected error. A group of fewer than `MIN_FACES` is described by the other one.
    Source: Schäfer and Strimmer 2005, target D, for the covariance; the response is a ridge regression.
    """
    noise = independent_errors(default_sigma)
    groups = [np.abs(faces.yaw_deg) <= large_pose_deg, np.abs(faces.yaw_deg) > large_pose_deg]
    enough = [number for number, rows in enumerate(groups) if rows.sum() >= MIN_FACES]
    if not enough:
        return noise
    stock, flags = [], []
    for number in range(2):
        source = number if number in enough else enough[0]
        rows, both = groups[source], source == 0
        aligned = [_aligned(faces, rows, both=both)]
        observations = int(rows.sum())
        if seen_in_training is not None:
            known = (np.abs(seen_in_training.yaw_deg) > large_pose_deg) == bool(source)
            if known.any():
                aligned.append(_aligned(seen_in_training, known, both=both))
                observations += int(known.sum())
        noise.response[number] = _response(aligned)
        left = [one.errors - one.deviation @ noise.response[number].T for one in aligned]
        noise.bias[number] = left[0].mean(0)
        relative = [
            np.clip((rest - rest.mean(0)) / np.repeat(one.sigma, 2, axis=1), -RELATIVE_CLIP, RELATIVE_CLIP)
            for rest, one in zip(left, aligned, strict=True)
        ]
        noise.covariance[number] = _covariance(relative, observations=observations)
        stock.append(aligned[0].sigma)
        flags.append(np.full(len(aligned[0].sigma), bool(number)))
    counts = (int(groups[0].sum()), int(groups[1].sum()))
    return DetectorErrors(
        noise.covariance, noise.bias, noise.response, np.concatenate(stock), np.concatenate(flags), counts
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
    seen = to_camera_space(model, rotation=rotation, translation=translation)
    return (pose_residual(inside, with_depth(seen, camera)) * affine[:, :1, :1]).numpy()


@dataclass(frozen=True)
class _Aligned:
    """Faces as if all were turned to one side."""

    errors: Float[np.ndarray, "M 136"]
    deviation: Float[np.ndarray, "M 136"]
    sigma: Float[np.ndarray, "M 68"]


def _aligned(faces: FoundFaces, rows: Bool[np.ndarray, "N"], *, both: bool) -> _Aligned:
    yaw = faces.yaw_deg[rows]
    errors, deviation = (
        _as_if_turned_left(values[rows], yaw, both=both, sign=np.array([-1.0, 1.0])).reshape(-1, COORDINATES)
        for values in (np.clip(faces.errors, -CLIP, CLIP), faces.deviation)
    )
    return _Aligned(errors, deviation, _as_if_turned_left(faces.sigma[rows, :, None], yaw, both=both)[..., 0])


def _as_if_turned_left(
    values: Float[np.ndarray, "N 68 C"], yaw_deg: Float[np.ndarray, "N"], *, both: bool, sign: np.ndarray | float = 1.0
) -> Float[np.ndarray, "M 68 C"]:
    """Values of faces with a negative yaw in mirror image; with `both`, the mirror images of all follow."""
    mirrored = values[:, FLIP_PERMUTATION] * sign
    turned = np.where((yaw_deg < 0.0)[:, None, None], mirrored, values)
    if not both:
        return turned
    return np.concatenate([turned, turned[:, FLIP_PERMUTATION] * sign])


def _response(groups: list[_Aligned]) -> Float[np.ndarray, "136 136"]:
    """Ridge regression of errors on the principal directions of the deviations, each group with its own bias."""
    errors = np.concatenate([group.errors - group.errors.mean(0) for group in groups])
    deviation = np.concatenate([group.deviation for group in groups])
    _, length, directions = np.linalg.svd(deviation, full_matrices=False)
    directions, power = directions[:DIRECTIONS], length[:DIRECTIONS] ** 2
    ridge = RIDGE_FACES * power.mean() / len(deviation) + 1e-12
    parts = deviation @ directions.T
    slopes = np.linalg.solve(parts.T @ parts + ridge * np.eye(len(directions)), parts.T @ errors)
    return np.asarray((directions.T @ slopes).T)


def _covariance(errors: list[Float[np.ndarray, "_ 136"]], *, observations: int) -> Float[np.ndarray, "136 136"]:
    """Second moments of errors without mean: variances of the first group, shrunk correlations of all groups.

    A face and its mirror image are one observation.
    """
    deviations = [np.maximum(np.sqrt(np.mean(group**2, axis=0)), 1e-6) for group in errors]
    deviation = deviations[0]
    whitened = np.concatenate([group / own for group, own in zip(errors, deviations, strict=True)])
    correlation = whitened.T @ whitened / len(whitened)
    variance = ((whitened**2).T @ (whitened**2) / len(whitened) - correlation**2) / max(observations - 1.0, 1.0)
    off_diagonal = ~np.eye(len(correlation), dtype=bool)
    power = (correlation[off_diagonal] ** 2).sum()
    # With fewer faces than coordinates the correlations are singular, so a little shrinkage there always is.
    shrinkage = float(np.clip(variance[off_diagonal].sum() / max(power, 1e-12), 1.0 / (observations + 1.0), 1.0))
    shrunk = np.where(off_diagonal, (1.0 - shrinkage) * correlation, 1.0)
    return np.asarray(shrunk * deviation[:, None] * deviation)
