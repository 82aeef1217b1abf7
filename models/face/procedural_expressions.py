"""The 52 ARKit expressions of the procedural face as displacement fields at full activation.

Convention: millimetres in model space. `mouthClose` is a correction: it closes the lips while `jawOpen` is 1.
Source: names and meaning as in Apple's ARFaceAnchor.BlendShapeLocation; amplitudes by eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from models.face.procedural_parts import LAYERS, FaceMesh, eye_directions, eye_surface
from models.face.procedural_shape import (
    INNER_CANTHUS,
    MOUTH_CORNER,
    OUTER_CANTHUS,
    SLIT_END,
    Points,
    Values,
    eye_margin,
    lid_depth,
    lip_heights,
    smooth_step,
)

ARKIT_NAMES = (
    *(f"eye{motion}Left" for motion in ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")),
    *(f"eye{motion}Right" for motion in ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")),
    *("jawForward", "jawLeft", "jawRight", "jawOpen"),
    *("mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight"),
    *(f"mouth{motion}{side}" for motion in ("Smile", "Frown", "Dimple", "Stretch") for side in ("Left", "Right")),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *(f"mouth{motion}{side}" for motion in ("Press", "LowerDown", "UpperUp") for side in ("Left", "Right")),
    *("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut"),
)

JAW_HINGE = np.array([0.0, 4.0, -42.0])
JAW_OPEN_RAD = np.radians(18.0)
# Displacement of the tongue's rows from its underside over the tip to its root.
TONGUE_OUT_MM = np.array([[0, 6.5, 27], [0, 5.5, 36], [0, 6.5, 39], [0, 8.5, 33], [0, 7.0, 17], [0, 0, 0]], dtype=float)
LIPS_MEET = 0.3
"""Share of the jaw's motion that closed lips follow when the jaw is open."""
GAZE_RAD = {"LookDown": (0.42, 0.0), "LookUp": (-0.38, 0.0), "LookIn": (0.0, -0.45), "LookOut": (0.0, 0.45)}
# Share of the eye's opening by which the upper lid comes down and the lower lid comes up.
LIDS = {
    "Blink": (0.88, 0.12),
    "LookDown": (0.42, -0.10),
    "LookUp": (-0.20, 0.06),
    "LookIn": (0.0, 0.0),
    "LookOut": (0.0, 0.0),
    "Squint": (0.14, 0.30),
    "Wide": (-0.26, -0.08),
}


def expression_fields(mesh: FaceMesh) -> Float[np.ndarray, "52 V 3"]:
    """Displacements in the order of `ARKIT_NAMES`."""
    motion = _Motion(mesh)
    fields: dict[str, Points] = {}
    for name, field in {**_eye_fields(motion), **_left_fields(motion)}.items():
        fields[name + "Left"] = field
        fields[name + "Right"] = field[mesh.mirror] * np.array([-1.0, 1.0, 1.0])
    fields |= _jaw_fields(motion) | _middle_fields(motion)
    fields["mouthClose"] = _mouth_close(motion)
    return np.stack([fields[name] for name in ARKIT_NAMES])


@dataclass(frozen=True)
class _Motion:
    """Weights over the mesh from which fields are put together."""

    mesh: FaceMesh

    def layer(self, *names: str) -> Values:
        return np.isin(self.mesh.layer, [LAYERS.index(name) for name in names]).astype(float)

    @cached_property
    def lower(self) -> Values:
        """0 above the mouth, 1 below it; jumps along the slit, changes smoothly beyond its corners."""
        x, y = np.abs(self.mesh.front[:, 0]), self.mesh.front[:, 1]
        distance = np.abs(y - lip_heights(x)[1])
        beyond = np.maximum(x - SLIT_END[0], 0.0)
        jump = smooth_step(SLIT_END[0] - x, 0.0, 13.0)
        band = 13.0 + 0.75 * beyond
        away = jump + (1.0 - jump) * smooth_step(distance, 0.0, band)
        return 0.5 - 0.5 * self.mesh.side * away

    @cached_property
    def lid_distance(self) -> Values:
        front = np.stack([np.abs(self.mesh.front[:, 0]), self.mesh.front[:, 1]], 1)
        return cKDTree(eye_margin(40)).query(front)[0]

    def spot(self, x: float, y: float, width: float, height: float) -> Values:
        """Gaussian of the front view on skin."""
        front = self.mesh.front
        weight = np.exp(-(((front[:, 0] - x) / width) ** 2) - ((front[:, 1] - y) / height) ** 2)
        return weight * self.layer("skin")

    def follow(self, field: Points) -> Points:
        """Let rims and pouch move with the skin that they hang on."""
        mesh = self.mesh
        hanging = mesh.anchor != np.arange(len(mesh.anchor))
        moved = field.copy()
        moved[hanging] = field[mesh.anchor[hanging]] * mesh.follows[hanging, None]
        return moved

    def skin(self, *terms: tuple[Values, tuple[float, float, float]]) -> Points:
        """Sum of weight times displacement over the skin, handed on to what hangs on it; the eyeballs stay."""
        field = sum(weight[:, None] * np.array(step) for weight, step in terms)
        return self.follow(np.asarray(field))


def _eye_fields(motion: _Motion) -> dict[str, Points]:
    """Motions of the subject's left eye and its lids."""
    mesh = motion.mesh
    fields = {}
    for name, (upper, lower) in LIDS.items():
        field = _lid_field(motion, upper, lower)
        if name in GAZE_RAD:
            down, out = GAZE_RAD[name]
            turn_x = np.array([[1, 0, 0], [0, np.cos(down), -np.sin(down)], [0, np.sin(down), np.cos(down)]])
            turn_y = np.array([[np.cos(out), 0, np.sin(out)], [0, 1, 0], [-np.sin(out), 0, np.cos(out)]])
            ball = np.nonzero((mesh.layer == LAYERS.index("eye")) & (mesh.points[:, 0] > 0.0))[0]
            directions = eye_directions()
            field[ball] = eye_surface(directions @ (turn_x @ turn_y).T) - eye_surface(directions)
        fields["eye" + name] = field
    lift = motion.spot(31.0, 20.0, 16.0, 7.0) * smooth_step(motion.lid_distance, 1.0, 7.0)
    fields["eyeSquint"] = fields["eyeSquint"] + motion.skin((lift, (0.0, 1.4, 0.6)))
    return fields


def _lid_field(motion: _Motion, upper_share: float, lower_share: float) -> Points:
    """Slide the lids over the ball: the margin by a share of the opening, the skin behind it ever less."""
    mesh = motion.mesh
    field = np.zeros_like(mesh.points)
    x, y = mesh.front.T
    margin = eye_margin(80)
    upper_row, lower_row = margin[:82], np.concatenate([margin[:1], margin[81:][::-1]])
    upper = np.interp(x, upper_row[:, 0], upper_row[:, 1])
    lower = np.interp(x, lower_row[:, 0], lower_row[:, 1])
    within = (x > INNER_CANTHUS[0]) & (x < OUTER_CANTHUS[0]) & (mesh.layer == LAYERS.index("skin"))
    opening = np.where(within, upper - lower, 0.0)
    above = y > 0.5 * (upper + lower)
    reach = np.where(above, 11.0, 9.0)
    behind = np.maximum(np.where(above, y - upper, lower - y), 0.0)
    share = np.maximum(1.0 - behind / reach, 0.0) ** 1.6
    step = np.where(above, -upper_share, lower_share) * opening * share
    moved = mesh.front + np.stack([np.zeros_like(step), step], 1)
    field[:, 1] = step
    # Relative to where the ball would have the skin now, so that nothing moves where the lid does not.
    relief = mesh.points[:, 2] - lid_depth(mesh.front)
    extent = np.clip(np.abs(step) / 3.0, 0.0, 1.0)
    field[:, 2] = np.where(
        within & (share > 0.0), lid_depth(moved) - lid_depth(mesh.front) - relief * share * extent, 0.0
    ) * np.minimum(1.0, share * 4.0)
    return motion.follow(field)


def _left_fields(motion: _Motion) -> dict[str, Points]:
    """Motions of the subject's left half; names lack their side."""
    spot, lower = motion.spot, motion.lower
    upper = 1.0 - lower
    clear = 0.25 + 0.75 * smooth_step(motion.lid_distance, 0.5, 8.0)
    clear = np.where(motion.lid_distance < 0.5, 0.0, clear * smooth_step(motion.lid_distance, 0.0, 5.0))
    corner_x, corner_y = MOUTH_CORNER
    return {
        "browDown": motion.skin(
            (spot(20.0, 48.0, 15.0, 9.0) * clear, (-1.8, -5.2, 1.4)),
            (spot(42.0, 48.0, 13.0, 9.0) * clear, (-0.8, -3.0, 0.6)),
            (spot(5.0, 40.0, 8.0, 9.0) * clear, (-0.4, -1.8, 1.0)),
        ),
        "browOuterUp": motion.skin(
            (spot(43.0, 51.0, 15.0, 12.0) * clear, (0.3, 7.0, -0.6)), (spot(46.0, 68.0, 16.0, 14.0), (0.0, 1.5, 0.0))
        ),
        "cheekSquint": motion.skin((spot(38.0, 9.0, 16.0, 10.0) * clear, (0.2, 5.0, 2.2))),
        "noseSneer": motion.skin(
            (spot(14.0, -5.0, 7.5, 9.0), (0.6, 4.6, -0.3)),
            (spot(15.0, -22.0, 9.0, 9.0) * upper, (0.5, 3.4, 0.4)),
            (spot(13.0, 14.0, 9.0, 10.0), (-0.3, 2.6, 1.2)),
        ),
        "mouthSmile": motion.skin(
            (spot(corner_x + 2.0, corner_y, 17.0, 14.0), (6.4, 6.8, -4.8)),
            (spot(40.0, -12.0, 14.0, 13.0), (1.6, 3.6, 3.4)),
            (spot(9.0, -38.0, 12.0, 10.0), (1.8, -0.6, -1.2)),
        ),
        "mouthFrown": motion.skin(
            (spot(corner_x + 1.0, corner_y - 1.0, 13.0, 11.0), (0.8, -6.2, -0.8)),
            (spot(20.0, -56.0, 11.0, 9.0), (0.0, -1.5, 1.2)),
        ),
        "mouthDimple": motion.skin((spot(corner_x + 2.0, corner_y, 11.0, 10.0), (5.0, 1.2, -4.2))),
        "mouthStretch": motion.skin(
            (spot(corner_x + 1.0, corner_y - 2.0, 15.0, 13.0), (7.2, -3.2, -4.2)),
            (spot(34.0, -58.0, 15.0, 13.0), (1.6, -2.4, -0.8)),
        ),
        "mouthPress": motion.skin(
            (spot(14.0, -33.0, 13.0, 6.0) * upper, (0.8, -0.7, -1.8)),
            (spot(14.0, -40.0, 13.0, 6.5) * lower, (0.8, 0.9, -2.2)),
        ),
        "mouthLowerDown": motion.skin((spot(11.0, -41.0, 10.5, 10.0) * lower, (1.2, -6.4, -0.6))),
        "mouthUpperUp": motion.skin(
            (spot(11.0, -31.0, 10.0, 10.0) * upper, (1.0, 6.2, -0.4)), (spot(18.0, -12.0, 9.0, 9.0), (0.3, 2.2, 0.6))
        ),
    }


def _jaw_fields(motion: _Motion) -> dict[str, Points]:
    mesh = motion.mesh
    weight = _jaw_weight(motion)
    # The jaw swings sideways about its hinges, which stay.
    swing = weight * np.clip((mesh.points[:, 2] - JAW_HINGE[2]) / 75.0, 0.0, 1.1)
    return {
        "jawOpen": weight[:, None] * _jaw_rotation(mesh),
        "jawForward": weight[:, None] * np.array([0.0, -1.2, 8.5]),
        "jawLeft": swing[:, None] * np.array([8.0, 0.0, 0.0]),
        "jawRight": swing[:, None] * np.array([-8.0, 0.0, 0.0]),
    }


def _jaw_rotation(mesh: FaceMesh) -> Points:
    """Displacement of every vertex if it turned with the opening jaw."""
    arm = mesh.points - JAW_HINGE
    cosine, sine = np.cos(JAW_OPEN_RAD), np.sin(JAW_OPEN_RAD)
    turned = np.stack([arm[:, 0], cosine * arm[:, 1] - sine * arm[:, 2], sine * arm[:, 1] + cosine * arm[:, 2]], 1)
    # Skin over the chin does not follow the bone into the throat.
    return (turned - arm) * np.array([1.0, 1.0, 0.75])


def _jaw_weight(motion: _Motion) -> Values:
    """How far a vertex goes with the jaw bone."""
    mesh = motion.mesh
    weight = motion.lower * motion.layer("skin") * smooth_step(mesh.points[:, 2], -62.0, -20.0)
    weight = motion.follow(np.repeat(weight[:, None], 3, 1))[:, 0]
    pouch = mesh.layer == LAYERS.index("pouch")
    own = np.where(mesh.side < 0, 1.0, 0.0)
    lips = motion.lower[mesh.anchor]
    weight[pouch] = np.where(mesh.ring <= 2, lips, 0.5 * lips + 0.5 * np.where(mesh.ring > 5, 0.5, own))[pouch]
    return np.maximum(weight, motion.layer("lower_teeth", "tongue"))


def _mouth_close(motion: _Motion) -> Points:
    """Bring the parted lips of a lowered jaw together: they keep `LIPS_MEET` of the jaw's motion."""
    mesh = motion.mesh
    x, y = np.abs(mesh.front[:, 0]), mesh.front[:, 1]
    distance = np.hypot(y - lip_heights(x)[1], np.maximum(x - SLIT_END[0], 0.0))
    rigid, reach = np.where(mesh.side > 0, 6.0, 8.0), np.where(mesh.side > 0, 9.0, 13.0)
    near = np.exp(-((np.maximum(distance - rigid, 0.0) / reach) ** 2)) * motion.layer("skin")
    return motion.follow((near * (LIPS_MEET - _jaw_weight(motion)))[:, None] * _jaw_rotation(mesh))


def _middle_fields(motion: _Motion) -> dict[str, Points]:
    """Motions of both halves at once."""
    mesh, spot, lower = motion.mesh, motion.spot, motion.lower
    upper = 1.0 - lower
    clear = smooth_step(motion.lid_distance, 0.0, 7.0)
    mouth = spot(0.0, -36.5, 26.0, 15.0)
    x, y = mesh.front.T
    up, slit, low = lip_heights(x)
    inwards = -np.tanh(x / 20.0) * spot(0.0, -36.5, 34.0, 16.0)
    sideways = np.array([1.0, 0.0, 0.0])
    lip_up = (1.0 - smooth_step((y - slit) / np.maximum(up - slit, 2.5), 0.7, 2.2)) * upper * mouth
    lip_low = (1.0 - smooth_step((slit - y) / np.maximum(slit - low, 2.5), 0.7, 2.0)) * lower * mouth
    middle = np.exp(-((x / 17.0) ** 2))
    fields = {
        "browInnerUp": motion.skin(
            (spot(0.0, 50.0, 26.0, 13.0) * clear, (0.0, 6.6, 0.2)), (spot(0.0, 68.0, 30.0, 15.0), (0.0, 2.0, 0.4))
        ),
        "cheekPuff": motion.skin(
            (spot(40.0, -22.0, 17.0, 17.0), (4.0, 0.0, 6.6)),
            (spot(-40.0, -22.0, 17.0, 17.0), (-4.0, 0.0, 6.6)),
            (spot(0.0, -27.0, 18.0, 9.0) * upper, (0.0, 0.0, 2.4)),
            (spot(0.0, -49.0, 18.0, 8.0), (0.0, 0.0, 2.4)),
        ),
        "mouthFunnel": motion.follow(inwards[:, None] * sideways * 6.0)
        + motion.skin(
            (mouth, (0.0, 0.0, 3.6)),
            (lip_up * middle, (0.0, 4.0, 2.8)),
            (lip_low * middle, (0.0, -6.0, 2.6)),
        ),
        "mouthPucker": motion.follow(inwards[:, None] * sideways * 13.0)
        + motion.skin((mouth, (0.0, 0.3, 4.6)), (lip_up + lip_low, (0.0, 0.0, 2.6))),
        "mouthLeft": motion.skin(
            (spot(4.0, -38.0, 32.0, 18.0), (8.0, 0.6, 0.0)), (spot(28.0, -37.0, 11.0, 11.0), (1.0, 1.0, -2.4))
        ),
        "mouthRight": motion.skin(
            (spot(-4.0, -38.0, 32.0, 18.0), (-8.0, 0.6, 0.0)), (spot(-28.0, -37.0, 11.0, 11.0), (-1.0, 1.0, -2.4))
        ),
        "mouthRollLower": motion.skin((lip_low, (0.0, 3.4, -4.4))),
        "mouthRollUpper": motion.skin((lip_up, (0.0, -2.6, -4.0))),
        "mouthShrugLower": motion.skin(
            (spot(0.0, -60.0, 20.0, 13.0), (0.0, 4.6, 1.0)), (lip_low * middle, (0.0, 2.6, 3.0))
        ),
        "mouthShrugUpper": motion.skin(
            (lip_up * middle, (0.0, 3.2, 2.2)), (spot(0.0, -20.0, 16.0, 9.0) * upper, (0.0, 1.4, 0.6))
        ),
    }
    lips = motion.skin((lip_up * middle, (0.0, 2.4, 0.6)), (lip_low * middle, (0.0, -7.0, 1.0)))
    rows = np.arange(len(TONGUE_OUT_MM))
    tongue = np.stack([np.interp(mesh.ring, rows, TONGUE_OUT_MM[:, axis]) for axis in range(3)], 1)
    fields["tongueOut"] = lips + motion.layer("tongue")[:, None] * tongue
    return fields
