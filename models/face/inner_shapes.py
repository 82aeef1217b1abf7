"""Shapes of eyeballs, teeth, gums, tongue and mouth, by formulas; see models/face/inner_parts.py.

Convention: millimetres, +x the subject's left, +y up, +z out of the face.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

RGB = tuple[float, float, float]

PUPIL_MM, IRIS_MM, LIMBUS_MM, BEHIND_DEG = 2.0, 5.4, 6.0, 115.0
"""Radii, the same in every adult whatever the size of the eyeball; and the angle at its centre where the ball ends."""
MERIDIANS = 32
PUPIL: RGB = (0.02, 0.02, 0.02)
IRIS: RGB = (0.33, 0.24, 0.17)
"""Brown, as most eyes are."""
LIMBUS_SHARE = 0.4
"""Of the colour of the iris: its dark rim."""
IRIS_SHADES = (0.8, 1.15, 1.05, 0.75)
"""From the pupil to the rim; an even iris looks painted."""
WHITE: RGB = (0.78, 0.745, 0.715)
WET, MOIST = 0.25, 0.75
"""Roughness of eyes and teeth, and of the rest: darkness must not shine."""

LIPS_MM = 50.0
UPPER_TEETH = (8.4, 6.6, 7.6, 7.0, 6.8, 10.0)
LOWER_TEETH = (5.4, 6.0, 6.9, 7.0, 7.1, 11.0)
"""Widths from the middle to one side."""
GAP_MM, BULGE_MM, BITE_MM = 0.2, 1.0, 3.0
ARCH = 0.042
"""How far the row of teeth goes back per square of the distance from the middle."""
TOOTH: RGB = (0.87, 0.84, 0.77)
GUM: RGB = (0.66, 0.36, 0.34)
TONGUE: RGB = (0.68, 0.36, 0.34)
WALL: RGB = (0.50, 0.17, 0.15)

RINGS = ((1.0, 2.0, 2.0), (1.05, 10.0, 3.5), (1.05, 13.0, 14.0), (0.85, 13.0, 26.0), (0.45, 8.0, 36.0))
"""Walls of the mouth behind the lips: half their width as a share of the lips', half their height, distance back."""
WITH_LIPS = (0.9, 0.4, 0.0, 0.0, 0.0)
DARK_AT_MM, DARKEST = 55.0, 0.42


@dataclass(frozen=True)
class Piece:
    """Triangles of one colour."""

    name: str
    group: str
    """Pieces that belong together: an eye, the teeth, the mouth."""
    colour: RGB
    """As it is displayed."""
    roughness: float
    triangles: Int[np.ndarray, "T 3"]


def ball_pieces(
    radius: float, *, name: str, iris: RGB = IRIS
) -> tuple[Float[np.ndarray, "P 3"], Float[np.ndarray, "P"], list[Piece]]:
    """An eyeball about the origin that looks along +z: points, their shades, and white, limbus, iris and pupil.

    Each piece has points of its own, so that colours do not run into each other.
    """
    pieces, points, shades = [], [], []
    start = 0
    pupil, rim, end = (np.rad2deg(np.arcsin(min(size / radius, 1.0))) for size in (PUPIL_MM, IRIS_MM, LIMBUS_MM))
    dark = (LIMBUS_SHARE * iris[0], LIMBUS_SHARE * iris[1], LIMBUS_SHARE * iris[2])
    bands = (
        ("pupil", PUPIL, np.linspace(0.0, pupil, 3)),
        ("iris", iris, np.linspace(pupil, rim, len(IRIS_SHADES))),
        ("limbus", dark, np.linspace(rim, end, 2)),
        ("white", WHITE, np.linspace(end, BEHIND_DEG, 12)),
    )
    around = np.linspace(0.0, 2.0 * np.pi, MERIDIANS, endpoint=False)
    for part, colour, angles in bands:
        polar, turn = np.meshgrid(np.deg2rad(angles), around, indexing="ij")
        grid = np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], 2)
        points.append(radius * grid.reshape(-1, 3))
        shades.append(np.repeat(IRIS_SHADES if part == "iris" else np.ones(len(angles)), MERIDIANS))
        triangles = _grid_triangles(len(angles), MERIDIANS, closed=True) + start
        pieces.append(Piece(f"{name}_{part}", name, colour, WET, triangles))
        start += len(points[-1])
    found = np.concatenate(points)
    x, y = found[:, 0] / radius, found[:, 1] / radius
    # The upper lid shades most, and the corners lie deep.
    shade = np.clip(1.0 - 0.5 * x**2 - 1.5 * np.maximum(y, 0.0) ** 1.5 - 0.5 * np.maximum(-y, 0.0) ** 2, 0.35, 1.0)
    return found, shade * np.concatenate(shades), [_without_points(piece, found) for piece in pieces]


def mouth_pieces(
    lips: Float[np.ndarray, "L 3"],
) -> tuple[
    Float[np.ndarray, "P 3"], Float[np.ndarray, "P L"], Float[np.ndarray, "P"], Float[np.ndarray, "P"], list[Piece]
]:
    """Walls, gums, teeth and tongue behind the edge of closed lips.

    Returns points, how much each follows every point of the lips and the jaw, shades, and the pieces.
    """
    scale = float(np.ptp(lips[:, 0])) / LIPS_MM
    middle = np.array([lips[:, 0].mean(), lips[:, 1].mean(), lips[:, 2].max()])
    points, follow, jaw, shade = _walls(lips, middle, scale)
    pieces = [Piece("mouth", "mouth", WALL, MOIST, _grid_triangles(len(RINGS) + 2, len(lips), closed=True))]
    all_points, all_jaw, all_shades, start = [points], [jaw], [shade], len(points)
    shapes = [
        ("teeth", TOOTH, WET, 0.0, *_row(UPPER_TEETH, lower=False, gum=False)),
        ("gums", GUM, MOIST, 0.0, *_row(UPPER_TEETH, lower=False, gum=True)),
        ("teeth", TOOTH, WET, 1.0, *_row(LOWER_TEETH, lower=True, gum=False)),
        ("gums", GUM, MOIST, 1.0, *_row(LOWER_TEETH, lower=True, gum=True)),
        ("tongue", TONGUE, MOIST, 1.0, *_tongue()),
    ]
    for name, colour, roughness, with_jaw, own, triangles in shapes:
        all_points.append(middle + scale * own)
        all_jaw.append(np.full(len(own), with_jaw))
        all_shades.append(np.clip(1.05 + own[:, 2] / DARK_AT_MM, 0.4, 1.0))
        side = {0.0: "upper_", 1.0: "lower_"}[with_jaw] if name != "tongue" else ""
        group = name if name == "teeth" else "mouth"
        pieces.append(Piece(side + name, group, colour, roughness, triangles + start))
        start += len(own)
    found = np.concatenate(all_points)
    rest = np.zeros((len(found) - len(points), len(lips)))
    pieces = [_without_points(piece, found) for piece in pieces]
    return found, np.concatenate([follow, rest]), np.concatenate(all_jaw), np.concatenate(all_shades), pieces


def _walls(lips: np.ndarray, middle: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rings of points from the lips to the throat, what they follow, and how dark they are."""
    count = len(lips)
    across = np.clip((lips[:, 0] - middle[0]) / (0.5 * np.ptp(lips[:, 0])), -1.0, 1.0)
    upper = _upper_half(lips)
    height = np.sqrt(1.0 - across**2) * np.where(upper, 1.0, -1.0)
    half_width = 0.5 * float(np.ptp(lips[:, 0]))
    rings, follows, jaws, shades = [lips], [np.eye(count)], [np.zeros(count)], [np.full(count, 0.9)]
    for (wide, high, back), share in zip(RINGS, WITH_LIPS, strict=True):
        flat = [middle[0] + wide * half_width * across, middle[1] + scale * high * height, lips[:, 2] - scale * back]
        rings.append(np.stack(flat, 1))
        follows.append(share * np.eye(count))
        jaws.append((1.0 - share) * 0.5 * (1.0 - height))
        shades.append(np.full(count, np.clip(0.9 - back / DARK_AT_MM, DARKEST, 1.0)))
    end = rings[-1].mean(0) - [0.0, 0.0, 2.0 * scale]
    rings.append(np.repeat(end[None], count, 0))
    follows.append(np.zeros((count, count)))
    jaws.append(np.full(count, 0.5))
    shades.append(np.full(count, DARKEST))
    return np.concatenate(rings), np.concatenate(follows), np.concatenate(jaws), np.concatenate(shades)


def _upper_half(lips: np.ndarray) -> np.ndarray:
    """Which points of the edge belong to the upper lip: one of the two chains between the corners."""
    left, right = int(lips[:, 0].argmax()), int(lips[:, 0].argmin())
    place = np.arange(len(lips))
    chain = (place - left) % len(lips) <= (right - left) % len(lips)
    return chain if lips[chain, 1].mean() > lips[~chain, 1].mean() else ~chain


def _row(widths: tuple[float, ...], *, lower: bool, gum: bool) -> tuple[np.ndarray, np.ndarray]:
    """A row of teeth, or the gum that holds them, before the middle of the lips."""
    # Bite upwards here and turned over for the upper row; the lower teeth stand a little behind.
    back, edge, root = (-7.2, -2.6, -10.0) if lower else (-5.0, -4.6, 6.0)
    x = np.linspace(0.0, 60.0, 2001)
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(ARCH * x**2)))])

    def on_arch(distance: np.ndarray, outwards: np.ndarray, y: np.ndarray) -> np.ndarray:
        place = np.sign(distance) * np.interp(np.abs(distance), length, x)
        slope = 2.0 * ARCH * place
        norm = np.hypot(slope, 1.0)
        return np.stack(
            [place + outwards * slope / norm, y, back - ARCH * place**2 + outwards / norm], -1
        )  # fmt: skip

    if gum:
        end = sum(widths)
        along, level = np.meshgrid(np.linspace(-end, end, 49), [0.0, 0.5, 1.0], indexing="ij")
        y = root + (level - 0.12) * (root - edge) * 0.6
        grid = on_arch(along, 0.4 - 1.5 * level, y)
        triangles = _grid_triangles(*grid.shape[:2], closed=False)
        return grid.reshape(-1, 3), triangles if lower else triangles[:, ::-1]
    points: list[np.ndarray] = []
    corners: list[np.ndarray] = []
    start = 0
    for side in (-1.0, 1.0):
        begin = 0.0
        for width in widths:
            u, v = np.meshgrid(np.linspace(-1.0, 1.0, 5), [-0.25, 0.0, 0.15, 0.6, 1.0], indexing="ij")
            level = np.maximum(v, 0.0)
            along = side * (begin + 0.5 * width) + u * (0.5 * width - GAP_MM / 2) * (1.0 - 0.05 * level)
            y = edge + level * (root - edge) + 0.07 * (root - edge) * u**4 * (level < 0.1)
            outwards = BULGE_MM * (1.0 - u**2) * np.sqrt(np.minimum(1.0, 0.2 + level)) - BITE_MM * (v < 0.0)
            grid = on_arch(along, outwards, y)
            own = _grid_triangles(*grid.shape[:2], closed=False) + start
            points.append(grid.reshape(-1, 3))
            corners.append(own[:, ::-1] if lower else own)
            start += len(points[-1])
            begin += width
    return np.concatenate(points), np.concatenate(corners)


def _tongue() -> tuple[np.ndarray, np.ndarray]:
    """The upper side of a tongue that lies behind the lower teeth."""
    polar, turn = np.meshgrid(
        np.linspace(0.0, 0.6 * np.pi, 10), np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False), indexing="ij"
    )
    x, z, y = np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)
    groove = 1.2 * np.exp(-((x / 0.18) ** 2)) * (y > 0.0)
    grid = np.stack([18.0 * x, -10.0 + 8.0 * y - groove, -28.0 + 19.0 * z], 2)
    return grid.reshape(-1, 3), _grid_triangles(10, 24, closed=True)[:, ::-1]


def _grid_triangles(rows: int, columns: int, *, closed: bool) -> np.ndarray:
    """Of a grid of points, row by row; `closed` joins the last column to the first."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    here, right = row * columns + column, row * columns + (column + 1) % columns
    below, across = here + columns, right + columns
    first, second = np.stack([here, below, right], -1), np.stack([right, below, across], -1)
    return np.concatenate([first.reshape(-1, 3), second.reshape(-1, 3)])


def _without_points(piece: Piece, points: np.ndarray) -> Piece:
    """Without triangles that are no more than a line, as round a pole."""
    corners = points[piece.triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return replace(piece, triangles=piece.triangles[area > 1e-6])
