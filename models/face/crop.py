"""Square crops around a face, and the affine map that leads from their pixels back to the photo.

Convention: pixels, x right, y down, pixel centres at +0.5. Affines are 3x3 and map crop pixels to photo pixels, so that
whatever is measured in a crop can be drawn on the original.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from models.types import Camera


def crop_affine(landmarks: Float[Tensor, "N L 2"], *, size_px: int, scale: float) -> Float[Tensor, "N 3 3"]:
    """Crop-to-photo affine of the upright square around the landmarks' bounding box.

    Size: `scale` times the larger side of the box. No rotation, so that roll stays part of the pose.
    Raises: ValueError if a box has no extent.
    """
    low, high = landmarks.amin(1), landmarks.amax(1)
    side = (high - low).amax(1) * scale
    if not bool((side > 0).all()):
        raise ValueError(
            "landmarks: all points of a face coincide, expected a face with extent; detect landmarks again"
        )
    return box_affine((low + high) / 2, side, size_px=size_px)


def box_affine(centre: Float[Tensor, "N 2"], side: Float[Tensor, "N"], *, size_px: int) -> Float[Tensor, "N 3 3"]:
    """Crop-to-photo affine of upright squares given by centre and side in photo pixels."""
    affine = torch.zeros(len(side), 3, 3, dtype=centre.dtype, device=centre.device)
    affine[:, 0, 0] = affine[:, 1, 1] = side / size_px
    affine[:, :2, 2] = centre - side[:, None] / 2
    affine[:, 2, 2] = 1.0
    return affine


def apply_affine(affine: Float[Tensor, "N 3 3"], points: Float[Tensor, "N L 2"]) -> Float[Tensor, "N L 2"]:
    """Map points by one affine per face."""
    return points @ affine[:, :2, :2].transpose(1, 2) + affine[:, None, :2, 2]


def photo_camera(camera: Camera, affine: Float[Tensor, "N 3 3"]) -> Float[Tensor, "N 3 3"]:
    """Intrinsics that project the camera space of a crop to pixels of the whole photo: affine times crop intrinsics."""
    intrinsics = torch.zeros_like(affine)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = camera.focal_px
    intrinsics[:, :2, 2] = camera.principal_px
    intrinsics[:, 2, 2] = 1.0
    return affine @ intrinsics


def inside_photo(
    affine: Float[Tensor, "N 3 3"], *, photo_size: Float[Tensor, "N 2"], size_px: int
) -> Bool[Tensor, "N S S"]:
    """Which pixels of a crop lie inside its photo; `photo_size` is (width, height)."""
    centres = torch.arange(size_px, dtype=affine.dtype, device=affine.device) + 0.5
    x = affine[:, 0, 0, None] * centres + affine[:, 0, 2, None]
    y = affine[:, 1, 1, None] * centres + affine[:, 1, 2, None]
    inside_x = (x >= 0) & (x < photo_size[:, :1])
    inside_y = (y >= 0) & (y < photo_size[:, 1:])
    return inside_y[:, :, None] & inside_x[:, None, :]


def warp_crop(
    image: UInt8[np.ndarray, "H W 3"], affine: Float[np.ndarray, "3 3"], size_px: int
) -> UInt8[np.ndarray, "S S 3"]:
    """Cut a crop out of a photo: black outside, averaged where the crop is smaller than its piece of the photo."""
    step = float(np.hypot(affine[0, 0], affine[1, 0]))
    # Bilinear sampling skips pixels when it shrinks; so it samples a finer grid, which is then averaged.
    finer = max(1, int(np.ceil(step)))
    grid = affine.astype(np.float64).copy()
    grid[:, :2] /= finer
    # OpenCV counts pixel centres as whole numbers.
    grid[:2, 2] += (grid[:2, 0] + grid[:2, 1]) * 0.5 - 0.5
    fine_px = size_px * finer
    warped = cv2.warpAffine(image, grid[:2], (fine_px, fine_px), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    if finer > 1:
        warped = cv2.resize(warped, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return np.asarray(warped, dtype=np.uint8)
