"""Nearest points on a triangle mesh, with the normal there and whether the mesh ends there. In numpy and float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from models.face.mesh_operators import mesh_normals, unit_vectors
from models.face.surface_tree import SurfaceTree, check_triangles

NO_WEIGHT = 1e-9
"""A barycentric weight below this is a rounding error."""


@dataclass(frozen=True)
class SurfacePoints:
    """What a mesh says of each query point."""

    points: Float[np.ndarray, "N 3"]
    """On the surface."""
    normals: Float[np.ndarray, "N 3"]
    """Unit length, interpolated over the triangle."""
    distance: Float[np.ndarray, "N"]
    at_border: Bool[np.ndarray, "N"]
    """Whether the mesh ends there: the point lies on vertices of edges that have one triangle only."""


class NearestSurface:
    """A mesh prepared for queries.

    Convention: triangles are counter-clockwise from outside; loose vertices are ignored.
    Raises: ValueError if there is no triangle, or one refers to a vertex that does not exist.
    """

    def __init__(self, vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> None:
        check_triangles(triangles, len(vertices))
        used, compact = np.unique(triangles, return_inverse=True)
        self.vertices = np.asarray(vertices, np.float64)[used]
        self.triangles = compact.reshape(-1, 3)
        self.normals = mesh_normals(self.vertices, self.triangles)
        self._border = _border_vertices(self.triangles, len(self.vertices))
        self._tree = SurfaceTree.build(self.vertices, self.triangles)

    def query(self, points: Float[np.ndarray, "N 3"]) -> SurfacePoints:
        """The nearest point of the surface to each point."""
        found = self._tree.nearest(points)
        corners = self.triangles[found.triangle]
        return SurfacePoints(
            points=_blend(found.weights, self.vertices[corners]),
            normals=unit_vectors(_blend(found.weights, self.normals[corners])),
            distance=found.distance,
            at_border=(found.weights * ~self._border[corners]).sum(1) < NO_WEIGHT,
        )


def _border_vertices(triangles: Int[np.ndarray, "F 3"], count: int) -> Bool[np.ndarray, "V"]:
    ends = np.sort(np.stack([triangles, np.roll(triangles, -1, 1)], axis=2).reshape(-1, 2), axis=1)
    # One number per side sorts many times faster than pairs do.
    sides, uses = np.unique(ends[:, 0].astype(np.int64) * count + ends[:, 1], return_counts=True)
    border = np.zeros(count, bool)
    border[sides[uses == 1] // count] = True
    border[sides[uses == 1] % count] = True
    return border


def _blend(weights: Float[np.ndarray, "N 3"], corners: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3"]:
    blended: Float[np.ndarray, "N 3"] = np.einsum("nk,nkd->nd", weights, corners)
    return blended
