"""Graded triangulation of the left half of the procedural face in its surface parameters.

Convention: surface parameters and front coordinates as in models/face/procedural_shape.py; rows of points that carry
meaning (lid margin, lip borders, midline …) are placed first and kept, the rest is spread by springs between them.
Source: Persson and Strang, A Simple Mesh Generator in MATLAB, SIAM Review 2004 (force law); differs in a fixed number
of steps and in rounding every step, so that every machine arrives at the same triangles.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int
from scipy.spatial import Delaunay, cKDTree

from models.face.procedural_shape import (
    ACROSS_MM,
    ALA_CENTRE,
    DOWN_MM,
    MOUTH_CORNER,
    NOSTRIL_CENTRE,
    SLIT_END,
    Plane,
    Values,
    eye_margin,
    head_form,
    head_parameters,
    lip_heights,
)

SPRING_STEPS = 40
LID_POINTS = 11
SLIT_STEPS = 12
BROW_LINE = np.array([[8.5, 44.5], [15.0, 47.6], [24.0, 50.2], [33.0, 51.6], [42.0, 50.6], [48.0, 47.8], [53.0, 43.8]])

BROW_COLUMNS = 19
BROW_OFFSETS_MM = (-4.3, -1.6, 1.2, 4.0)
# Contour from the chin's lowest point along the jaw to the ear at eye level (iBUG points 8 to 16), surface parameters.
JAW_PARAMETERS = np.array(
    [
        [0.0, 208.0],
        [18.0, 207.5],
        [36.0, 206.5],
        [55.0, 204.0],
        [76.0, 197.0],
        [94.0, 173.0],
        [99.0, 141.0],
        [100.5, 114.0],
        [101.0, 87.0],
    ]
)


@dataclass(frozen=True)
class HalfLayout:
    """Triangulated surface parameters of the left half, midline included."""

    parameters: Plane
    triangles: Int[np.ndarray, "_ 3"]
    """Counter-clockwise seen from outside; the eye opening is left out, the line between the lips is an edge row."""
    rows: dict[str, Int[np.ndarray, "_"]]
    """Indices of the points of every named row, in the order in which the row runs."""


def half_layout() -> HalfLayout:
    """Place the rows, fill the rest and triangulate."""
    rows, fixed = _rows()
    opening = fixed[rows["lid"]]
    points = np.concatenate([fixed, _fill(fixed, opening)])
    for _ in range(SPRING_STEPS):
        points = _spring_step(points, len(fixed))
    free_inside = _inside(points, opening)
    free_inside[: len(fixed)] = False
    points = points[~free_inside]
    triangles = Delaunay(points).simplices
    corners = points[triangles]
    area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # Down runs against y, hence the sign.
    triangles = np.where((area > 0.0)[:, None], triangles[:, ::-1], triangles)
    keep = (np.abs(area) > 1e-3) & ~_inside(corners.mean(1), opening)
    return HalfLayout(points, triangles[keep].astype(np.int64), rows)


def _cross(first: Plane, second: Plane) -> Values:
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]


def _inside(points: Plane, outline: Plane) -> Bool[np.ndarray, "_"]:
    """Whether points lie inside a closed polygon, by counting the edges to their right."""
    start, end = outline, np.roll(outline, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    straddles = (start[:, 1] > y) != (end[:, 1] > y)
    rise = np.where(end[:, 1] == start[:, 1], 1.0, end[:, 1] - start[:, 1])
    crossing = start[:, 0] + (y - start[:, 1]) * (end[:, 0] - start[:, 0]) / rise
    return np.asarray((straddles & (crossing > x)).sum(1) % 2 == 1)


def _even(polyline: Plane, count: int) -> Plane:
    """`count` points at equal arc length, ends included."""
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(polyline, axis=0).T))])
    at = np.linspace(0.0, length[-1], count)
    return np.stack([np.interp(at, length, polyline[:, 0]), np.interp(at, length, polyline[:, 1])], 1)


def _rows() -> tuple[dict[str, Int[np.ndarray, "_"]], Plane]:
    margin = eye_margin(LID_POINTS)
    centre = np.array([30.6, 31.2])
    outwards = (margin - centre) / np.array([15.0, 5.6])
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    upper_border, slit, lower_border, vermilion = _lip_rows()
    turn = np.linspace(0.0, 2.0 * np.pi, 9)[:-1]
    wing = np.linspace(-1.75, 1.35, 9)
    front_rows = {
        "lid": margin,
        "lid_edge": margin + outwards * np.array([1.5, 1.7]),
        "upper_lip": upper_border,
        "lower_lip": lower_border[:-1],
        "slit": slit,
        "vermilion": vermilion,
        "nostril": NOSTRIL_CENTRE + np.stack([2.7 * np.cos(turn), 1.9 * np.sin(turn)], 1),
        "nostril_centre": NOSTRIL_CENTRE[None],
        "wing": ALA_CENTRE + np.stack([5.5 * np.cos(wing) - 0.1, 8.0 * np.sin(wing)], 1),
        "brow": _brow_rows(),
        "midline_features": np.array([[0.0, y] for y in (38.0, 26.0, 13.0, -3.2, -14.6)]),
        "nose_base": np.array([[5.4, -13.6]]),
    }
    rows, parameters, count = {}, [], 0
    for name, front in front_rows.items():
        parameters.append(head_parameters(front))
        rows[name] = np.arange(count, count + len(front))
        count += len(front)
    parameters.append(JAW_PARAMETERS)
    rows["jaw"] = np.arange(count, count + 9)
    placed = np.concatenate(parameters)
    edge = _boundary(placed)
    rows["edge"] = np.arange(len(placed), len(placed) + len(edge))
    return rows, np.round(np.concatenate([placed, edge]), 3)


def _brow_rows() -> Plane:
    """Rows along the brow from below to above, closer together where the brow is thin."""
    dense = _even(BROW_LINE, 4 * BROW_COLUMNS - 1)
    rows = []
    for row, offset in enumerate(BROW_OFFSETS_MM):
        # Every second row is set off by half a step, which makes the triangles of the band even.
        line = dense[2 * (row % 2) :: 4][:BROW_COLUMNS]
        along = np.gradient(line, axis=0)
        across = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True)
        taper = np.interp(np.linspace(0.0, 1.0, BROW_COLUMNS), [0.0, 0.15, 0.6, 1.0], [0.8, 1.0, 0.95, 0.62])
        rows.append(line + offset * (taper[:, None] * across))
    return np.concatenate(rows)


def _lip_rows() -> tuple[Plane, Plane, Plane, Plane]:
    """Borders and slit of the lips from the midline outwards, and rows between them on straight columns."""
    x = np.linspace(0.0, 1.0, 200)
    slit = _even(np.stack([SLIT_END[0] * x, lip_heights(SLIT_END[0] * x)[1]], 1), SLIT_STEPS + 1)
    border_x = slit[:, 0] * MOUTH_CORNER[0] / SLIT_END[0]
    upper, _, lower = lip_heights(border_x)
    borders = [np.stack([border_x, upper], 1), np.stack([border_x, lower], 1)]
    rows = []
    for border in borders:
        height = np.abs(border[:, 1] - slit[:, 1])
        for fraction, least in ((0.3, 4.0), (0.66, 4.0), (0.5, 2.0)):
            column = (height >= least) & ((fraction != 0.5) | (height < 4.0))
            rows.append((slit + fraction * (border - slit))[column])
    return borders[0], slit, borders[1], np.concatenate(rows)


def _boundary(placed: Plane) -> Plane:
    """Border of the half face and the points of the midline between the rows that cross it."""
    sides = [np.stack([np.linspace(0.0, ACROSS_MM, 12), np.full(12, end)], 1) for end in (0.0, DOWN_MM)]
    down = np.linspace(0.0, DOWN_MM, 26)[1:-1]
    sides.append(np.stack([np.full(24, ACROSS_MM), down], 1))
    stops = np.sort(np.concatenate([placed[placed[:, 0] == 0.0, 1], [0.0, DOWN_MM]]))
    for start, end in pairwise(stops):
        walk = np.stack([np.zeros(40), np.linspace(start, end, 40)], 1)
        density = 1.0 / edge_length(walk)
        steps = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(walk[:, 1]))])
        count = max(round(float(steps[-1])), 1)
        at = np.interp(np.linspace(0.0, steps[-1], count + 1)[1:-1], steps, walk[:, 1])
        sides.append(np.stack([np.zeros(count - 1), at], 1))
    return np.concatenate(sides)


def edge_length(parameters: Plane) -> Values:
    """Wanted edge length in millimetres: fine at lids, lips and nose, coarse on cheeks, forehead and neck."""
    front = head_form(parameters)[:, :2]
    x, y = front.T
    eye = cKDTree(eye_margin(40)).query(front)[0]
    upper, _, lower = lip_heights(x)
    mouth = np.hypot(np.maximum(x - MOUTH_CORNER[0], 0.0), np.maximum(np.maximum(y - upper, lower - y), 0.0))
    nose = np.hypot(np.maximum(x - 16.5, 0.0), np.maximum(np.maximum(y - 1.0, -14.5 - y), 0.0))
    bridge = np.hypot(np.maximum(x - 9.0, 0.0), np.maximum(np.maximum(y - 36.0, -14.5 - y), 0.0))
    brow = cKDTree(_even(BROW_LINE, 60)).query(front)[0]
    wanted = np.minimum.reduce(
        [
            1.75 + 0.20 * np.maximum(eye - 7.0, 0.0),
            2.0 + 0.22 * np.maximum(mouth - 1.0, 0.0),
            1.6 + 0.24 * nose,
            2.6 + 0.24 * bridge,
            2.0 + 0.28 * np.maximum(brow - 4.0, 0.0),
        ]
    )
    return np.minimum(wanted, 6.8)


def _fill(fixed: Plane, opening: Plane) -> Plane:
    """First guess of the free points: a fine hexagonal grid thinned to the wanted spacing."""
    step = 1.3
    down, across = np.meshgrid(
        np.arange(1.0, DOWN_MM - 1.0, step), np.arange(0.8, ACROSS_MM - 2.0, step), indexing="ij"
    )
    across = across + 0.5 * step * (np.arange(len(across)) % 2)[:, None]
    grid = np.stack([across.ravel(), down.ravel()], 1)
    grid = grid[~_inside(grid, opening)]
    spacing = edge_length(grid)
    # A golden-ratio sequence spreads the visits, so that the thinning has no direction.
    order = np.argsort((np.arange(len(grid)) * 0.6180339887498949) % 1.0)
    radius = 0.80 * spacing
    free = cKDTree(fixed).query(grid)[0] > 0.85 * radius
    neighbours = cKDTree(grid).query_ball_point(grid, radius)
    kept = []
    for index in order:
        if free[index]:
            kept.append(index)
            free[neighbours[index]] = False
    return grid[np.array(kept)]


def _spring_step(points: Plane, fixed_count: int) -> Plane:
    """Push points apart along edges shorter than wanted; the first `fixed_count` stay."""
    simplices = Delaunay(points).simplices
    edges = np.unique(np.sort(simplices[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
    along = points[edges[:, 0]] - points[edges[:, 1]]
    length = np.maximum(np.hypot(*along.T), 1e-6)
    wanted = edge_length(points[edges].mean(1))
    wanted = wanted * 1.15 * np.sqrt((length**2).sum() / (wanted**2).sum())
    force = (np.maximum(wanted - length, 0.0) / length)[:, None] * along
    moves = np.zeros_like(points)
    for axis in range(2):
        moves[:, axis] = np.bincount(edges[:, 0], force[:, axis], len(points)) - np.bincount(
            edges[:, 1], force[:, axis], len(points)
        )
    moves[:fixed_count] = 0.0
    moved = points + 0.2 * moves
    free = moved[fixed_count:]
    free[:, 0] = np.clip(free[:, 0], 0.45 * edge_length(free), ACROSS_MM - 2.0)
    free[:, 1] = np.clip(free[:, 1], 2.0, DOWN_MM - 2.0)
    # Rounding keeps the last bits of different machines from choosing different triangles.
    return np.round(moved, 3)
