"""Scans made ready for registration: seams closed, what is far from the face left out, long triangles split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.face.registration import RegistrationError

REACH = 5.0
"""Times the landmarks' RMS distance from their middle: some 27 cm, so that a head stays and the body goes."""

LONGEST_SIDE = 0.1
"""Of a triangle, in the same measure: some 5 mm. The nearest surface is looked for around the nearest vertices."""

MAX_TRIANGLES = 2_000_000


@dataclass(frozen=True)
class Surface:
    """A clean triangle mesh."""

    vertices: NDArray[np.float64]
    triangles: NDArray[np.int64]


def prepare_surface(
    vertices: NDArray[np.float64], triangles: NDArray[np.int64], landmarks: NDArray[np.float64]
) -> Surface:
    """The part of a mesh around its landmarks (68, 3), vertices of equal place merged, long sides split.

    Convention: any unit; missing landmarks are not a number.
    Raises: RegistrationError if there is no surface near the landmarks, or too much of it.
    """
    known = landmarks[np.isfinite(landmarks).all(1)]
    if not len(known):
        raise RegistrationError("landmarks_too_few", "no landmarks at all")
    middle = known.mean(0)
    measure = float(np.sqrt(np.square(known - middle).sum(1).mean()))
    # Files that store a vertex once per seam would else look as if the scan ended there.
    places, index = np.unique(vertices, axis=0, return_inverse=True)
    triangles = index.reshape(-1)[triangles]
    triangles = triangles[np.diff(np.sort(triangles, axis=1), axis=1).all(1)]
    near = np.linalg.norm(places - middle, axis=1) <= REACH * measure
    triangles = triangles[near[triangles].any(1)]
    if not len(triangles):
        raise RegistrationError("landmarks_disagree", "no surface near the landmarks; are they of this mesh and unit?")
    corners = places[triangles]
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    longest = LONGEST_SIDE * measure
    # Halving a triangle's sides makes four of it; what is longest says how often.
    expected = float((4.0 ** np.ceil(np.log2(np.maximum(sides.max(1) / longest, 1.0)))).sum())
    if expected > MAX_TRIANGLES:
        raise RegistrationError(
            "mesh_too_large",
            f"{len(triangles)} triangles around the face, sides up to {sides.max():.3g}, expected at most "
            f"{MAX_TRIANGLES} once split to {longest:.3g}",
        )
    return Surface(*_split(places, triangles, longest))


def _split(
    vertices: NDArray[np.float64], triangles: NDArray[np.int64], longest: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Halve sides until none is longer. Both triangles at a side see its middle, so that no gap opens."""
    while True:
        count = len(vertices)
        ends = np.sort(np.stack([triangles, np.roll(triangles, -1, 1)], axis=2).reshape(-1, 2), axis=1)
        keys, side = np.unique(ends[:, 0] * count + ends[:, 1], return_inverse=True)
        first, second = vertices[keys // count], vertices[keys % count]
        long = np.linalg.norm(first - second, axis=1) > longest
        if not long.any():
            return vertices, triangles
        middle = np.where(long, count + np.cumsum(long) - 1, -1)[side].reshape(-1, 3)
        vertices = np.concatenate([vertices, ((first + second) / 2)[long]])
        triangles = np.concatenate([_pieces(triangles, middle, shape) for shape in range(8)])


_PIECES: dict[int, tuple[tuple[int, int, int], ...]] = {
    0: ((0, 1, 2),),
    1: ((0, 3, 2), (3, 1, 2)),
    3: ((3, 1, 4), (0, 3, 4), (0, 4, 2)),
    7: ((0, 3, 5), (3, 1, 4), (5, 4, 2), (3, 4, 5)),
}
"""Triangles of corners 0 to 2 and the middles 3 to 5 of the sides after each, by which sides (1, 2, 4) are split."""

_TURNS = {0: (0, 0), 1: (1, 0), 2: (1, 1), 4: (1, 2), 3: (3, 0), 6: (3, 1), 5: (3, 2), 7: (7, 0)}
"""Each set of split sides as one of `_PIECES` and the corner at which it begins."""


def _pieces(triangles: NDArray[np.int64], middle: NDArray[np.int64], shape: int) -> NDArray[np.int64]:
    """The triangles whose split sides are those of `shape`, in pieces."""
    of_shape = ((middle >= 0) @ np.array([1, 2, 4])) == shape
    kind, turn = _TURNS[shape]
    points = np.concatenate([np.roll(triangles[of_shape], -turn, 1), np.roll(middle[of_shape], -turn, 1)], axis=1)
    return points[:, np.array(_PIECES[kind])].reshape(-1, 3)
