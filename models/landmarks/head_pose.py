"""Yaw, pitch and roll of heads from their 68 points alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.face.camera import angles_from_rotation, crop_camera
from models.face.crop import apply_affine, crop_affine
from models.reconstruction.fit import fit_pose

CROP_PX = 224
CROP_SCALE = 1.35
"""The mean face is fitted in a crop like those of the reconstruction, seen by the same camera."""


def head_angles(
    landmarks: Float[Tensor, "N 68 2"],
    *,
    confidence: Float[Tensor, "N 68"],
    mean_points: Float[Tensor, "68 3"],
) -> Float[Tensor, "N 3"]:
    """Yaw, pitch and roll in degrees of the mean face under the pose that fits the landmarks best.

    Convention: landmarks in pixels of the photo, `mean_points` in model space.
    """
    if not len(landmarks):
        return landmarks.new_zeros((0, 3))
    affine = crop_affine(landmarks, size_px=CROP_PX, scale=CROP_SCALE)
    in_crop = apply_affine(torch.linalg.inv(affine), landmarks)
    rotation, _ = fit_pose(
        mean_points.expand(len(landmarks), -1, -1),
        in_crop,
        confidence=confidence,
        camera=crop_camera(len(landmarks), CROP_PX),
    )
    return torch.rad2deg(angles_from_rotation(rotation))
