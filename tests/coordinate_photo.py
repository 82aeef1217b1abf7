"""Photos whose pixels say where they lie, and a stand-in for the landmark network that reads that and knows the faces.

So the way from box to frame to points and back is tested without training anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.landmarks.finder import OFFSET_UNIT, REFERENCE_SIDE, cell_grid
from models.landmarks.framing import FLIP_PERMUTATION, FRAME_SCALE
from models.landmarks.guesses import CropReading

ANNOTATION_SHIFT = np.array([1.0, -2.0])
"""By how much annotated points lie beside those of the model, in pixels of the photo."""

OUTLINE_SHIFT = np.array([3.0, 1.0])
"""The same for the jaw on the visible outline."""

SURE_LOG_SIGMA = 0.0


def coordinate_photo(height: int = 192, width: int = 250) -> np.ndarray:
    """Red is x, green is y, blue is full: at most 256 pixels a side."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([x, y, np.full_like(x, 255)], 2).astype(np.uint8)


def circle_shape() -> np.ndarray:
    """A symmetric mean shape (68, 2) of side 1 around zero, in iBUG's order as far as mirroring knows it."""
    random = np.random.default_rng(3)
    points = random.uniform(-0.4, 0.4, (68, 2))
    points = (points + points[FLIP_PERMUTATION] * [-1.0, 1.0]) / 2.0
    points[8], points[27] = [0.0, 0.5], [0.0, -0.5]
    return points / np.ptp(points, axis=0).max()


def face_points(centre: Sequence[float], side: float, angle: float = 0.0) -> np.ndarray:
    """Points (68, 2) of a face whose tight frame has about that centre, side and angle."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (circle_shape() * side / FRAME_SCALE) @ turn.T + centre


class CoordinateReader:
    """Says for each crop where the nearest face's points lie in it; none if the crop's middle is far from all."""

    def __init__(self, faces: Sequence[np.ndarray], *, dense_points: int = 0) -> None:
        self.faces = faces
        self.dense_points = dense_points
        self.batches: list[int] = []

    def __call__(self, crops: np.ndarray) -> CropReading:
        """As the landmark network."""
        self.batches.append(len(crops))
        rows = [self._read(crop) for crop in crops]
        return CropReading(*(np.stack(values).astype(np.float32) for values in zip(*rows, strict=True)))

    def _read(self, crop: np.ndarray) -> tuple[np.ndarray, ...]:
        size = len(crop)
        inside = crop[..., 2] == 255
        y, x = np.nonzero(inside)
        from_crop = np.stack([x + 0.5, y + 0.5, np.ones(len(x))], 1)
        # The affine of the crop, from what its pixels say.
        solution, *_ = np.linalg.lstsq(from_crop, crop[inside][:, :2] + 0.5, rcond=None)
        linear, shift = solution[:2].T, solution[2]
        middle = linear @ [size / 2.0, size / 2.0] + shift
        distances = [np.linalg.norm(face.mean(0) - middle) / np.ptp(face, axis=0).max() for face in self.faces]
        nearest = int(np.argmin(distances)) if distances else None
        face = face_points((size, size), size) if nearest is None else self.faces[nearest]
        points = (face - shift) @ np.linalg.inv(linear).T
        annotated = (face + ANNOTATION_SHIFT - shift) @ np.linalg.inv(linear).T
        outline = (face[:17] + OUTLINE_SHIFT - shift) @ np.linalg.inv(linear).T
        if np.linalg.det(linear) < 0.0:
            points, annotated, outline = points[FLIP_PERMUTATION], annotated[FLIP_PERMUTATION], outline[::-1]
        presence = 4.0 if nearest is not None and distances[nearest] < 0.6 else -4.0
        sigma = np.full(68, SURE_LOG_SIGMA)
        dense = points[: self.dense_points], sigma[: self.dense_points]
        return points, annotated, sigma, np.array(presence), *dense, outline


class BoxFinder:
    """Stands in for the face finder: cells that say that boxes (centre x, y, side, angle, logit) are there."""

    def __init__(self, *boxes: Sequence[float]) -> None:
        self.boxes = boxes
        self.seen = np.zeros((0, 3, 0, 0))

    def __call__(self, pixels: np.ndarray) -> tuple[Any, Any, Any, Any]:
        """As the network; coordinates of photos that are not reduced."""
        self.seen = pixels.copy()
        centres, scales = cell_grid(*pixels.shape[2:])
        count = len(pixels)
        score, log_side = np.full((count, len(scales)), -9.0), np.zeros((count, len(scales)))
        offset, turn = np.zeros((count, len(scales), 2)), np.ones((count, len(scales), 2))
        for x, y, side, angle, logit in self.boxes:
            wrong_step = 1e3 * np.abs(np.log(REFERENCE_SIDE * scales / side))
            # Two boxes never share a cell.
            taken = 1e9 * (score[0] > -9.0)
            cell = (np.linalg.norm(centres - [x, y], axis=1) + wrong_step + taken).argmin()
            score[:, cell], log_side[:, cell] = logit, np.log(side / (REFERENCE_SIDE * scales[cell]))
            offset[:, cell] = (np.array([x, y]) - centres[cell]) / (OFFSET_UNIT * scales[cell])
            turn[:, cell] = np.cos(angle), np.sin(angle)
        return score, offset, log_side, turn
