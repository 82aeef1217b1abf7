"""Assembly of the procedural face's mesh: skin, lid rims, eyeballs, inside of the mouth, teeth and tongue.

Everything is built for the subject's left half and then mirrored, so that every vertex has an exact partner.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int, Num

from models.face.procedural_layout import HalfLayout, half_layout
from models.face.procedural_shape import (
    ACROSS_MM,
    DOWN_MM,
    EYE_CENTRE,
    EYE_RADIUS_MM,
    Plane,
    Points,
    Values,
    face_surface,
    head_form,
    smooth_step,
)

Numbers = Num[np.ndarray, "_"]

LAYERS = ("skin", "rim", "eye", "pouch", "upper_teeth", "lower_teeth", "tongue")
EYE_RING_ANGLES = np.radians([8.0, 9.5, 18.0, 26.5, 29.2, 31.5, 42.0, 55.0, 74.0, 104.0])
EYE_SEGMENTS = 24
# How far the rings of the mouth's pouch follow the lips, and their (share of x, up or down, back) from the lips in mm.
POUCH_FOLLOWS = (1.0, 0.8, 0.3, 0.0, 0.0)
POUCH_UPPER = ((0.985, 0.9, 2.6), (1.0, 5.0, 4.6), (0.97, 12.0, 7.5), (0.92, 13.5, 20.0), (0.65, 9.0, 42.0))
POUCH_LOWER = ((0.985, 0.9, 2.6), (1.0, 5.0, 4.6), (0.97, 10.0, 7.5), (0.92, 12.0, 20.0), (0.65, 9.0, 42.0))


@dataclass(frozen=True)
class FaceMesh:
    """The mean face with what expressions and colours need to know about every vertex."""

    points: Points
    triangles: Int[np.ndarray, "_ 3"]
    uv: Plane
    layer: Int[np.ndarray, "_"]
    """Index into `LAYERS`."""
    front: Plane
    """(x, y) of the head form under a skin vertex, in which features are described; elsewhere (x, y) of the vertex."""
    side: Int[np.ndarray, "_"]
    """+1 above the line between the lips, -1 below; decides for vertices that lie on it twice."""
    ring: Int[np.ndarray, "_"]
    """Ring of an eyeball or of the pouch, column row of the teeth; 0 elsewhere."""
    anchor: Int[np.ndarray, "_"]
    """Skin vertex that a vertex inside moves with; itself for skin."""
    follows: Values
    """Share of the anchor's motion that it takes."""
    mirror: Int[np.ndarray, "_"]
    rows: dict[str, Int[np.ndarray, "_"]]
    """Vertices of the left half's named rows; `slit_lower` is the lower copy of `slit`."""


@dataclass
class _Half:
    points: list[Points] = field(default_factory=list)
    uv: list[Plane] = field(default_factory=list)
    triangles: list[Int[np.ndarray, "_ 3"]] = field(default_factory=list)
    columns: dict[str, list[Values]] = field(
        default_factory=lambda: {name: [] for name in ("layer", "side", "ring", "anchor", "follows")}
    )
    count: int = 0

    def add(
        self,
        points: Points,
        uv: Plane,
        *,
        layer: str,
        side: int | Numbers = 1,
        ring: int | Numbers = 0,
        anchor: Numbers | None = None,
        follows: float | Numbers = 0.0,
    ) -> Int[np.ndarray, "_"]:
        """Append vertices and return their indices; without an anchor a vertex moves by itself."""
        index = np.arange(self.count, self.count + len(points))
        self.count += len(points)
        self.points.append(points)
        self.uv.append(uv)
        values = {
            "layer": LAYERS.index(layer),
            "side": side,
            "ring": ring,
            "anchor": index if anchor is None else anchor,
            "follows": follows,
        }
        for name, value in values.items():
            self.columns[name].append(np.broadcast_to(np.asarray(value, dtype=float), (len(points),)))
        return index


def build_mesh() -> FaceMesh:
    """The mean face, about 3,000 vertices."""
    layout = half_layout()
    half = _Half()
    rows = _add_skin(half, layout)
    _add_eye(half, rows["lid"])
    _add_mouth(half, rows["slit"], rows["slit_lower"])
    return _mirrored(half, rows, layout)


def eye_surface(directions: Points) -> Points:
    """Points of the left eyeball for unit directions from its centre; +z looks ahead.

    Towards the corners the white is drawn sideways, as the tear duct and the fold of the conjunctiva fill them.
    """
    offset = EYE_RADIUS_MM * directions
    stretch = 1.0 + 0.24 * smooth_step(np.abs(offset[:, 0]), 6.5, 12.0)
    return EYE_CENTRE + offset * np.stack([stretch, np.ones_like(stretch), np.ones_like(stretch)], 1)


def eye_directions() -> Points:
    """Unit directions of the eyeball's vertices: the centre of the pupil, then ring after ring."""
    turn = 2.0 * np.pi * np.arange(EYE_SEGMENTS) / EYE_SEGMENTS
    rings = [np.array([[0.0, 0.0, 1.0]])]
    for angle in EYE_RING_ANGLES:
        rings.append(
            np.stack([np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn), np.full_like(turn, np.cos(angle))], 1)
        )
    return np.concatenate(rings)


def _add_skin(half: _Half, layout: HalfLayout) -> dict[str, Int[np.ndarray, "_"]]:
    parameters = layout.parameters
    points = face_surface(parameters)
    points[parameters[:, 0] == 0.0, 0] = 0.0
    uv = np.stack([0.5 + 0.48 * parameters[:, 0] / ACROSS_MM, 0.98 - 0.76 * parameters[:, 1] / DOWN_MM], 1)
    slit = layout.rows["slit"]
    below = points[:, 1] < np.interp(points[:, 0], points[slit, 0], points[slit, 1])
    half.add(points, uv, layer="skin", side=np.where(below, -1, 1))
    half.columns["side"][0] = half.columns["side"][0].copy()
    half.columns["side"][0][slit] = 1
    # The end of the slit stays one vertex, every other one gets a lower copy.
    opened = slit[:-1]
    lower = half.add(points[opened], uv[opened], layer="skin", side=-1)
    copies = dict(zip(opened.tolist(), lower.tolist(), strict=True))
    triangles = layout.triangles.copy()
    on_slit = np.isin(triangles, opened)
    # A triangle lies below the line if any of its corners does.
    is_below = ((~np.isin(triangles, slit)) & below[triangles]).any(1)
    for row in np.nonzero(on_slit.any(1) & is_below)[0]:
        triangles[row] = [copies.get(corner, corner) for corner in triangles[row].tolist()]
    half.triangles.append(triangles)
    rows = dict(layout.rows)
    rows["slit_lower"] = np.append(lower, slit[-1])
    return rows


def _strip(first: Int[np.ndarray, "_"], second: Int[np.ndarray, "_"], *, closed: bool) -> Int[np.ndarray, "_ 3"]:
    """Triangles between a border that the skin runs along and the next row inwards."""
    following = np.roll(first, -1), np.roll(second, -1)
    triangles = np.stack(
        [np.stack([following[0], first, second], 1), np.stack([following[0], second, following[1]], 1)], 1
    )
    return triangles[: len(first) if closed else -1].reshape(-1, 3)


def _add_eye(half: _Half, lid: Int[np.ndarray, "_"]) -> None:
    margin = half.points[0][lid]
    directions = eye_directions()
    ball = eye_surface(directions)
    # The rim leads from the margin straight back to the ball, so that no view finds a gap beside it.
    rim = margin.copy()
    rim[:, 0] = EYE_CENTRE[0] + np.clip(margin[:, 0] - EYE_CENTRE[0], -13.8, 12.6)
    aside = np.abs(rim[:, 0] - EYE_CENTRE[0])
    aside = aside / np.interp(aside, [0.0, 6.5, 14.0], [1.0, 1.0, 1.22])
    hidden = EYE_RADIUS_MM**2 - aside**2 - (margin[:, 1] - EYE_CENTRE[1]) ** 2
    behind = EYE_CENTRE[2] + np.sqrt(np.maximum(hidden, 0.0)) - 0.5
    rim[:, 2] = np.clip(behind, margin[:, 2] - 6.0, margin[:, 2] - 1.4)
    # The rim has a margin of its own: shared vertices would round the edge of the lid in shading.
    rows: list[Int[np.ndarray, "_"]] = []
    for row in (margin, rim):
        uv = np.array([0.75, 0.1]) + 0.0055 * (row[:, :2] - EYE_CENTRE[:2])
        rows.append(half.add(row, uv, layer="rim", ring=len(rows), anchor=lid.astype(float), follows=1.0))
    half.triangles.append(_strip(rows[0], rows[1], closed=True))

    angle = np.concatenate([[0.0], np.repeat(EYE_RING_ANGLES, EYE_SEGMENTS)])
    flat = directions[:, :2] / np.maximum(np.linalg.norm(directions[:, :2], axis=1, keepdims=True), 1e-9)
    ring = np.concatenate([[0], np.repeat(np.arange(1, len(EYE_RING_ANGLES) + 1), EYE_SEGMENTS)])
    index = half.add(ball, np.array([0.75, 0.1]) + 0.055 * flat * angle[:, None], layer="eye", ring=ring)
    first = index[1 : EYE_SEGMENTS + 1]
    fan = np.stack([np.full(EYE_SEGMENTS, index[0]), first, np.roll(first, -1)], 1)
    half.triangles.append(fan)
    for start in range(1, len(ball) - EYE_SEGMENTS, EYE_SEGMENTS):
        inner = index[start : start + EYE_SEGMENTS]
        outer = index[start + EYE_SEGMENTS : start + 2 * EYE_SEGMENTS]
        half.triangles.append(_strip(inner, outer, closed=True))


def _add_mouth(half: _Half, slit: Int[np.ndarray, "_"], slit_lower: Int[np.ndarray, "_"]) -> None:
    all_points = np.concatenate(half.points)
    border = np.concatenate([slit, slit_lower[-2::-1]])
    side = np.where(np.arange(len(border)) < len(slit), 1.0, -1.0)
    lips = all_points[border]
    taper = np.sqrt(np.maximum(1.0 - (lips[:, 0] / lips[:, 0].max()) ** 2, 0.0))
    previous = border
    for number, (above, beneath) in enumerate(zip(POUCH_UPPER, POUCH_LOWER, strict=True), start=1):
        share, away, back = np.where(side[:, None] > 0.0, above, beneath).T
        ring = np.stack([lips[:, 0] * share, lips[:, 1] + side * away * taper, lips[:, 2] - back], 1)
        # Deep rings lie on one arch, the corners of the mouth do not pull them back.
        uv = np.array([0.5, 0.1]) + np.stack([0.003 * ring[:, 0], 0.05 * side * taper * number / 5.0], 1)
        index = half.add(
            ring,
            uv,
            layer="pouch",
            side=side,
            ring=number,
            anchor=border.astype(float),
            follows=POUCH_FOLLOWS[number - 1],
        )
        half.triangles.append(_strip(previous, index, closed=False))
        previous = index
    end = np.array([[0.0, lips[0, 1], lips[0, 2] - 46.0]])
    index = half.add(end, np.array([[0.5, 0.1]]), layer="pouch", ring=len(POUCH_UPPER) + 1)
    half.triangles.append(np.stack([previous[1:], previous[:-1], np.full(len(previous) - 1, index[0])], 1))
    front = float(lips[0, 2])
    _add_teeth(
        half, front - 6.2, layer="upper_teeth", heights=(-26.5, -30.5, -38.2, -37.0), depths=(0.5, 0.0, 0.3, 3.0)
    )
    _add_teeth(
        half, front - 8.6, layer="lower_teeth", heights=(-47.5, -44.0, -37.4, -38.4), depths=(0.5, 0.0, 0.2, 3.0)
    )
    _add_tongue(half)


TOOTH_EDGES = np.array([0.0, 4.2, 8.0, 11.6, 15.0, 18.0, 20.5])


def _add_teeth(half: _Half, front: float, *, layer: str, heights: tuple[float, ...], depths: tuple[float, ...]) -> None:
    """One row of teeth along the dental arch: gum, neck, cutting edge, back."""
    rows = []
    for number, (height, depth) in enumerate(zip(heights, depths, strict=True)):
        x = TOOTH_EDGES * (1.0 - 0.03 * depth)
        points = np.stack([x, np.full_like(x, height), front - depth - x**2 / 26.0], 1)
        uv = np.stack([0.5 + 0.004 * x, np.full_like(x, 0.03 + 0.005 * number + 0.03 * (layer == "upper_teeth"))], 1)
        rows.append(half.add(points, uv, layer=layer, ring=number, side=1 if layer == "upper_teeth" else -1))
    for above, beneath in pairwise(rows):
        strip = _strip(above, beneath, closed=False)
        half.triangles.append(strip if layer == "upper_teeth" else strip[:, ::-1])


# Tongue from its underside over the tip to the back: (y, z, half width).
TONGUE = (
    (-47.5, 20.0, 7.0),
    (-46.6, 25.0, 7.6),
    (-44.6, 26.5, 8.6),
    (-42.4, 23.0, 10.5),
    (-40.8, 14.0, 13.0),
    (-41.0, 0.0, 13.0),
)


def _add_tongue(half: _Half) -> None:
    rows = []
    share = np.array([0.0, 0.45, 0.8, 1.0])
    for number, (y, z, width) in enumerate(TONGUE):
        x = share * width
        top = 1.0 if number >= 2 else -0.3
        points = np.stack(
            [x, y - top * np.array([0.5, 0.0, 0.9, 3.0]), np.full(4, z) - 2.5 * share**2 * (number < 4)], 1
        )
        uv = np.stack([0.5 + 0.006 * x, np.full(4, 0.1 + 0.01 * number)], 1)
        rows.append(half.add(points, uv, layer="tongue", side=-1, ring=number))
    for lower, upper in pairwise(rows):
        half.triangles.append(_strip(lower, upper, closed=False)[:, ::-1])


def _mirrored(half: _Half, rows: dict[str, Int[np.ndarray, "_"]], layout: HalfLayout) -> FaceMesh:
    points, uv = np.concatenate(half.points), np.concatenate(half.uv)
    triangles = np.concatenate(half.triangles)
    columns = {name: np.concatenate(values) for name, values in half.columns.items()}
    middle: Bool[np.ndarray, "_"] = points[:, 0] == 0.0
    count = len(points)
    partner = np.arange(count)
    partner[~middle] = count + np.arange(int((~middle).sum()))
    mirror = np.concatenate([partner, np.arange(count)[~middle]])
    front = points[:, :2].copy()
    front[: len(layout.parameters)] = head_form(layout.parameters)[:, :2]
    front[layout.parameters.shape[0] : len(layout.parameters) + len(rows["slit"]) - 1] = front[rows["slit"][:-1]]
    front[middle, 0] = 0.0
    flip = np.array([-1.0, 1.0])
    anchor = columns["anchor"].astype(np.int64)
    return FaceMesh(
        points=np.concatenate([points, points[~middle] * np.array([-1.0, 1.0, 1.0])]),
        triangles=np.concatenate([triangles, partner[triangles][:, ::-1]]),
        uv=np.concatenate([uv, np.stack([1.0 - uv[~middle, 0], uv[~middle, 1]], 1)]),
        layer=np.concatenate([columns["layer"], columns["layer"][~middle]]).astype(np.int64),
        front=np.concatenate([front, front[~middle] * flip]),
        side=np.concatenate([columns["side"], columns["side"][~middle]]).astype(np.int64),
        ring=np.concatenate([columns["ring"], columns["ring"][~middle]]).astype(np.int64),
        anchor=np.concatenate([anchor, partner[anchor[~middle]]]),
        follows=np.concatenate([columns["follows"], columns["follows"][~middle]]),
        mirror=mirror,
        rows=rows,
    )
