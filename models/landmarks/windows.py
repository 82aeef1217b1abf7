"""Where to look for faces without a trained finder: overlapping windows, and OpenCV's bundled face cascade."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

WINDOW_SCALES = (0.7, 0.5)
"""Sides of the search windows relative to the shorter side of the photo."""

CASCADE_MARGIN = 1.3
"""A box of OpenCV's cascade ends at chin and brows; the network wants some room around."""


def search_windows(image: UInt8[np.ndarray, "H W 3"]) -> list[tuple[float, float, float]]:
    """Squares (centre x, centre y, side) in which to look for a face that the whole photo did not show."""
    return grid_windows(image) + cascade_windows(image)


def grid_windows(image: UInt8[np.ndarray, "H W 3"]) -> list[tuple[float, float, float]]:
    """The same without the boxes of OpenCV: overlapping squares in three sizes."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    windows = []
    for scale in (1.0, *WINDOW_SCALES):
        side = scale * shorter
        for y in _steps(float(height), side):
            windows += [(x, y, side) for x in _steps(float(width), side)]
    return windows


def cascade_windows(image: UInt8[np.ndarray, "H W 3"]) -> list[tuple[float, float, float]]:
    """Squares around the frontal faces that OpenCV's bundled Haar cascade sees."""
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"))
    grey = cv2.equalizeHist(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    boxes = cascade.detectMultiScale(grey, scaleFactor=1.15, minNeighbors=3, minSize=(32, 32))
    return [(x + w / 2.0, y + h / 2.0, CASCADE_MARGIN * max(w, h)) for x, y, w, h in boxes]


def _steps(extent: float, side: float) -> list[float]:
    """Centres of windows that cover the extent with half overlap."""
    count = 1 + int(np.ceil(max(0.0, extent - side) / (0.5 * side)))
    return np.linspace(side / 2.0, extent - side / 2.0, count).tolist() if count > 1 else [extent / 2.0]
