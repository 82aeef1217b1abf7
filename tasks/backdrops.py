"""Backgrounds from real photos: what surrounds their faces, the faces themselves covered.

Convention: pixels are uint8 RGB (H, W, 3); coordinates are pixels with centres at +0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from models.types import MIRRORED_LANDMARKS
from tasks.images import Pixels, reduce
from tasks.scenery import fill_polygon

Floats = NDArray[np.floating]

MOST_PHOTOS = 400
"""A source that has more gives so many. They are kept in memory, reduced to `SIDE_PX`."""

SIDE_PX = 320
FILLED_PX = 96
"""The hole is filled at this size: surroundings carry on, detail does not."""

CANDIDATES = 12
MOST_MISFIT = 0.045
"""Relative to the face; beyond, the heads are turned too differently."""

LEAST_COVERAGE = 0.8
"""A photo that covers less of the drawing would show its border."""


@dataclass(frozen=True)
class Surroundings:
    """A photo laid under a face so that its own would be there."""

    image: Pixels
    """(S, S, 3), its face covered."""
    skin: Floats
    """(3,) colour of the skin that was there, 0 to 255."""
    magnification: float
    """Pixels per pixel of the photo; above 1 the photo is blurred."""


@dataclass(frozen=True)
class _Portrait:
    faceless: Pixels
    """Face and forehead covered."""
    framed: Pixels
    """The face alone covered, up to the hair."""
    points: Floats
    skin: Floats


class Backdrops:
    """Photos without their faces, to cut backgrounds from."""

    def __init__(self, photos: Iterable[tuple[Pixels, Floats]]) -> None:
        """Photos with the points (68, 2) of their faces."""
        self._photos = [_prepare(image, points) for image, points in photos]

    def __len__(self) -> int:
        return len(self._photos)

    def draw_around(self, stream: Generator, landmarks: Floats, size_px: int) -> Surroundings | None:
        """A photo whose face is turned like the one with these landmarks, put where that one is; None if none fits.

        Of some random photos and their mirror images, the one whose points fit best.
        """
        best: tuple[float, Floats, _Portrait] | None = None
        for number in stream.integers(len(self._photos), size=CANDIDATES):
            photo = self._photos[number]
            mirrored = photo.points * [-1.0, 1.0] + [photo.framed.shape[1], 0.0]
            flip = np.array([[-1.0, 0.0, photo.framed.shape[1]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
            for points, before in ((photo.points, np.eye(3)), (mirrored[list(MIRRORED_LANDMARKS)], flip)):
                affine, misfit = _similarity(points, landmarks)
                if best is None or misfit < best[0]:
                    best = misfit, affine @ before, photo
        if best is None or best[0] > MOST_MISFIT:
            return None
        _, affine, photo = best
        # OpenCV counts pixel centres as whole numbers.
        shift = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
        matrix = (np.linalg.inv(shift) @ np.vstack([affine, [0.0, 0.0, 1.0]]) @ shift)[:2]
        everywhere = np.full(photo.framed.shape[:2], 255, np.uint8)
        inside = cv2.warpAffine(everywhere, matrix, (size_px, size_px))
        if inside.mean() < LEAST_COVERAGE * 255.0:
            return None
        image = cv2.warpAffine(photo.framed, matrix, (size_px, size_px), borderMode=cv2.BORDER_REPLICATE)
        return Surroundings(np.asarray(image, np.uint8), photo.skin, float(np.sqrt(abs(np.linalg.det(affine[:, :2])))))

    def draw(self, stream: Generator, size_px: int) -> Pixels:
        """A random square of a random photo, perhaps mirrored, out of focus, or in other colours.

        Raises: ValueError if there are no photos.
        """
        if not self._photos:
            raise ValueError("no photo to cut a background from, expected at least one")
        photo = self._photos[stream.integers(len(self._photos))].faceless
        height, width = photo.shape[:2]
        side = stream.uniform(0.5, 1.0) * min(height, width)
        corner = stream.uniform(0.0, 1.0, 2) * (np.array([width, height]) - side)
        scale = size_px / side
        affine = np.array([[scale, 0.0, -corner[0] * scale], [0.0, scale, -corner[1] * scale]])
        if stream.random() < 0.5:
            affine[0] = [-scale, 0.0, size_px + corner[0] * scale]
        image = cv2.warpAffine(photo, affine, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        if stream.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), stream.uniform(0.002, 0.03) * size_px)
        gain = np.exp(stream.normal(0.0, 0.1, 3) + stream.normal(0.0, 0.25))
        return np.asarray((image * gain).clip(0.0, 255.0), np.uint8)


def _prepare(image: Pixels, points: Floats) -> _Portrait:
    small = reduce(image, max_side_px=SIDE_PX)
    points = points * (np.array(small.shape[1::-1]) / np.array(image.shape[1::-1]))
    up = points[27] - points[8]
    inner = np.zeros(small.shape[:2], np.uint8)
    fill_polygon(inner, points[[2, 4, 12, 14, 45, 36]], 255)
    skin = np.median(small[inner > 0], axis=0) if inner.any() else np.full(3, 128.0)
    return _Portrait(
        faceless=_covered(small, np.concatenate([points[:17], (points[17:27] + 0.45 * up)[::-1]]), 1.2),
        framed=_covered(small, np.concatenate([points[:17], (points[17:27] + 0.1 * up)[::-1]]), 1.04),
        points=points.astype(np.float64),
        skin=np.asarray(skin, np.float64),
    )


def _covered(image: Pixels, outline: Floats, larger: float) -> Pixels:
    """The photo with the inside of an outline replaced by what lies around it."""
    middle = outline.mean(0)
    hole = np.zeros(image.shape[:2], np.uint8)
    fill_polygon(hole, middle + larger * (outline - middle), 255)
    scale = FILLED_PX / max(image.shape[:2])
    size = (max(8, round(image.shape[1] * scale)), max(8, round(image.shape[0] * scale)))
    coarse_hole = (cv2.resize(hole, size, interpolation=cv2.INTER_LINEAR) > 0).astype(np.uint8)
    coarse = cv2.inpaint(cv2.resize(image, size, interpolation=cv2.INTER_AREA), coarse_hole, 5, cv2.INPAINT_TELEA)
    filled = cv2.resize(coarse, image.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
    weight = cv2.GaussianBlur(hole, (0, 0), 0.006 * max(image.shape[:2]))[..., None].astype(np.float32) / 255.0
    return np.asarray((image + weight * (filled - image)).clip(0.0, 255.0), np.uint8)


def _similarity(points: Floats, target: Floats) -> tuple[Floats, float]:
    """Affine (2, 3) of the turn, scale and shift that bring points nearest to others, and how far off they stay.

    The misfit is the root mean square distance relative to the larger side of the target's box.
    """
    middle, aim = points.mean(0), target.mean(0)
    first, second = points - middle, target - aim
    norm = max(float((first**2).sum()), 1e-6)
    cosine = float((first * second).sum()) / norm
    sine = float((first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).sum()) / norm
    turn = np.array([[cosine, -sine], [sine, cosine]])
    misfit = np.sqrt(((first @ turn.T - second) ** 2).sum(1).mean()) / max(float(np.ptp(target, axis=0).max()), 1e-6)
    return np.column_stack([turn, aim - turn @ middle]), float(misfit)
