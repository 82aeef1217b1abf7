"""What lies behind the openings of a face that is a mask: eyeballs, teeth, tongue and the walls of the mouth.

Many face models, ICT-FaceKit's face and Surrey among them, have holes where the eyes and the mouth are. These parts are
no reconstruction: they are made to fit the openings of a person's face, in plain colours, and named so that a user can
put better ones in their place. Models with eyes and mouth of their own have no such openings and get none.

Convention: model space, millimetres; sides are the subject's. Sizes of the mouth are for lips that are 50 mm wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from models.face.inner_shapes import IRIS, RGB, Piece, ball_pieces, mouth_pieces
from models.face.morphable import MorphableModel

LEFT_EYE, RIGHT_EYE, INNER_LIPS = range(42, 48), range(36, 42), range(60, 68)
NEAR_SHARE, LARGEST_SHARE = 0.4, 2.5
"""An edge of the mesh goes round an eye or the mouth if the landmarks are no further from it, as a share of their own
width, and if it is not wider than they are by more than this: the outline of a whole face is no mouth."""

MIDDLE_SHARE, LEAST_HALF_MM, DEEPEST_MM = 0.5, 2.0, 45.0
"""The middle of an opening, and how far behind it something can lie that fills it; the back of a head is further."""
EYE_BEFORE_MM, MOUTH_BEHIND_MM = 8.0, 3.0
"""Eyeballs stand out between the lids; lips lie before the edge of a mouth themselves, and what fills it behind."""

RADIUS_PER_WIDTH = 0.58
"""Of an eyeball, by the width of the opening: between 14 and 16 mm for ICT-FaceKit's own eyeballs."""
CLEARANCE_MM = 0.15
"""The lids lie on the eyeball, and never in it."""
FITTING_STEPS = 20
STILL_MM = 0.01
LIDS_REACH, SLOPE, LONGEST_RETREAT_MM = 1.4, 1.2, 4.0
"""How far the lids go from the centre of an eyeball, in radii; how much further back than the lids are in it an eyeball
must go, since they do not lie straight before it; and how far at most."""

GAZE_DEG = 30.0
"""How far the shapes eyeLook… turn an eyeball at weight 1; ARKit says nothing about it."""
GAZE = {"Up": (1.0, 0.0), "Down": (-1.0, 0.0), "In": (0.0, -1.0), "Out": (0.0, 1.0)}
"""Turn upwards, and away from the nose."""

HINGE_LANDMARKS, CHIN_LANDMARK, CHIN_REACH_MM = (0, 16), 8, 12.0
LEAST_LIGHT, MOST_LIGHT = 0.2, 1.1


@dataclass(frozen=True)
class Openings:
    """Edges of a face model's mesh that go round its eyes and mouth, as vertices in order; empty where it is closed."""

    left_eye: Int[np.ndarray, "A"]
    right_eye: Int[np.ndarray, "B"]
    mouth: Int[np.ndarray, "C"]
    chin: Int[np.ndarray, "D"]
    """Vertices that say how the jaw moves."""
    surface: Int[np.ndarray, "S"]
    """Vertices that some triangle uses."""
    hinge: Int[np.ndarray, "2"]
    """Vertices before the ears, about which it turns."""

    @property
    def any(self) -> bool:
        """Whether there is something to put in."""
        return bool(len(self.left_eye) or len(self.right_eye) or len(self.mouth))


@dataclass(frozen=True)
class InnerParts:
    """Parts of one person's face with the motion of every morph target."""

    vertices: Float[np.ndarray, "P 3"]
    targets: Float[np.ndarray, "N P 3"]
    """Displacements at weight 1."""
    colours: Float[np.ndarray, "P 3"]
    """As they are displayed, with the shadows of lids and lips."""
    pieces: tuple[Piece, ...]
    """Names, colours and triangles."""

    @property
    def triangles(self) -> Int[np.ndarray, "T 3"]:
        """Of all pieces."""
        return np.concatenate([piece.triangles for piece in self.pieces])

    def moved(self, weights: Float[np.ndarray, "N"]) -> Float[np.ndarray, "P 3"]:
        """The vertices under an expression."""
        return (self.vertices + np.einsum("n,npc->pc", weights, self.targets)).astype(np.float32)


def find_openings(model: MorphableModel) -> Openings:
    """The edges round eyes and mouth of a face model."""
    mean, triangles = model.mean.double().numpy(), model.triangles.numpy()
    marks = model.landmarks(model.mean[None])[0].double().numpy()
    loops = boundary_loops(triangles)

    surface = np.unique(triangles)
    used = mean[surface]

    def has(part: str) -> bool:
        return bool(model.part(part).numpy()[surface].any())

    def around(landmarks: Sequence[int], before_mm: float) -> np.ndarray:
        points = marks[list(landmarks)]
        width = float(np.ptp(points[:, 0]))
        best, least = np.zeros(0, np.int64), NEAR_SHARE * width
        for loop in loops:
            edge = mean[loop]
            if np.ptp(edge, axis=0).max() > LARGEST_SHARE * width:
                continue
            distance = float(np.linalg.norm(points[:, None] - edge[None], axis=2).min(1).mean())
            if distance < least and not _filled(edge, np.delete(used, np.searchsorted(surface, loop), 0), before_mm):
                best, least = loop, distance
        return best

    near_chin = np.flatnonzero(np.linalg.norm(mean - marks[CHIN_LANDMARK], axis=1) < CHIN_REACH_MM)
    hinge = [int(np.linalg.norm(mean - marks[place], axis=1).argmin()) for place in HINGE_LANDMARKS]
    none = np.zeros(0, np.int64)
    left, right = (
        none if has("eyes") else around(landmarks, EYE_BEFORE_MM) for landmarks in (LEFT_EYE, RIGHT_EYE)
    )  # fmt: skip
    mouth = none if has("mouth") else around(INNER_LIPS, -MOUTH_BEHIND_MM)
    return Openings(left, right, mouth, near_chin, surface, np.array(hinge))


def _filled(edge: np.ndarray, points: np.ndarray, before_mm: float) -> bool:
    """Whether something of the mesh lies behind an opening: lids have an edge before eyeballs too."""
    centre, half = edge.mean(0), 0.5 * np.ptp(edge, axis=0)[:2]
    aside = (points[:, :2] - centre[:2]) / np.maximum(MIDDLE_SHARE * half, LEAST_HALF_MM)
    behind = edge[:, 2].mean() - points[:, 2]
    return bool(((np.linalg.norm(aside, axis=1) < 1.0) & (behind > -before_mm) & (behind < DEEPEST_MM)).any())


def boundary_loops(triangles: Int[np.ndarray, "F 3"]) -> list[Int[np.ndarray, "_"]]:
    """Closed chains of edges that belong to one triangle only; chains that cross themselves are left out."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    known = {(int(a), int(b)) for a, b in edges}
    border = [(a, b) for a, b in known if (b, a) not in known]
    following: dict[int, int] = {}
    crossing = set()
    for a, b in border:
        if a in following:
            crossing.add(a)
        following[a] = b
    loops, seen = [], set(crossing)
    for start in sorted(following):
        chain, place = [], start
        while place in following and place not in seen:
            seen.add(place)
            chain.append(place)
            place = following[place]
        if len(chain) > 2 and place == start:
            loops.append(np.array(chain))
    return loops


def make_inner_parts(
    openings: Openings,
    vertices: Float[np.ndarray, "V 3"],
    *,
    names: Sequence[str],
    targets: Float[np.ndarray, "N V 3"],
    light: Float[np.ndarray, "3"],
    iris: RGB = IRIS,
) -> InnerParts | None:
    """Parts that fit the openings of a neutral face; None if it has none.

    The eyeballs turn by ARKit's eyeLook… shapes, the lower teeth and the tongue go with the jaw, the mouth's walls with
    the lips too. `light` is what the colours are multiplied with, so that eyes do not shine in a dark photo.
    `iris`: its colour in neutral light.
    """
    if not openings.any:
        return None
    places, moves, shades, pieces, start = [], [], [], [], 0

    def add(points: np.ndarray, motion: np.ndarray, shade: np.ndarray, own: Sequence[Piece]) -> None:
        nonlocal start
        places.append(points)
        moves.append(motion)
        shades.append(shade)
        for piece in own:
            colour = np.clip(np.asarray(piece.colour) * np.clip(light, LEAST_LIGHT, MOST_LIGHT), 0.0, 1.0)
            shown = (float(colour[0]), float(colour[1]), float(colour[2]))
            pieces.append(replace(piece, colour=shown, triangles=piece.triangles + start))
        start += len(points)

    for side, loop in (("Left", openings.left_eye), ("Right", openings.right_eye)):
        if len(loop):
            centre, radius = fit_eyeball(vertices[loop])
            points, shade, own = ball_pieces(radius, name=f"eye_{side.lower()}", iris=iris)
            near = np.linalg.norm(vertices[openings.surface] - centre, axis=1) < LIDS_REACH * radius
            lids = openings.surface[near]
            moves_back = [_retreat(vertices[lids], target[lids], centre, radius) for target in targets]
            turned = [_gaze(points, name, side) for name in names]
            motion = [turn - [0.0, 0.0, back] for turn, back in zip(turned, moves_back, strict=True)]
            add(points + centre, np.stack(motion), shade, own)
    if len(openings.mouth):
        jaw = [
            _jaw_motion(vertices, target, openings)
            if name.startswith("jaw") or not any(one.startswith("jaw") for one in names)
            else (np.eye(3), np.zeros(3))
            for name, target in zip(names, targets, strict=True)
        ]
        hinge = vertices[openings.hinge].mean(0)
        points, with_lips, with_jaw, shade, own = mouth_pieces(vertices[openings.mouth])
        motion = []
        for target, (turn, shift) in zip(targets, jaw, strict=True):
            turned = (points - hinge) @ turn.T + hinge + shift - points
            motion.append(with_jaw[:, None] * turned + with_lips @ target[openings.mouth])
        add(points, np.stack(motion), shade, own)
    colours = np.zeros((start, 3))
    for piece in pieces:
        colours[np.unique(piece.triangles)] = piece.colour
    return InnerParts(
        vertices=np.concatenate(places).astype(np.float32),
        targets=np.concatenate(moves, 1).astype(np.float32),
        colours=(colours * np.concatenate(shades)[:, None]).astype(np.float32),
        pieces=tuple(pieces),
    )


def fit_eyeball(edge: Float[np.ndarray, "L 3"]) -> tuple[Float[np.ndarray, "3"], float]:
    """Centre and radius of the eyeball behind the edge of the lids: least squares, then as small as the lids ask.

    The radius is given by the width of the opening; a free one is not determined by so narrow a band.
    """
    edge = edge.astype(np.float64)
    radius = RADIUS_PER_WIDTH * float(np.linalg.norm(edge[edge[:, 0].argmax()] - edge[edge[:, 0].argmin()]))
    centre = edge.mean(0) - [0.0, 0.0, radius]
    for _ in range(FITTING_STEPS):
        away = centre - edge
        distance = np.linalg.norm(away, axis=1, keepdims=True)
        slope = away / distance
        centre = centre - np.linalg.lstsq(slope, (distance - radius)[:, 0], rcond=None)[0]
    return centre, float(np.linalg.norm(edge - centre, axis=1).min()) - CLEARANCE_MM


def steady_gaze(names: Sequence[str], weights: Float[np.ndarray, "*T N"]) -> Float[np.ndarray, "*T N"]:
    """Weights with both eyes looking straight ahead or together up and down.

    Landmarks know the lids and not the pupils: sideways the weights say nothing, and eyes that follow them squint.
    """
    steady = np.array(weights, copy=True)
    for direction in GAZE:
        both = [place for place, name in enumerate(names) if name in _gaze_names(direction)]
        if both:
            mean = np.clip(steady[..., both].mean(-1, keepdims=True), 0.0, 1.0)
            steady[..., both] = mean if direction in ("Up", "Down") else 0.0
    return steady


def _gaze_names(direction: str) -> tuple[str, str]:
    return f"eyeLook{direction}Left", f"eyeLook{direction}Right"


def _retreat(lids: np.ndarray, target: np.ndarray, centre: np.ndarray, radius: float) -> float:
    """How far an eyeball goes back under a target: lids on straight lines would cut through it when they close."""
    moving = np.linalg.norm(target, axis=1) > STILL_MM
    moved = lids[moving] + target[moving]
    if not len(moved):
        return 0.0
    deep = radius + CLEARANCE_MM - float(np.linalg.norm(moved - centre, axis=1).min())
    return min(max(0.0, SLOPE * deep), LONGEST_RETREAT_MM)


def _gaze(points: np.ndarray, name: str, side: str) -> np.ndarray:
    """Displacement of an eyeball about the origin."""
    for direction, (up, outwards) in GAZE.items():
        if name == f"eyeLook{direction}{side}":
            pitch = -np.deg2rad(GAZE_DEG) * up
            yaw = np.deg2rad(GAZE_DEG) * outwards * (1.0 if side == "Left" else -1.0)
            return points @ (_about_y(yaw) @ _about_x(pitch)).T - points
    return np.zeros_like(points)


def _jaw_motion(vertices: np.ndarray, target: np.ndarray, openings: Openings) -> tuple[np.ndarray, np.ndarray]:
    """Turn about the axis through the hinges, and shift, that bring the chin where a target brings it."""
    hinge = vertices[openings.hinge].mean(0)
    before = vertices[openings.chin].mean(0) - hinge
    after = before + target[openings.chin].mean(0)
    angle = np.arctan2(after[2], after[1]) - np.arctan2(before[2], before[1])
    turn = _about_x(float((angle + np.pi) % (2.0 * np.pi) - np.pi))
    return turn, after - turn @ before


def _about_x(angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])


def _about_y(angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
