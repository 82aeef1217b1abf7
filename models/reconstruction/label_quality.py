"""How far a labelled mesh can be trusted: its registration, its coverage, its agreement with the landmarks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.face.camera import project, to_camera_space
from models.reconstruction.fit import fit_pose
from models.types import Camera

FIT_ERROR_SCALE_MM = 1.0
LANDMARK_ERROR_SCALE_PX = 4.0
REFERENCE_SIZE_PX = 224
"""Landmark errors are counted in pixels of a crop of this side, whatever the size of the crops at hand."""

MIN_POSE_WEIGHT = 1e-4
"""Even points without confidence count this much in the pose, so that a face with a single confident point has one."""


def landmark_error(
    points: Float[Tensor, "B L 3"],
    landmarks: Float[Tensor, "B L 2"],
    *,
    confidence: Float[Tensor, "B L"],
    camera: Camera,
) -> Float[Tensor, "B"]:
    """Confidence-weighted RMS distance between landmarks and projected mesh points under the best pose.

    Convention: points in model space (mm), landmarks in pixels of a square crop.
    Size: the distance is scaled to a crop of `REFERENCE_SIZE_PX`.
    Degenerate: a face without any confidence returns infinity, because nothing speaks for its label; points that all
    coincide have no pose, so the caller leaves them out.
    """
    weights = confidence.clamp_min(MIN_POSE_WEIGHT)
    rotation, translation = fit_pose(points, landmarks, confidence=weights, camera=camera)
    seen = project(to_camera_space(points, rotation=rotation, translation=translation), camera)
    total = confidence.sum(1)
    mean_square = (confidence * (seen - landmarks).square().sum(2)).sum(1) / total
    distance = mean_square.sqrt() * (REFERENCE_SIZE_PX / camera.size[1])
    return torch.where(total > 0, distance, torch.inf)


def label_quality(
    fit_error_mm: Float[Tensor, "B"], landmark_error_px: Float[Tensor, "B"], *, coverage: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """Quality in [0, 1]: exp(-e_fit / 1 mm) exp(-e_kp / 4 px) coverage.

    `landmark_error_px` is what `landmark_error` returns. A perfect label of the whole face has quality 1.
    """
    fit = torch.exp(-fit_error_mm / FIT_ERROR_SCALE_MM)
    return fit * torch.exp(-landmark_error_px / LANDMARK_ERROR_SCALE_PX) * coverage
