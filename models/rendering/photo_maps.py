"""Depth and normals of a face at every pixel of its photo."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.rendering.maps import depth_image, normal_image
from models.rendering.photo_texture import photo_box
from models.types import Camera

MAX_SIDE_PX = 4096
"""A face that is larger in its photo is drawn at this size and enlarged."""


@torch.no_grad()
def photo_depth(
    vertices: Float[Tensor, "V 3"],
    triangles: Int[Tensor, "F 3"],
    *,
    intrinsics: Float[Tensor, "3 3"],
    size: tuple[int, int],
) -> Float[np.ndarray, "H W"]:
    """Camera z (mm) of a mesh (camera space) at every pixel of a photo of `size` (H, W); 0 where it is not."""
    low, high, camera = _window(vertices, intrinsics, size)
    drawn = depth_image(vertices[None], triangles, camera)[0].numpy()
    return _placed(drawn, low, high, size)


@torch.no_grad()
def photo_normals(
    vertices: Float[Tensor, "V 3"],
    triangles: Int[Tensor, "F 3"],
    *,
    intrinsics: Float[Tensor, "3 3"],
    size: tuple[int, int],
) -> Float[np.ndarray, "H W 3"]:
    """Unit normals at every pixel, x right, y up, z towards the camera; zero where the mesh is not."""
    low, high, camera = _window(vertices, intrinsics, size)
    drawn = normal_image(vertices[None], triangles, camera)[0].permute(1, 2, 0).numpy()
    return _placed(drawn * np.array([1.0, -1.0, -1.0], np.float32), low, high, size)


def _window(
    vertices: Float[Tensor, "V 3"], intrinsics: Float[Tensor, "3 3"], size: tuple[int, int]
) -> tuple[Int[Tensor, "2"], Int[Tensor, "2"], Camera]:
    low, high = photo_box(vertices, intrinsics, size=size)
    extent = high - low
    zoom = min(1.0, MAX_SIDE_PX / int(extent.max()))
    camera = Camera(
        focal_px=intrinsics[0, 0, None] * zoom,
        principal_px=((intrinsics[:2, 2] - low) * zoom)[None],
        size=(max(1, round(int(extent[1]) * zoom)), max(1, round(int(extent[0]) * zoom))),
    )
    return low, high, camera


def _placed(
    drawn: np.ndarray, low: Int[Tensor, "2"], high: Int[Tensor, "2"], size: tuple[int, int]
) -> Float[np.ndarray, "H W *C"]:
    width, height = (high - low).tolist()
    if drawn.shape[:2] != (height, width):
        # Blended with its surroundings a depth would mean something else.
        drawn = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_NEAREST)
    result = np.zeros((*size, *drawn.shape[2:]), np.float32)
    left, top = low.tolist()
    result[top : top + height, left : left + width] = drawn
    return result
