"""Drawn faces with known points."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from models.landmarks.learning import LandmarkSamples


def face_shape() -> np.ndarray:
    """A frontal face of 68 points, larger side 1, around zero."""
    points = np.zeros((68, 2))
    turn = np.linspace(np.pi, 0.0, 17)
    points[:17] = np.stack([0.45 * np.cos(turn), -0.1 + 0.6 * np.sin(turn)], 1)
    for start, x in ((17, -0.35), (22, 0.1)):
        points[start : start + 5] = np.stack([x + np.linspace(0, 0.25, 5), np.full(5, -0.35)], 1)
    points[27:31] = np.stack([np.zeros(4), np.linspace(-0.22, 0.05, 4)], 1)
    points[31:36] = np.stack([np.linspace(-0.08, 0.08, 5), np.full(5, 0.09)], 1)
    for start, x in ((36, -0.2), (42, 0.2)):
        angle = np.array([np.pi, 1.3 * np.pi, 1.7 * np.pi, 0.0, 0.3 * np.pi, 0.7 * np.pi])
        points[start : start + 6] = np.stack([x + 0.08 * np.cos(angle), -0.22 + 0.04 * np.sin(angle)], 1)
    for start, count, radius in ((48, 12, 0.16), (60, 8, 0.11)):
        angle = np.pi + np.arange(count) * 2 * np.pi / count
        points[start : start + count] = np.stack([radius * np.cos(angle), 0.27 + 0.45 * radius * np.sin(angle)], 1)
    return points


def draw_face(size_px: int, centre: np.ndarray, side: float, angle: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo of a drawn face, tilted by `angle`, and its points."""
    random = np.random.default_rng(seed)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (face_shape() * side) @ turn.T + centre
    image = np.full((size_px, size_px, 3), random.integers(0, 100), np.uint8)

    def fill(indices: list[int], colour: tuple[int, int, int]) -> None:
        cv2.fillPoly(image, [np.rint((points[indices] - 0.5) * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)

    fill([*range(17), *range(26, 16, -1)], (210, 160, 140))
    fill(list(range(36, 42)), (250, 250, 250))
    fill(list(range(42, 48)), (250, 250, 250))
    fill(list(range(48, 60)), (160, 40, 50))
    fill([27, 31, 35], (180, 120, 100))
    for start in (17, 22):
        line = np.rint((points[start : start + 5] - 0.5) * 16).astype(np.int32)
        cv2.polylines(image, [line], False, (40, 20, 10), 2, cv2.LINE_AA, 4)
    return image, points


@pytest.fixture(scope="session")
def drawn_faces() -> LandmarkSamples:
    """Twenty-four drawn faces of different places, sizes and tilts in photos of 96 pixels."""
    from models.landmarks.framing import mean_face_shape

    random = np.random.default_rng(0)
    drawn = [
        draw_face(96, 48 + random.uniform(-8, 8, 2), random.uniform(45, 65), random.uniform(-0.3, 0.3), seed)
        for seed in range(24)
    ]
    points = np.array([face for _, face in drawn], np.float32)
    return LandmarkSamples([image for image, _ in drawn], points, mean_face_shape(points))
