"""Colours of the procedural face: mean albedo, albedo modes and part labels.

Convention: display-referred RGB, as `MorphableModel` asks for; the modes are scaled so that a coefficient of 1 is one
standard deviation.
Source: skin tones span the range of Weyrich et al., Analysis of Human Faces Using a Measurement-Based Skin Reflectance
Model, 2006; single values by eye.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from models.face.procedural_layout import BROW_LINE
from models.face.procedural_parts import LAYERS, FaceMesh
from models.face.procedural_shape import NOSTRIL_CENTRE, Values, bump, eye_margin, lip_heights, smooth_step
from models.types import PART_NAMES

SKIN = np.array([0.655, 0.515, 0.440])
LIPS = np.array([0.575, 0.355, 0.325])
BROWS = np.array([0.215, 0.160, 0.130])
SCLERA = np.array([0.775, 0.750, 0.730])
IRIS = np.array([0.335, 0.270, 0.215])
PUPIL = np.array([0.055, 0.050, 0.050])
TEETH = np.array([0.830, 0.795, 0.725])
GUMS = np.array([0.620, 0.370, 0.345])
TONGUE = np.array([0.650, 0.420, 0.390])
POUCH = np.array([0.400, 0.215, 0.195])
RIM = np.array([0.650, 0.455, 0.415])
NOSTRIL = np.array([0.235, 0.150, 0.125])

MODE_NAMES = (
    "melanin",
    "redness",
    "lips",
    "brows",
    "iris_light",
    "iris_blue",
    "cheeks",
    "forehead",
    "eye_shade",
    "beard",
)

Colours = Float[np.ndarray, "V 3"]


def _mix(base: Colours, weight: Values, colour: Float[np.ndarray, "3"]) -> Colours:
    return base + weight[:, None] * (colour - base)


def _brow_weight(mesh: FaceMesh) -> Values:
    """How much hair covers a vertex: a soft band that is thick at the nose and thin at the temple."""
    front = np.stack([np.abs(mesh.front[:, 0]), mesh.front[:, 1]], 1)
    t = np.linspace(0.0, 1.0, 120)
    knots = np.linspace(0.0, 1.0, len(BROW_LINE))
    line = np.stack([np.interp(t, knots, BROW_LINE[:, 0]), np.interp(t, knots, BROW_LINE[:, 1])], 1)
    distance, nearest = cKDTree(line).query(front)
    half_width = np.interp(t, [0.0, 0.15, 0.45, 0.75, 1.0], [2.7, 3.5, 3.4, 2.8, 1.6])[nearest]
    strength = np.interp(t, [0.0, 0.12, 0.6, 1.0], [0.6, 0.9, 0.95, 0.7])[nearest]
    return strength * (1.0 - smooth_step(distance / half_width, 0.3, 1.35)) * _on(mesh, "skin")


def _lip_weight(mesh: FaceMesh) -> Values:
    """1 on the vermilion, fading over a millimetre beyond its border."""
    x, y = mesh.front.T
    upper, _, lower = lip_heights(x)
    outside = np.maximum(np.maximum(y - upper, lower - y), np.abs(x) - 26.0)
    return (1.0 - smooth_step(outside, -0.3, 1.0)) * _on(mesh, "skin")


def _on(mesh: FaceMesh, *layers: str) -> Values:
    return np.isin(mesh.layer, [LAYERS.index(layer) for layer in layers]).astype(float)


def part_labels(mesh: FaceMesh) -> Int[np.ndarray, "_"]:
    """Index into `PART_NAMES` of every vertex; the rims of the lids count as skin."""
    parts = np.full(len(mesh.points), PART_NAMES.index("skin"))
    parts[_lip_weight(mesh) > 0.5] = PART_NAMES.index("lips")
    parts[_brow_weight(mesh) > 0.4] = PART_NAMES.index("brows")
    parts[_on(mesh, "eye") > 0.0] = PART_NAMES.index("eyes")
    parts[_on(mesh, "pouch", "upper_teeth", "lower_teeth", "tongue") > 0.0] = PART_NAMES.index("mouth")
    return parts


def _eye_regions(mesh: FaceMesh) -> tuple[Values, Values]:
    """Weights of the pupil and of the iris; the rest of the ball is white."""
    eye = _on(mesh, "eye")
    return eye * (mesh.ring <= 1), eye * ((mesh.ring >= 2) & (mesh.ring <= 5))


def mean_albedo(mesh: FaceMesh) -> Colours:
    """Colours of a face of medium tone with brown eyes."""
    x, y = np.abs(mesh.front[:, 0]), mesh.front[:, 1]
    front = np.stack([x, y], 1)
    skin = _on(mesh, "skin")
    colour = np.tile(SKIN, (len(mesh.points), 1))
    flush = (
        0.55 * bump(front, 40.0, 0.0, 15.0, 13.0)
        + 0.5 * bump(front, 0.0, -6.0, 11.0, 8.0)
        + 0.25 * bump(front, 0.0, -66.0, 14.0, 9.0)
    )
    colour *= 1.0 - flush[:, None] * np.array([0.01, 0.075, 0.08])
    pale = bump(front, 0.0, 75.0, 36.0, 22.0)
    colour *= 1.0 + 0.025 * pale[:, None]
    socket = np.exp(-((cKDTree(eye_margin(40)).query(front)[0] / 5.0) ** 2)) * skin
    colour *= 1.0 - socket[:, None] * np.array([0.045, 0.065, 0.055])
    colour = _mix(colour, _lip_weight(mesh), LIPS)
    slit = lip_heights(x)[1]
    parting = np.exp(-(((y - slit) / 0.7) ** 2)) * (x < 25.0) * skin
    colour = _mix(colour, 0.55 * parting, LIPS * 0.6)
    colour = _mix(colour, _brow_weight(mesh), BROWS)
    nostril = np.exp(-((((x - NOSTRIL_CENTRE[0]) / 3.0) ** 2 + ((y - NOSTRIL_CENTRE[1]) / 2.2) ** 2) ** 2))
    colour = _mix(colour, 0.95 * nostril * skin, NOSTRIL)
    colour = _mix(colour, _lash_weight(mesh), BROWS)
    pupil, iris = _eye_regions(mesh)
    eye = _on(mesh, "eye")
    # The lids shade the white beside the iris.
    colour = _mix(colour, eye, SCLERA)
    colour *= 1.0 - (0.11 * eye * smooth_step(mesh.ring.astype(float), 5.5, 9.0))[:, None]
    edge = np.interp(mesh.ring, [2, 3, 4, 5], [0.75, 1.06, 1.0, 0.65])
    colour = colour + iris[:, None] * (IRIS * edge[:, None] - colour)
    colour = _mix(colour, pupil, PUPIL)
    corner = eye * smooth_step(np.abs(np.abs(mesh.points[:, 0]) - 31.3), 9.0, 14.0)
    colour = _mix(colour, 0.6 * corner, RIM)
    colour = _mix(colour, _on(mesh, "rim") * (1.0 - _lash_weight(mesh)), RIM)
    colour = _mix(colour, _on(mesh, "pouch"), POUCH)
    colour *= 1.0 - 0.85 * (_on(mesh, "pouch") * smooth_step(mesh.ring.astype(float), 1.0, 4.0))[:, None]
    teeth = _on(mesh, "upper_teeth", "lower_teeth")
    colour = _mix(colour, teeth, TEETH)
    colour = _mix(colour, teeth * (mesh.ring == 0), GUMS)
    colour = _mix(colour, _on(mesh, "tongue"), TONGUE)
    return colour


def _lash_weight(mesh: FaceMesh) -> Values:
    """Darkness of the lashes along the margin, strong on the upper lid."""
    weight = np.zeros(len(mesh.points))
    lid = mesh.rows["lid"]
    count = (len(lid) - 2) // 2
    upper = 0.9 * np.sin(np.pi * np.linspace(0.08, 0.88, count)) ** 0.7
    strength = np.concatenate([[0.0], upper, [0.2], np.linspace(0.3, 0.0, count)])
    weight[lid] = strength
    for index in (lid, mesh.mirror[lid]):
        weight[index] = strength
        rim = np.nonzero((mesh.layer == LAYERS.index("rim")) & np.isin(mesh.anchor, index))[0]
        weight[rim] = 0.55 * weight[mesh.anchor[rim]] * (weight[mesh.anchor[rim]] > 0.5)
    return weight


def albedo_modes(mesh: FaceMesh) -> Float[np.ndarray, "T V 3"]:
    """Ten modes in the order of `MODE_NAMES`."""
    mean = mean_albedo(mesh)
    x, y = np.abs(mesh.front[:, 0]), mesh.front[:, 1]
    front = np.stack([x, y], 1)
    skin, lips, brows = _on(mesh, "skin", "rim"), _lip_weight(mesh), _brow_weight(mesh)
    lashes = _lash_weight(mesh)
    bare = skin * (1.0 - lips) * (1.0 - np.maximum(brows, lashes))
    _, iris = _eye_regions(mesh)
    melanin = bare[:, None] * np.array([-0.138, -0.138, -0.127]) * (mean / SKIN)
    melanin -= lips[:, None] * np.array([0.082, 0.072, 0.064])
    melanin -= (brows + 0.5 * lashes)[:, None] * np.array([0.050, 0.042, 0.034])
    melanin -= iris[:, None] * np.array([0.032, 0.028, 0.022])
    redness = (bare * (0.7 + 0.5 * bump(front, 40.0, 0.0, 20.0, 18.0)))[:, None] * np.array([0.010, -0.018, -0.016])
    modes = [
        melanin,
        redness,
        lips[:, None] * np.array([0.022, -0.020, -0.017]),
        brows[:, None] * np.array([0.080, 0.062, 0.040]),
        iris[:, None] * np.array([0.050, 0.045, 0.032]),
        iris[:, None] * np.array([-0.030, 0.012, 0.058]),
        (bare * bump(front, 42.0, -4.0, 16.0, 15.0))[:, None] * np.array([0.006, -0.016, -0.013]),
        (bare * bump(front, 0.0, 78.0, 40.0, 22.0))[:, None] * np.array([0.018, 0.016, 0.014]),
        (bare * bump(front, 31.0, 26.0, 17.0, 9.0))[:, None] * np.array([-0.026, -0.024, -0.018]),
        (bare * _beard(front))[:, None] * np.array([-0.030, -0.025, -0.020]),
    ]
    return np.stack(modes)


def _beard(front: Float[np.ndarray, "V 2"]) -> Values:
    x, y = front.T
    jaw = smooth_step(-y - 0.35 * x, 18.0, 44.0)
    moustache = np.exp(-(((x - 10.0) / 14.0) ** 2) - (((y + 22.0) / 6.0) ** 2))
    return np.clip(jaw + 0.8 * moustache, 0.0, 1.0) * (1.0 - smooth_step(x, 40.0, 62.0) * 0.5)
