"""What painting knows of a face model: where its parts and eyeballs lie, and noise to paint with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from models.face.morphable import MorphableModel
from models.types import PART_NAMES

Floats = NDArray[np.floating]

CHANNELS = (*PART_NAMES, "ball", "teeth")
"""What `FaceLayout.weights` says of each vertex."""

NOISE_PX, NOISE_PER_MM = 512, 4.0
GRAIN, SPOTS, PATCHES, REGIONS = range(4)
"""Noise of a quarter of a millimetre, three quarters, 2.5 and 10 mm."""

BALL_VERTICES, BALL_ROUNDNESS = 40, 0.06
BALL_RADIUS_MM = (9.0, 16.0)
"""A connected piece of the eyes with so many vertices, of such a radius, whose distances from the centre of the sphere
through them vary by no more than this share, and which is closed in front, is an eyeball, or the part of one that
shows; others are sockets."""

ICT_TEETH = slice(17039, 21451)
"""Vertices of the teeth in ICT-FaceKit's full region. Source: its README."""


class FaceLayout:
    """What painting knows of a face model, worked out once."""

    def __init__(self, model: MorphableModel) -> None:
        self.points: Floats = model.landmark_mean.numpy().astype(np.float64)
        self.middle = float((self.points[0, 0] + self.points[16, 0]) / 2.0)
        self.half_width = float(abs(self.points[16, 0] - self.points[0, 0]) / 2.0)
        self.brow_height = float(self.points[17:27, 1].mean())
        parts = model.parts.numpy()
        weights = np.zeros((len(parts), len(CHANNELS)), np.float32)
        weights[np.arange(len(parts)), parts] = 1.0
        self.balls: Floats = _find_balls(model, parts == PART_NAMES.index("eyes"), weights)
        if model.name == "ict" and len(parts) > ICT_TEETH.stop:
            weights[ICT_TEETH, CHANNELS.index("teeth")] = 1.0
        self.weights = weights
        """(V, C) of `CHANNELS`."""
        self.noise = _noise_bank()


def _find_balls(model: MorphableModel, eyes: NDArray[np.bool_], weights: Floats) -> Floats:
    """Centre and radius (K, 4) of the eyeballs among the vertices of the eyes; notes their vertices in `weights`."""
    if not eyes.any():
        return np.zeros((0, 4))
    triangles, mean = model.triangles.numpy(), model.mean.numpy()
    inner = triangles[eyes[triangles].all(1)]
    ends = np.concatenate([inner[:, [0, 1]], inner[:, [1, 2]]])
    count = len(eyes)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    found: list[tuple[float, ...]] = []
    for label in np.unique(labels[eyes]):
        rows = np.flatnonzero((labels == label) & eyes)
        if len(rows) < BALL_VERTICES:
            continue
        centre = _sphere_centre(mean[rows].astype(np.float64))
        distance = np.linalg.norm(mean[rows] - centre, axis=1)
        if distance.std() > BALL_ROUNDNESS * distance.mean():
            continue
        radius = float(distance.mean())
        if not BALL_RADIUS_MM[0] <= radius <= BALL_RADIUS_MM[1] or mean[rows, 2].max() < centre[2] + 0.9 * radius:
            continue
        weights[rows, CHANNELS.index("ball")] = 1.0
        # Eyes within eyes, as a cornea before an iris, have one centre: that of the larger piece.
        found.append((len(rows), *centre, radius))
    chosen: list[tuple[float, ...]] = []
    for ball in sorted(found, reverse=True):
        if all(np.linalg.norm(np.subtract(ball[1:4], other[1:4])) > BALL_RADIUS_MM[0] for other in chosen):
            chosen.append(ball)
    return np.array(sorted(ball[1:] for ball in chosen)).reshape(-1, 4)


def _sphere_centre(points: Floats) -> Floats:
    """Centre of the sphere nearest to points (N, 3): |p|² = 2 c·p + k is linear in c and k."""
    origin = points.mean(0)
    around = points - origin
    system = np.column_stack([2.0 * around, np.ones(len(points))])
    solution, *_ = np.linalg.lstsq(system, (around**2).sum(1), rcond=None)
    return np.asarray(origin + solution[:3])


def _noise_bank() -> list[Floats]:
    """Periodic noise of unit variance at the scales of `GRAIN` to `REGIONS`, the same every time."""
    stream = np.random.default_rng(0)
    frequency = np.fft.fftfreq(NOISE_PX)
    square = frequency[:, None] ** 2 + frequency[None, :] ** 2
    bank = []
    for sigma_px in (1.0, 3.0, 10.0, 40.0):
        spectrum = np.fft.fft2(stream.standard_normal((NOISE_PX, NOISE_PX)))
        smooth = np.fft.ifft2(spectrum * np.exp(-2.0 * (np.pi * sigma_px) ** 2 * square)).real
        bank.append(((smooth - smooth.mean()) / smooth.std()).astype(np.float32))
    return bank
