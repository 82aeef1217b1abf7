"""Nearest points on a triangle mesh, with the normal there and whether the mesh ends there. In numpy and float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from models.face.mesh_operators import mesh_normals, unit_vectors

NEIGHBOURS = 3
"""Vertices whose triangles are looked at: with three, one point in a thousand misses its nearest triangle."""


@dataclass(frozen=True)
class NearestPoints:
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
        if len(triangles) == 0 or triangles.min() < 0 or triangles.max() >= len(vertices):
            raise ValueError(f"triangles refer to vertices outside 0 to {len(vertices) - 1}, or there are none")
        used, compact = np.unique(triangles, return_inverse=True)
        self.vertices = np.asarray(vertices, np.float64)[used]
        self.triangles = compact.reshape(-1, 3)
        self.normals = mesh_normals(self.vertices, self.triangles)
        corner = self.triangles.ravel()
        self._around = np.argsort(corner, kind="stable") // 3
        self._degree = np.bincount(corner)
        self._start = np.cumsum(self._degree) - self._degree
        self._border = _border_vertices(self.triangles, len(self.vertices))
        self._tree = cKDTree(self.vertices)

    def query(self, points: Float[np.ndarray, "N 3"]) -> NearestPoints:
        """The nearest point of the surface to each point, exact among the triangles around the nearest vertices."""
        count = min(NEIGHBOURS, len(self.vertices))
        nearest = self._tree.query(points, k=count)[1].reshape(len(points), count)
        degree = self._degree[nearest].ravel()
        place = np.arange(degree.sum()) - np.repeat(np.cumsum(degree) - degree, degree)
        candidates = self._around[np.repeat(self._start[nearest].ravel(), degree) + place]
        owner = np.repeat(np.arange(len(points)), degree.reshape(nearest.shape).sum(1))
        weights = barycentric_nearest(points[owner], self.vertices[self.triangles[candidates]])
        found = _blend(weights, self.vertices[self.triangles[candidates]])
        squares = np.square(found - points[owner]).sum(1)
        # The first of a stable order by point, then by distance.
        order = np.lexsort((squares, owner))
        best = order[np.searchsorted(owner[order], np.arange(len(points)))]
        chosen, weights = candidates[best], weights[best]
        normals = _blend(weights, self.normals[self.triangles[chosen]])
        at_border = (weights * ~self._border[self.triangles[chosen]]).sum(1) < 1e-9
        return NearestPoints(found[best], unit_vectors(normals), np.sqrt(squares[best]), at_border)


def barycentric_nearest(
    points: Float[np.ndarray, "N 3"], corners: Float[np.ndarray, "N 3 3"]
) -> Float[np.ndarray, "N 3"]:
    """Barycentric weights of the point of each triangle that is nearest to its query point.

    Degenerate: a triangle without area is decided by its sides.
    """
    first, second, third = corners[:, 0], corners[:, 1], corners[:, 2]
    edge, other, offset = second - first, third - first, points - first
    along_edge, along_other = _dot(offset, edge), _dot(offset, other)
    edge_square, other_square, mixed = _dot(edge, edge), _dot(other, other), _dot(edge, other)
    determinant = np.maximum(edge_square * other_square - mixed * mixed, 1e-12)
    v = (other_square * along_edge - mixed * along_other) / determinant
    w = (edge_square * along_other - mixed * along_edge) / determinant
    weights = np.stack([1.0 - v - w, v, w], axis=1)
    outside = (weights < 0.0).any(1) | (edge_square * other_square - mixed * mixed <= 1e-12)
    if outside.any():
        weights[outside] = _nearest_on_sides(points[outside], corners[outside])
    return weights


def _nearest_on_sides(points: Float[np.ndarray, "N 3"], corners: Float[np.ndarray, "N 3 3"]) -> np.ndarray:
    best = np.zeros((len(points), 3))
    least = np.full(len(points), np.inf)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        side = corners[:, end] - corners[:, start]
        share = _dot(points - corners[:, start], side) / np.maximum(_dot(side, side), 1e-12)
        share = share.clip(0.0, 1.0)
        square = np.square(points - corners[:, start] - share[:, None] * side).sum(1)
        closer = square < least
        least[closer] = square[closer]
        best[closer] = 0.0
        best[closer, start], best[closer, end] = 1.0 - share[closer], share[closer]
    return best


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


def _dot(first: Float[np.ndarray, "N 3"], second: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N"]:
    product: Float[np.ndarray, "N"] = np.einsum("nd,nd->n", first, second)
    return product
