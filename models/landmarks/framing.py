"""Square frames around faces: where a crop lies in its photo, and the pixels in it.

Convention: an affine (3, 3) maps crop pixels to photo pixels, pixel centres at +0.5 in both. Angles in radians,
clockwise in the image: a frame of angle a shows a head that is tilted by a upright. N counts frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from models.types import MIRRORED_LANDMARKS

FRAME_SCALE = 1.25
"""Side of the tight frame relative to the larger side of the upright landmarks' box."""

FLIP_PERMUTATION = np.array(MIRRORED_LANDMARKS)
"""Index of every point's mirror image; its own inverse."""


def mirror_points(points: Float[np.ndarray, "*N 68 2"], width: float) -> Float[np.ndarray, "*N 68 2"]:
    """Points of the photo mirrored left to right, in iBUG order again."""
    mirrored = points[..., FLIP_PERMUTATION, :].copy()
    mirrored[..., 0] = width - mirrored[..., 0]
    return mirrored


def landmark_box(points: Float[np.ndarray, "N 68 2"]) -> Float[np.ndarray, "N 4"]:
    """x0, y0, x1, y1 around the points of each face."""
    return np.concatenate([points.min(1), points.max(1)], 1)


def box_side(points: Float[np.ndarray, "N 68 2"]) -> Float[np.ndarray, "N"]:
    """Larger side of the box around the points of each face."""
    return np.ptp(points, axis=1).max(1)


def mean_face_shape(points: Float[np.ndarray, "N 68 2"]) -> Float[np.ndarray, "68 2"]:
    """Symmetric mean shape of faces: centred on its box, larger side 1."""
    box = landmark_box(points)
    centred = points - ((box[:, :2] + box[:, 2:]) / 2.0)[:, None]
    shape = (centred / box_side(points)[:, None, None]).mean(0)
    shape = (shape + mirror_points(shape, 0.0)) / 2.0
    shape = shape - (shape.min(0) + shape.max(0)) / 2.0
    return shape / np.ptp(shape, axis=0).max()


def upright_angle(points: Float[np.ndarray, "N 68 2"], shape: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "N"]:
    """Angle of the similarity that takes the mean shape to each face in the least-squares sense."""
    centred = points - points.mean(1, keepdims=True)
    reference = shape - shape.mean(0)
    sine = (reference[:, 0] * centred[..., 1] - reference[:, 1] * centred[..., 0]).sum(1)
    cosine = (reference * centred).sum((1, 2))
    return np.arctan2(sine, cosine)


def tight_frame(
    points: Float[np.ndarray, "N 68 2"], shape: Float[np.ndarray, "68 2"]
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Centre, side and angle of the upright square around the points of each face."""
    angle = upright_angle(points, shape)
    middle = points.mean(1)
    rotation = _rotation(angle)
    upright = np.einsum("nji,nlj->nli", rotation, points - middle[:, None])
    low, high = upright.min(1), upright.max(1)
    centre = middle + np.einsum("nij,nj->ni", rotation, (low + high) / 2.0)
    return centre, FRAME_SCALE * (high - low).max(1), angle


def frame_affine(
    centre: Float[np.ndarray, "N 2"],
    side: Float[np.ndarray, "N"],
    angle: Float[np.ndarray, "N"],
    *,
    size_px: int,
    flip: Bool[np.ndarray, "N"] | None = None,
) -> Float[np.ndarray, "N 3 3"]:
    """Affines of square frames; a flipped crop is read from right to left."""
    linear = _rotation(angle) * (side / size_px)[:, None, None]
    if flip is not None:
        linear[flip, :, 0] *= -1.0
    affine = np.zeros((len(side), 3, 3))
    affine[:, :2, :2] = linear
    affine[:, :2, 2] = centre - linear.sum(2) * (size_px / 2.0)
    affine[:, 2, 2] = 1.0
    return affine


def transform_points(
    affine: Float[np.ndarray, "N 3 3"], points: Float[np.ndarray, "N L 2"]
) -> Float[np.ndarray, "N L 2"]:
    """Crop pixels to photo pixels; with the inverse affine the other way."""
    return points @ affine[:, :2, :2].transpose(0, 2, 1) + affine[:, None, :2, 2]


def mirror_frames(affine: Float[np.ndarray, "N 3 3"], *, size_px: int) -> Float[np.ndarray, "N 3 3"]:
    """The same frames read from right to left."""
    return affine @ np.array([[-1.0, 0.0, size_px], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def frame_distance(
    first: Float[np.ndarray, "N 3 3"], second: Float[np.ndarray, "N 3 3"], *, size_px: int
) -> Float[np.ndarray, "N"]:
    """Longest way of a corner from the first frame to the second, in sides of the second."""
    corners = np.array([[0.0, size_px, 0.0, size_px], [0.0, 0.0, size_px, size_px], [1.0, 1.0, 1.0, 1.0]])
    ways = (first - second)[:, :2] @ corners
    side = size_px * np.hypot(second[:, 0, 0], second[:, 1, 0])
    return np.hypot(ways[:, 0], ways[:, 1]).max(1) / side


def cut_frames(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    which: Int[np.ndarray, "N"],
    affine: Float[np.ndarray, "N 3 3"],
    *,
    size_px: int,
) -> UInt8[np.ndarray, "N S S 3"]:
    """Pixels of frames in the photos `images[which]`, black outside; reduced photos are averaged first."""
    crops = np.empty((len(which), size_px, size_px, 3), np.uint8)
    scales = np.sqrt(np.abs(np.linalg.det(affine[:, :2, :2])))
    # OpenCV puts pixel centres at whole numbers.
    matrices = affine[:, :2].copy()
    matrices[:, :, 2] += 0.5 * affine[:, :2, :2].sum(2) - 0.5
    reduced: dict[tuple[int, int], np.ndarray] = {}
    for row, (index, scale) in enumerate(zip(which.tolist(), scales.tolist(), strict=True)):
        image, matrix = images[index], matrices[row]
        if scale >= 2.0:
            factor = max(1, min(int(scale), *image.shape[:2]))
            key = (index, factor)
            if key not in reduced:
                reduced[key] = _reduce(image, factor)
            image, matrix = reduced[key], _reduced_matrix(matrix, factor)
        cv2.warpAffine(
            image,
            matrix,
            (size_px, size_px),
            dst=crops[row],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )
    return crops


def _rotation(angle: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N 2 2"]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cosine, -sine], 1), np.stack([sine, cosine], 1)], 1)


def _reduce(image: np.ndarray, factor: int) -> np.ndarray:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    # Whole blocks only, so that the scale is exactly the factor.
    return cv2.resize(image[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)


def _reduced_matrix(matrix: np.ndarray, factor: int) -> np.ndarray:
    scaled = matrix / factor
    scaled[:, 2] += 0.5 / factor - 0.5
    return scaled
