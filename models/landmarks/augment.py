"""Training crops of annotated photos: tight upright ones, strongly warped copies, and crops without a face."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from models.landmarks.framing import (
    FLIP_PERMUTATION,
    box_side,
    cut_frames,
    frame_affine,
    landmark_box,
    tight_frame,
    transform_points,
)

Frames = tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N"], Float[np.ndarray, "N"]]
"""Centre, side and angle, as in `tight_frame`."""


@dataclass(frozen=True)
class Augmentation:
    """How far the crops stray."""

    tight_angle_rad: float = 0.07
    tight_scale: float = 0.05
    tight_shift: float = 0.025
    """Standard deviations around the tight frame, scale as a logarithm, shift as a share of the side: what the coarse
    pass gets wrong, so that the refinement sees what it was trained on."""
    wide_scale: tuple[float, float] = (1.0, 2.8)
    """Side of the warped copy relative to the larger side of the landmarks' box."""
    wide_angle_rad: float = 0.5
    cutout_share: float = 0.05
    grey_share: float = 0.05
    brightness: float = 0.06
    contrast: float = 0.15
    colour: float = 0.05
    """Mild: in two minutes the network does not learn its training photos by heart, and hard copies cost accuracy."""
    blur_share: float = 0.0
    noise_share: float = 0.0

    @classmethod
    def strong(cls) -> Augmentation:
        """For long trainings, in which a few real photos come round hundreds of times."""
        return cls(
            tight_angle_rad=0.1,
            tight_scale=0.07,
            tight_shift=0.03,
            wide_angle_rad=0.8,
            cutout_share=0.2,
            grey_share=0.15,
            brightness=0.1,
            contrast=0.25,
            colour=0.1,
            blur_share=0.25,
            noise_share=0.25,
        )


@dataclass(frozen=True)
class CropBatch:
    """Crops with their points."""

    images: UInt8[np.ndarray, "N S S 3"]
    points: Float[np.ndarray, "N 68 2"]
    """Pixels of the crop."""
    affine: Float[np.ndarray, "N 3 3"]
    """Crop pixels to photo pixels."""


def tight_crops(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    points: Float[np.ndarray, "M 68 2"],
    which: Int[np.ndarray, "N"],
    *,
    shape: Float[np.ndarray, "68 2"],
    size_px: int,
    flip: Bool[np.ndarray, "N"],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> CropBatch:
    """Upright crops of faces `which`, framed as the refinement frames them, with its errors."""
    centre, side, angle = tight_noise(points[which], shape, augmentation, generator)
    return _cut(images, points, which, frame_affine(centre, side, angle, size_px=size_px, flip=flip), size_px, flip)


def wide_crops(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    points: Float[np.ndarray, "M 68 2"],
    which: Int[np.ndarray, "N"],
    *,
    size_px: int,
    flip: Bool[np.ndarray, "N"],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> CropBatch:
    """Warped copies of faces `which`: the face fills a third to all of the crop, anywhere in it, tilted."""
    centre, side, angle = wide_noise(points[which], augmentation, generator)
    return _cut(images, points, which, frame_affine(centre, side, angle, size_px=size_px, flip=flip), size_px, flip)


def tight_noise(
    points: Float[np.ndarray, "N 68 2"],
    shape: Float[np.ndarray, "68 2"],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> Frames:
    """Tight frames as the refinement would make them from points that are somewhat wrong."""
    count = len(points)
    centre, side, angle = tight_frame(points, shape)
    centre = centre + generator.normal(0.0, augmentation.tight_shift, (count, 2)) * side[:, None]
    side = side * np.exp(generator.normal(0.0, augmentation.tight_scale, count))
    return centre, side, angle + generator.normal(0.0, augmentation.tight_angle_rad, count)


def wide_noise(
    points: Float[np.ndarray, "N 68 2"], augmentation: Augmentation, generator: np.random.Generator
) -> Frames:
    """Frames of any size and tilt that hold the whole face."""
    count = len(points)
    box, face = landmark_box(points), box_side(points)
    low, high = augmentation.wide_scale
    side = face * np.exp(generator.uniform(math.log(low), math.log(high), count))
    angle = generator.uniform(-augmentation.wide_angle_rad, augmentation.wide_angle_rad, count)
    slack = np.maximum(side - face, 0.1 * face) / 2.0
    centre = (box[:, :2] + box[:, 2:]) / 2.0 + generator.uniform(-1.0, 1.0, (count, 2)) * slack[:, None]
    return centre, side, angle


def points_in_frames(
    points: Float[np.ndarray, "N L 2"],
    affine: Float[np.ndarray, "N 3 3"],
    flip: Bool[np.ndarray, "N"],
    *,
    mirror: Int[np.ndarray, "L"] = FLIP_PERMUTATION,
) -> Float[np.ndarray, "N L 2"]:
    """Points in pixels of their crops, in their usual order also where the crop is mirrored."""
    inside = transform_points(np.linalg.inv(affine), points.astype(np.float64)).astype(np.float32)
    inside[flip] = inside[flip][:, mirror]
    return inside


def faceless_crops(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    points: Float[np.ndarray, "M 68 2"],
    which: Int[np.ndarray, "N"],
    *,
    size_px: int,
    generator: np.random.Generator,
) -> UInt8[np.ndarray, "N S S 3"]:
    """A quarter each: background beside the face, a face cut to tiles and shuffled, smooth noise, one colour."""
    box = landmark_box(points[which])
    face = box_side(points[which])
    count = len(which)
    kind = generator.integers(0, 4, count)
    side = face * generator.uniform(0.3, 0.7, count)
    direction = generator.uniform(0.0, 2.0 * np.pi, count)
    # Far enough along a direction, the square no longer touches the middle of the face.
    reach = 0.5 * face + 0.5 * side
    offset = np.stack([np.cos(direction), np.sin(direction)], 1)
    offset = offset / np.abs(offset).max(1, keepdims=True)
    shuffled = kind == 1
    centre = (box[:, :2] + box[:, 2:]) / 2.0 + np.where(shuffled[:, None], 0.0, offset * reach[:, None])
    side = np.where(shuffled, 1.2 * face, side)
    crops = cut_frames(images, which, frame_affine(centre, side, direction, size_px=size_px), size_px=size_px)
    for row in range(count):
        if shuffled[row]:
            crops[row] = _shuffle_tiles(crops[row], generator)
        elif kind[row] == 2:
            crops[row] = _smooth_noise(size_px, generator)
        elif kind[row] == 3:
            crops[row] = generator.integers(0, 256, 3)
    return crops


def jitter_colours(
    images: UInt8[Tensor, "N S S 3"], *, augmentation: Augmentation, generator: np.random.Generator
) -> Float[Tensor, "N 3 S S"]:
    """Crops in [0, 1] with other brightness, contrast, tint, some grey, some with a patch covered."""
    count, size = images.shape[:2]
    if augmentation.blur_share:
        images = _lose_detail(images, augmentation.blur_share, generator)
    pixels = images.permute(0, 3, 1, 2).float()
    grey = np.flatnonzero(generator.random(count) < augmentation.grey_share)
    if len(grey):
        pixels[grey] = pixels[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1).clone()
    contrast = np.exp(generator.normal(0.0, augmentation.contrast, (count, 1)))
    gain = contrast * np.exp(generator.normal(0.0, augmentation.colour, (count, 3)))
    shift = generator.normal(0.0, augmentation.brightness, (count, 1)) + 0.45 * (1.0 - gain)
    scale = torch.from_numpy((gain / 255.0).astype(np.float32))[..., None, None]
    pixels = (pixels * scale + torch.from_numpy(shift.astype(np.float32))[..., None, None]).clamp_(0.0, 1.0)
    if augmentation.noise_share:
        for row in np.flatnonzero(generator.random(count) < augmentation.noise_share).tolist():
            grain = generator.standard_normal(pixels.shape[1:], dtype=np.float32) * generator.uniform(0.01, 0.06)
            pixels[row] = (pixels[row] + torch.from_numpy(grain.astype(np.float32))).clamp_(0.0, 1.0)
    for row in np.flatnonzero(generator.random(count) < augmentation.cutout_share).tolist():
        height, width = (generator.uniform(0.1, 0.4, 2) * size).astype(int)
        top, left = generator.integers(0, size - height), generator.integers(0, size - width)
        colour = torch.from_numpy(generator.random(3).astype(np.float32))
        pixels[row, :, top : top + height, left : left + width] = colour[:, None, None]
    return pixels


def _cut(
    images: Sequence[np.ndarray],
    points: np.ndarray,
    which: np.ndarray,
    affine: np.ndarray,
    size_px: int,
    flip: np.ndarray,
) -> CropBatch:
    crops = cut_frames(images, which, affine, size_px=size_px)
    return CropBatch(crops, points_in_frames(points[which], affine, flip), affine)


def _lose_detail(
    images: UInt8[Tensor, "N S S 3"], share: float, generator: np.random.Generator
) -> UInt8[Tensor, "N S S 3"]:
    """Some of the crops as a small or unsharp photo would give them."""
    result = images.clone()
    size = images.shape[1]
    for row in np.flatnonzero(generator.random(len(images)) < share).tolist():
        small = max(8, int(size * generator.uniform(0.2, 0.8)))
        reduced = cv2.resize(images[row].numpy(), (small, small), interpolation=cv2.INTER_AREA)
        enlarged = cv2.resize(reduced, (size, size), interpolation=cv2.INTER_LINEAR)
        result[row] = torch.from_numpy(enlarged.astype(np.uint8))
    return result


def _shuffle_tiles(crop: UInt8[np.ndarray, "S S 3"], generator: np.random.Generator) -> UInt8[np.ndarray, "S S 3"]:
    tiles = 4
    size = len(crop) // tiles
    grid = crop.reshape(tiles, size, tiles, size, 3).transpose(0, 2, 1, 3, 4).reshape(tiles * tiles, size, size, 3)
    grid = grid[generator.permutation(tiles * tiles)].reshape(tiles, tiles, size, size, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(crop.shape)


def _smooth_noise(size_px: int, generator: np.random.Generator) -> UInt8[np.ndarray, "S S 3"]:
    cells = int(size_px ** generator.uniform(0.0, 1.0))
    coarse = generator.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
    return cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
