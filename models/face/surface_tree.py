"""The nearest point of a triangle mesh to each of many points, exactly: a hierarchy of boxes, compiled.

Triangles are sorted along a space-filling curve and cut into leaves; above them stands a complete binary tree of boxes.
A point descends into the nearer box first and leaves out every box that lies beyond the best triangle so far, so the
result is that of testing all triangles.
Source: bounding volumes along a Morton curve after Lauterbach et al. 2009; point to triangle after Ericson 2005, 5.1.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int

from models.rendering.compiled import kernel

LEAF_TRIANGLES = 2
"""Triangles of a leaf at most; one is as fast, four are a tenth slower."""

MORTON_CELLS = 1024
"""Per axis of the mesh's box."""

STACK = 64
"""Boxes that wait at once: at most one per level of the tree, so enough for any mesh."""


@dataclass(frozen=True)
class NearestPoints:
    """Where points meet a surface."""

    distance: Float[np.ndarray, "N"]
    triangle: Int[np.ndarray, "N"]
    weights: Float[np.ndarray, "N 3"]
    """Barycentric coordinates of the nearest point on its triangle."""


@dataclass(frozen=True)
class SurfaceTree:
    """One mesh, prepared for questions about its nearest points."""

    order: Int[np.ndarray, "F"]
    """Triangles along the curve."""
    corners: Float[np.ndarray, "F 9"]
    """Their corners in that order."""
    boxes: Float[np.ndarray, "K 6"]
    """Low and high ends of each box; the children of box k are 2 k + 1 and 2 k + 2, and the last ones are leaves."""

    @classmethod
    def build(cls, vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> SurfaceTree:
        """Sort the triangles and wrap them into boxes.

        Raises: ValueError if there is no triangle, one names a vertex that there is not, or a vertex is not finite.
        """
        check_triangles(triangles, len(vertices))
        if not np.isfinite(vertices).all():
            raise ValueError("surface: vertices that are not finite, expected a whole mesh")
        corners = np.ascontiguousarray(vertices[triangles], dtype=np.float64).reshape(-1, 9)
        order = np.argsort(_morton(corners.reshape(-1, 3, 3).mean(axis=1)), kind="stable")
        corners = corners[order]
        leaves = 1
        while leaves * LEAF_TRIANGLES < len(corners):
            leaves *= 2
        boxes = np.empty((2 * leaves - 1, 6))
        _wrap(corners, boxes, leaves)
        return cls(order=order, corners=corners, boxes=boxes)

    def nearest(self, points: Float[np.ndarray, "N 3"], *, start: Int[np.ndarray, "N"] | None = None) -> NearestPoints:
        """Nearest point of the surface to each point.

        `start` may name a triangle for each point that is probably near, such as that of a place close by: the search
        then leaves out more, and finds the same.
        """
        points = np.ascontiguousarray(points, dtype=np.float64)
        if start is None:
            found = np.full(len(points), -1, dtype=np.int64)
            # Along a curve of their own the points follow each other, and what was near to one is near to the next.
            visits = np.argsort(_morton(points), kind="stable")
        else:
            place = np.empty(len(self.order), dtype=np.int64)
            place[self.order] = np.arange(len(self.order))
            found, visits = place[start], np.arange(len(points))
        square, weights = np.empty(len(points)), np.empty((len(points), 3))
        _search(points, visits, self.corners, self.boxes, found, square, weights)
        return NearestPoints(distance=np.sqrt(square), triangle=self.order[found], weights=weights)


def check_triangles(triangles: Int[np.ndarray, "F 3"], vertex_count: int) -> None:
    """Raises: ValueError if there is no triangle or one names a vertex that there is not; a kernel reads any memory."""
    if len(triangles) == 0 or triangles.min() < 0 or triangles.max() >= vertex_count:
        raise ValueError(f"triangles refer to vertices outside 0 to {vertex_count - 1}, or there are none")


@kernel
@no_type_check
def _morton(places):
    count = len(places)
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for number in range(count):
        for axis in range(3):
            value = places[number, axis]
            low[axis], high[axis] = min(low[axis], value), max(high[axis], value)
    # The same cells along all axes: a flat mesh is not cut across its thickness first.
    side = max(high[0] - low[0], high[1] - low[1], high[2] - low[2])
    factor = (MORTON_CELLS - 1) / side if side > 0.0 else 0.0
    codes = np.empty(count, np.int64)
    for number in range(count):
        code = 0
        for axis in range(3):
            cell = int((places[number, axis] - low[axis]) * factor)
            for bit in range(10):
                code |= ((cell >> bit) & 1) << (3 * bit + axis)
        codes[number] = code
    return codes


@kernel
@no_type_check
def _wrap(corners, boxes, leaves):
    count = len(corners)
    for leaf in range(leaves):
        box = boxes[leaves - 1 + leaf]
        for axis in range(3):
            low, high = np.inf, -np.inf
            for face in range(count * leaf // leaves, count * (leaf + 1) // leaves):
                for corner in range(axis, 9, 3):
                    low, high = min(low, corners[face, corner]), max(high, corners[face, corner])
            box[axis], box[axis + 3] = low, high
    for node in range(leaves - 2, -1, -1):
        for axis in range(3):
            boxes[node, axis] = min(boxes[2 * node + 1, axis], boxes[2 * node + 2, axis])
            boxes[node, axis + 3] = max(boxes[2 * node + 1, axis + 3], boxes[2 * node + 2, axis + 3])


@kernel
@no_type_check
def _box_square(boxes, node, x, y, z):
    """Squared distance to a box; an empty one is infinitely far."""
    dx = max(boxes[node, 0] - x, 0.0, x - boxes[node, 3])
    dy = max(boxes[node, 1] - y, 0.0, y - boxes[node, 4])
    dz = max(boxes[node, 2] - z, 0.0, z - boxes[node, 5])
    return dx * dx + dy * dy + dz * dz


@kernel
@no_type_check
def _share(along, whole):
    return along / whole if whole > 0.0 else 0.0


@kernel
@no_type_check
def _triangle_point(corners, face, x, y, z):
    """Squared distance to a triangle, and the weights of its second and third corner at the nearest point."""
    ax, ay, az = corners[face, 0], corners[face, 1], corners[face, 2]
    bx, by, bz = corners[face, 3], corners[face, 4], corners[face, 5]
    cx, cy, cz = corners[face, 6], corners[face, 7], corners[face, 8]
    abx, aby, abz, acx, acy, acz = bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az
    apx, apy, apz = x - ax, y - ay, z - az
    bpx, bpy, bpz, cpx, cpy, cpz = x - bx, y - by, z - bz, x - cx, y - cy, z - cz
    d1, d2 = abx * apx + aby * apy + abz * apz, acx * apx + acy * apy + acz * apz
    d3, d4 = abx * bpx + aby * bpy + abz * bpz, acx * bpx + acy * bpy + acz * bpz
    d5, d6 = abx * cpx + aby * cpy + abz * cpz, acx * cpx + acy * cpy + acz * cpz
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    second, third = 0.0, 0.0
    if d1 <= 0.0 and d2 <= 0.0:
        pass
    elif d3 >= 0.0 and d4 <= d3:
        second = 1.0
    elif d6 >= 0.0 and d5 <= d6:
        third = 1.0
    elif vc <= 0.0 and d1 >= 0.0 and d3 <= 0.0:
        second = _share(d1, d1 - d3)
    elif vb <= 0.0 and d2 >= 0.0 and d6 <= 0.0:
        third = _share(d2, d2 - d6)
    elif va <= 0.0 and d4 >= d3 and d5 >= d6:
        third = _share(d4 - d3, (d4 - d3) + (d5 - d6))
        second = 1.0 - third
    else:
        total = va + vb + vc
        second, third = _share(vb, total), _share(vc, total)
    dx = apx - second * abx - third * acx
    dy = apy - second * aby - third * acy
    dz = apz - second * abz - third * acz
    return dx * dx + dy * dy + dz * dz, second, third


@kernel
@no_type_check
def _search(points, visits, corners, boxes, found, square, weights):
    count = len(corners)
    leaves = (len(boxes) + 1) // 2
    nodes, bounds = np.empty(STACK, np.int64), np.empty(STACK)
    before = 0
    for number in visits:
        x, y, z = points[number, 0], points[number, 1], points[number, 2]
        face = found[number] if found[number] >= 0 else before
        best, second, third = _triangle_point(corners, face, x, y, z)
        nodes[0], bounds[0], waiting = 0, 0.0, 1
        while waiting > 0:
            waiting -= 1
            if bounds[waiting] >= best:
                continue
            node = nodes[waiting]
            while node < leaves - 1:
                near, far = 2 * node + 1, 2 * node + 2
                near_square = _box_square(boxes, near, x, y, z)
                far_square = _box_square(boxes, far, x, y, z)
                if far_square < near_square:
                    near, far, near_square, far_square = far, near, far_square, near_square
                if far_square < best:
                    nodes[waiting], bounds[waiting] = far, far_square
                    waiting += 1
                if near_square >= best:
                    node = -1
                    break
                node = near
            if node < 0:
                continue
            leaf = node - (leaves - 1)
            for place in range(count * leaf // leaves, count * (leaf + 1) // leaves):
                distance, one, other = _triangle_point(corners, place, x, y, z)
                if distance < best:
                    best, face, second, third = distance, place, one, other
        found[number], square[number], before = face, best, face
        weights[number, 0], weights[number, 1], weights[number, 2] = 1.0 - second - third, second, third
