"""A face of 68 points that can speak: small enough for tests, with lips that part and meet."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import Delaunay

from models.face.morphable import MorphableModel

NAMES = ("jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "browInnerUpLeft", "browInnerUpRight", "cheekPuff")
JAW_MM = 20.0
LOWER_LIP = (*range(55, 60), 65, 66, 67)


def speaking_face() -> MorphableModel:
    """`jawOpen` parts the inner lips by 20 mm, `mouthClose` joins them by 16, `mouthFunnel` parts them by 5."""
    points = _layout()
    expressions = np.zeros((len(NAMES), 68, 3))
    lower = [*range(4, 13), *LOWER_LIP]
    expressions[0, lower, 1] = -JAW_MM
    expressions[1, LOWER_LIP, 1] = 0.8 * JAW_MM
    expressions[2, [61, 62, 63], 1] = 2.0
    expressions[2, [65, 66, 67], 1] = -3.0
    expressions[3, 48:68, 0] = -0.4 * points[48:68, 0]
    expressions[4, 22:27, 1] = 4.0
    expressions[5, 17:22, 1] = 4.0
    expressions[6, [3, 13], 2] = 5.0
    triangles = Delaunay(points[:, :2] + 0.01 * np.random.default_rng(0).standard_normal((68, 2))).simplices
    corners = points[triangles]
    turned = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] < 0
    triangles[turned] = triangles[turned][:, ::-1]
    parts = torch.zeros(68, dtype=torch.long)
    parts[48:] = 1
    parts[17:27] = 2
    identity = np.zeros((2, 68, 3))
    identity[0, :, 0], identity[1, :, 1] = 0.05 * points[:, 0], 0.05 * points[:, 1]
    tones = np.full((68, 3), 0.6)
    tones[48:] = (0.8, 0.3, 0.3)
    return MorphableModel(
        name="speaking",
        licence="CC0-1.0",
        mean=torch.from_numpy(points),
        identity_basis=torch.from_numpy(identity),
        expression_basis=torch.from_numpy(expressions),
        expression_names=NAMES,
        albedo_mean=torch.from_numpy(tones),
        albedo_basis=torch.full((1, 68, 3), 0.05),
        triangles=torch.from_numpy(triangles.astype(np.int64)),
        landmark_vertices=torch.arange(68),
        uv=torch.zeros(68, 2),
        parts=parts,
    )


def _layout() -> np.ndarray:
    def arc(count: int, start: float, end: float, width: float, height: float, x: float, y: float) -> np.ndarray:
        turns = np.radians(np.linspace(start, end, count))
        return np.stack([x + width * np.cos(turns), y + height * np.sin(turns)], 1)

    eye = lambda x: arc(7, 180, -180, 13, 6, x, 30)[:6]  # noqa: E731
    front = np.concatenate(
        [
            arc(17, 180, 360, 70, 80, 0, 10),
            arc(5, 150, 30, 20, 8, -32, 42),
            arc(5, 150, 30, 20, 8, 32, 42),
            np.stack([np.zeros(4), np.linspace(28, 0, 4)], 1),
            np.stack([np.linspace(-10, 10, 5), np.full(5, -8.0)], 1),
            eye(-32),
            eye(32),
            arc(13, 180, -180, 26, 11, 0, -35)[:12],
            [[-20, -35], [-8, -34.9], [0, -34.9], [8, -34.9], [20, -35], [8, -35.1], [0, -35.1], [-8, -35.1]],
        ]
    )
    depth = 40.0 - 0.008 * (front**2).sum(1)
    depth[27:31] += np.linspace(4, 18, 4)
    return np.concatenate([front, depth[:, None]], 1)
