"""A curved height field without symmetries, about as large as a face."""

from __future__ import annotations

import numpy as np
import trimesh


def bumpy_patch(side: int = 24, *, size_mm: float = 120.0, seed: int = 0) -> trimesh.Trimesh:
    """A mesh of side² vertices with a nose-like bump."""
    generator = np.random.default_rng(seed)
    place = np.linspace(-0.5, 0.5, side)
    x, y = (axis.ravel() * size_mm for axis in np.meshgrid(place, place))
    z = (
        40 * np.exp(-((x - 8) ** 2 + (y + 5) ** 2) / 900)
        - (x**2 + 1.4 * y**2) / 90
        + 4 * np.sin(x / 11) * np.cos(y / 17)
    )
    x, y = x + generator.normal(0, 0.8, x.shape), y + generator.normal(0, 0.8, y.shape)
    corner = np.arange(side * side).reshape(side, side)
    a, b, c, d = corner[:-1, :-1].ravel(), corner[:-1, 1:].ravel(), corner[1:, :-1].ravel(), corner[1:, 1:].ravel()
    triangles = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
    return trimesh.Trimesh(np.stack([x, y, z], 1), triangles, process=False)
