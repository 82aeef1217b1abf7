"""The 68 points of a model that names only some of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from models.face.adapters.landmarks import find_landmarks


def complete_landmarks(
    known: Mapping[int, int], *, mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]
) -> Int[np.ndarray, "68"]:
    """Vertices of all 68 points, given those of some: the others are found, then moved as the known ones ask.

    The finder's error at the known points is spread smoothly over its neighbours.
    """
    found = np.asarray(find_landmarks(mean, triangles), dtype=np.int64)
    if not known:
        return found
    points = np.array(sorted(known))
    vertices = np.array([known[point] for point in points])
    error = mean[vertices] - mean[found[points]]
    # A spline through differences, of the kind that stays bounded beyond the known points; smoothing allows
    # for two points on one vertex.
    correction = RBFInterpolator(mean[found[points]], error, kernel="linear", degree=0, smoothing=0.1)
    moved = mean[found] + correction(mean[found])
    completed = cKDTree(mean).query(moved)[1].astype(np.int64)
    completed[points] = vertices
    return completed
