"""A head for drawing tests."""

from __future__ import annotations

import numpy as np

from tasks.scenery import HeadOutline


def head_outline(*, size_px: int = 200, roll: float = 0.0) -> HeadOutline:
    """A round head in the middle of a photo, its face half as wide as the photo, under a cap of hair."""
    middle, width = size_px / 2.0, size_px / 2.0
    jaw = np.linspace(0.0, np.pi, 17)
    outline = np.stack([-0.5 * np.cos(jaw), 0.6 * np.sin(jaw)], 1)
    brows = np.stack([np.r_[np.linspace(-0.4, -0.1, 5), np.linspace(0.1, 0.4, 5)], np.full(10, -0.2)], 1)
    nose = np.stack(
        [np.r_[np.zeros(4), np.linspace(-0.1, 0.1, 5)], np.r_[np.linspace(-0.1, 0.1, 4), np.full(5, 0.14)]], 1
    )
    ring = np.linspace(np.pi, -np.pi, 7)[:6]
    eye = np.stack([0.1 * np.cos(ring), -0.04 * np.sin(ring)], 1)
    eyes = np.concatenate([eye + [-0.22, -0.08], eye + [0.22, -0.08]])
    lips = np.linspace(np.pi, -np.pi, 21)[:20]
    mouth = np.stack([0.18 * np.cos(lips), 0.33 - 0.06 * np.sin(lips)], 1)
    landmarks = np.concatenate([outline, brows, nose, eyes, mouth])
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    angles = np.linspace(np.pi, 2.0 * np.pi, 13)
    rim = np.stack([0.6 * np.cos(angles), -0.35 + 0.5 * np.sin(angles)], 1)
    hair = np.stack([np.tile([[0.0, -0.35]], (12, 1)), rim[:-1], rim[1:]], 1)
    return HeadOutline(
        hair=middle + width * hair @ turn,
        hair_facing=np.ones(12, bool),
        centre=middle + width * np.array([0.0, -0.2]) @ turn,
        neck=middle + width * np.array([0.0, 0.4]) @ turn,
        landmarks=middle + width * landmarks @ turn,
        width_px=width,
        roll=roll,
        skin=np.array([180.0, 140.0, 120.0]),
    )
