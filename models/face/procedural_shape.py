"""The mean surface of the procedural face: a lofted head form with anatomical features on top.

Convention: model space as in models/types.py, with the origin inside the head, nasion at (0, 38, 38.5) and stomion at
(0, -35.8, 40). Surface parameters are (across, down) in millimetres: `across` runs from the midline (0) to the edge in
front of the ear (`ACROSS_MM`), `down` along the midline from the hairline to the neck. Front features are described in
(x, y) of the head form before features, which `head_parameters` maps back to surface parameters.
Source: distances follow the adult means of Farkas, Anthropometry of the Head and Face, 2nd ed. 1994 (n-gn 118,
zy-zy 135, en-en 32, ex-ex 90, n-sn 52, al-al 34, ch-ch 52, sn-ls 15, ls-sto 8) and the pupil distance of the
ISO/TS 16976-2 headforms (63); sexes averaged. What lies between those points is modelled by eye.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline, PchipInterpolator, RectBivariateSpline
from scipy.spatial import cKDTree

Points = Float[np.ndarray, "_ 3"]
Plane = Float[np.ndarray, "_ 2"]
Values = Float[np.ndarray, "_"]

ACROSS_MM = 105.0

EYE_CENTRE = np.array([31.3, 31.0, 13.4])
"""Centre of the subject's left eyeball; the pupil looks straight ahead."""
EYE_RADIUS_MM = 12.0
LID_RADIUS_MM = 13.4
INNER_CANTHUS = np.array([15.9, 29.6])
OUTER_CANTHUS = np.array([45.0, 31.9])
MOUTH_CORNER = np.array([26.0, -36.4])
SLIT_END = np.array([23.8, -36.2])
ALA_CENTRE = np.array([12.1, -6.0])
NOSTRIL_CENTRE = np.array([6.9, -10.2])

# Midline (y, z), edge in front of the ear (x, y, z), exponents of the cross-section between them and of its climb.
SECTIONS = np.array(
    [
        [111.0, 7.0, 48.0, 93.0, -29.0, 2.1, 0.85],
        [102.0, 19.0, 57.0, 84.5, -39.0, 2.15, 1.0],
        [88.0, 30.0, 63.5, 73.0, -46.0, 2.2, 1.2],
        [72.0, 36.2, 67.5, 60.0, -49.5, 2.12, 1.5],
        [56.0, 39.0, 68.6, 48.5, -51.0, 2.1, 1.5],
        [40.0, 37.2, 68.9, 36.5, -51.5, 2.15, 1.5],
        [20.0, 35.5, 68.6, 21.0, -52.0, 2.25, 1.5],
        [0.0, 37.5, 67.6, 6.0, -52.0, 2.1, 1.5],
        [-15.0, 40.0, 66.0, -7.0, -52.0, 1.95, 1.5],
        [-30.0, 41.0, 64.0, -19.0, -51.5, 1.85, 1.5],
        [-45.0, 39.0, 62.0, -29.0, -51.0, 1.8, 1.45],
        [-58.0, 37.3, 59.0, -38.0, -50.5, 1.72, 1.35],
        [-68.0, 36.6, 56.5, -44.5, -50.0, 1.62, 1.25],
        [-76.0, 33.0, 54.0, -50.0, -49.0, 1.52, 1.15],
        [-80.2, 26.5, 51.5, -54.5, -47.5, 1.45, 1.15],
        [-81.0, 16.0, 47.0, -58.5, -45.5, 1.5, 1.2],
        [-79.0, 2.0, 41.0, -61.5, -44.0, 1.6, 1.2],
        [-77.0, -10.0, 35.0, -63.5, -43.0, 1.7, 1.2],
    ]
)
MIDLINE_ROUNDING_MM = 10.0
DOWN_KNOTS = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(SECTIONS[:, :2], axis=0).T))])
DOWN_MM = float(DOWN_KNOTS[-1])


@lru_cache(maxsize=1)
def _splines() -> tuple[CubicSpline, RectBivariateSpline]:
    sections = CubicSpline(DOWN_KNOTS, SECTIONS)
    rows = np.linspace(0.0, DOWN_MM, 80)
    columns = np.linspace(0.0, 1.0, 60)
    angle = np.linspace(0.0, 0.5 * np.pi, 500)
    grid = np.empty((len(columns), len(rows)))
    for row, down in enumerate(rows):
        x = sections(down)[2] * np.sin(angle)
        curve = _section(x, np.full_like(x, down), sections)
        length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
        grid[:, row] = np.interp(columns * length[-1], length, x)
    return sections, RectBivariateSpline(columns, rows, grid)


def _section(x: Values, down: Values, sections: CubicSpline) -> Points:
    """Points of the head form at a given x: a superellipse, rounded where an exponent below 2 has an edge."""
    middle_y, middle_z, edge_x, edge_y, edge_z, exponent, climb = sections(down).T
    rounding = MIDLINE_ROUNDING_MM
    fraction = (np.hypot(x, rounding) - rounding) / (np.hypot(edge_x, rounding) - rounding)
    front = np.maximum(1.0 - np.clip(fraction, 0.0, 1.0) ** exponent, 0.0) ** (1.0 / exponent)
    return np.stack(
        [x, middle_y + (edge_y - middle_y) * (1.0 - front) ** climb, edge_z + (middle_z - edge_z) * front], 1
    )


def head_form(parameters: Plane) -> Points:
    """The head without nose, eyes and lips at surface parameters of the subject's left half."""
    sections, across_to_x = _splines()
    across, down = np.clip(parameters[:, 0] / ACROSS_MM, 0.0, 1.0), np.clip(parameters[:, 1], 0.0, DOWN_MM)
    return _section(across_to_x.ev(across, down), down, sections)


def head_parameters(front: Plane) -> Plane:
    """Surface parameters of front points (x, y) of the head form, by Newton steps; for points above the chin's edge."""
    parameters = np.stack([front[:, 0] * 1.05, np.interp(-front[:, 1], -SECTIONS[:15, 0], DOWN_KNOTS[:15])], 1)
    for _ in range(12):
        here = head_form(parameters)[:, :2]
        jacobian = np.stack([(head_form(parameters + 0.01 * step)[:, :2] - here) / 0.01 for step in np.eye(2)], axis=2)
        parameters = parameters + np.linalg.solve(jacobian, (front - here)[..., None])[..., 0]
    parameters[front[:, 0] == 0.0, 0] = 0.0
    return parameters


def eye_margin(count: int) -> Plane:
    """Closed outline of the subject's left eye opening: inner canthus, along the upper lid, outer canthus, lower lid.

    `count` points per lid between the canthi.
    """
    t = np.linspace(0.0, 1.0, count + 2)[1:-1, None]
    chord = INNER_CANTHUS + (OUTER_CANTHUS - INNER_CANTHUS) * t
    upper = 5.5 * (1.0 - np.abs(2.0 * t**0.86 - 1.0) ** 2.1) ** 1.1
    lower = 4.8 * (1.0 - np.abs(2.0 * t**1.12 - 1.0) ** 2.1) ** 1.1
    upper_row = chord + np.concatenate([np.zeros_like(t), upper], 1)
    lower_row = chord - np.concatenate([np.zeros_like(t), lower], 1)
    return np.concatenate([INNER_CANTHUS[None], upper_row, OUTER_CANTHUS[None], lower_row[::-1]])


_OUTER_UPPER = PchipInterpolator(
    [0.0, 2.8, 6.2, 10.5, 16.0, 22.0, 26.0], [-28.8, -28.4, -27.7, -28.9, -31.7, -34.7, -36.4]
)
_SLIT = PchipInterpolator([0.0, 3.5, 8.0, 14.0, 20.0, 23.8, 26.0], [-36.2, -35.9, -35.5, -35.7, -36.1, -36.2, -36.4])
_OUTER_LOWER = PchipInterpolator([0.0, 6.0, 11.0, 17.0, 22.0, 26.0], [-46.0, -45.5, -44.1, -41.1, -38.3, -36.4])


def lip_heights(x: Values) -> tuple[Values, Values, Values]:
    """Heights of the upper vermilion border, of the line between the lips and of the lower border at |x|."""
    x = np.clip(np.abs(x), 0.0, MOUTH_CORNER[0])
    return _OUTER_UPPER(x), _SLIT(x), _OUTER_LOWER(x)


def bump(front: Plane, x: float, y: float, width: float, height: float) -> Values:
    """Gaussian of the front view, repeated on the other side unless it stands on the midline."""
    dy = ((front[:, 1] - y) / height) ** 2
    left = np.exp(-(((front[:, 0] - x) / width) ** 2) - dy)
    return left if x == 0.0 else left + np.exp(-(((front[:, 0] + x) / width) ** 2) - dy)


def smooth_step(value: Values, low: float | Values, high: float | Values) -> Values:
    """0 below `low`, 1 above `high`, a quintic between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * t * (t * (6.0 * t - 15.0) + 10.0)


def lid_depth(front: Plane) -> Values:
    """Depth of the skin over the subject's left eyeball: a sphere that flattens away from the pupil."""
    offset = front - EYE_CENTRE[:2]
    aside = offset[:, 0] * np.where(offset[:, 0] > 0.0, 1.05, 0.95)
    limit = 12.0 + 5.0 * smooth_step(offset[:, 0], 0.0, 13.0)
    radius = np.hypot(aside, offset[:, 1])
    flattened = limit * np.tanh(radius / limit)
    return EYE_CENTRE[2] + np.sqrt(np.maximum(LID_RADIUS_MM**2 - flattened**2, 9.0))


# Midline of the nose: y of the head form, lowering, height over the head form. The tip hangs over the underside, which
# gives the underside rows of its own.
_NOSE = np.array(
    [
        [-120.0, 0.0, 0.0],
        [-17.0, 0.0, 0.0],
        [-15.2, 0.0, 0.2],
        [-13.0, 0.7, 5.4],
        [-11.0, 2.0, 10.4],
        [-9.0, 3.2, 14.5],
        [-7.0, 3.9, 17.5],
        [-5.0, 4.0, 19.2],
        [-2.5, 3.7, 19.7],
        [0.0, 3.0, 19.1],
        [3.0, 2.0, 17.8],
        [8.0, 1.0, 15.3],
        [18.0, 0.2, 11.0],
        [28.0, 0.0, 6.6],
        [38.0, 0.0, 2.2],
        [47.0, 0.0, 0.0],
        [120.0, 0.0, 0.0],
    ]
)
_NOSE_DROOP = PchipInterpolator(_NOSE[:, 0], _NOSE[:, 1])
_NOSE_CREST = PchipInterpolator(_NOSE[:, 0], _NOSE[:, 2])


def _nose_height(front: Plane) -> Values:
    """Height of the nose over the head form: ridge and tip, joined smoothly with the wings."""
    x, y = np.abs(front[:, 0]), front[:, 1]
    # The lower border of the tip curves up towards the nostrils' rims.
    y_tip = y - 0.030 * np.minimum(x, 9.0) ** 2 * smooth_step(-y, -4.0, 4.0)
    crest = _NOSE_CREST(y_tip)
    # Straight flanks under a rounded crest; the crest is broad at the tip and narrow at the columella.
    steepness = np.interp(y, [-15.0, -11.0, -6.0, 0.0, 10.0, 30.0, 40.0], [3.2, 2.9, 2.5, 2.0, 1.5, 1.25, 0.9])
    roundness = np.interp(y, [-15.0, -11.0, -6.0, 0.0, 10.0, 30.0, 40.0], [2.6, 4.0, 8.0, 7.6, 6.4, 6.0, 7.0])
    flank = crest - steepness * (np.hypot(x, roundness) - roundness)
    blend = np.minimum(2.4, 0.6 * crest)
    ridge = 0.5 * (flank + np.hypot(flank, blend)) * np.exp(-((x / 24.0) ** 4)) * crest / np.maximum(crest + 0.15, 0.15)
    dx, dy = x - ALA_CENTRE[0], y - ALA_CENTRE[1]
    # The wing leans outward towards its foot.
    dx = dx + 0.18 * dy
    round_ = (dx / 5.4) ** 2 + (dy / np.where(dy > 0.0, 8.5, 7.6)) ** 2
    wing = 9.2 * np.maximum(1.0 - round_, 0.0) ** 0.62
    return np.cbrt(ridge**3 + wing**3)


def _lip_relief(front: Plane) -> Values:
    x, y = np.abs(front[:, 0]), front[:, 1]
    upper, slit, lower = lip_heights(x)
    inside = np.maximum(1.0 - (x / (MOUTH_CORNER[0] + 1.0)) ** 2, 0.0)
    t_up = (y - slit) / np.maximum(upper - slit, 0.6)
    t_low = (slit - y) / np.maximum(slit - lower, 0.6)
    upper_shape = PchipInterpolator(
        [0.0, 0.3, 0.5, 0.66, 1.0, 1.25, 1.8, 2.6], [-0.25, 0.72, 1.0, 1.0, 0.66, 0.36, 0.12, 0.0]
    )
    lower_shape = PchipInterpolator([0.0, 0.3, 0.5, 0.66, 1.0, 1.3, 1.8], [-0.25, 0.72, 1.0, 0.94, 0.4, 0.12, 0.0])
    relief_up = 2.5 * inside**0.8 * upper_shape(np.clip(t_up, 0.0, 2.6))
    relief_low = 3.2 * inside**0.8 * lower_shape(np.clip(t_low, 0.0, 1.8))
    return np.where(y >= slit, relief_up, relief_low)


def face_surface(parameters: Plane) -> Points:
    """The mean face at surface parameters of the subject's left half."""
    points = head_form(parameters)
    front = points[:, :2].copy()
    x, y = front.T
    depth = np.zeros(len(points))
    # Forehead, brow ridge, temples.
    depth += 1.6 * bump(front, 0.0, 47.0, 13.0, 8.0) + 1.5 * bump(front, 20.0, 47.0, 15.0, 7.0)
    depth += 2.2 * bump(front, 43.0, 43.5, 11.0, 7.0) + 1.0 * bump(front, 24.0, 84.0, 22.0, 16.0)
    # Orbits: the hollow beside the nose bridge and under the brow; the lids fill them again below.
    depth -= 3.0 * bump(front, 17.0, 33.0, 7.5, 9.0) + 1.0 * bump(front, 33.0, 36.0, 15.0, 7.0)
    # Cheekbones, the hollow under them, the maxilla beside the nose.
    depth += 3.6 * bump(front, 43.0, 9.0, 15.0, 12.0) - 1.6 * bump(front, 50.0, -22.0, 13.0, 17.0)
    depth -= 2.0 * bump(front, 21.0, 8.0, 8.0, 14.0)
    # Muzzle, fold under the lower lip, chin.
    depth += 1.4 * bump(front, 0.0, -24.0, 20.0, 12.0) - 3.2 * bump(front, 0.0, -52.5, 17.0, 5.2)
    depth += 2.0 * bump(front, 0.0, -66.0, 13.0, 9.0) - 1.8 * bump(front, 29.0, -37.0, 5.0, 6.0)
    # Philtrum between its columns.
    depth += 0.7 * bump(front, 4.6, -22.0, 2.2, 6.0) - 0.9 * bump(front, 0.0, -21.5, 2.6, 6.5)
    depth += _cheek_fold(front)
    points[:, 0] += 0.45 * (3.6 * bump(front, 46.0, 9.0, 15.0, 12.0)) - 3.0 * bump(front, 64.0, 62.0, 12.0, 20.0)
    points[:, 2] += depth

    margin = eye_margin(60)
    distance, _ = cKDTree(margin).query(front)
    near = 1.0 - smooth_step(distance, 0.4, 10.0 + 3.0 * smooth_step(y, 26.0, 36.0))
    lids = lid_depth(front) + _lid_relief(front, distance)
    points[:, 2] += near * (lids - points[:, 2])

    nose = _nose_height(front)
    points[:, 2] += nose
    points[:, 2] += _lip_relief(front) * smooth_step(-np.abs(y + 37.0), -17.0, -9.0)
    droop = _NOSE_DROOP(y) * np.clip(nose / np.maximum(_NOSE_CREST(y), 1.0), 0.0, 1.0) ** 0.7
    points[:, 1] -= droop
    wing = np.exp(-(((x - 15.5) / 4.0) ** 2) - ((y + 5.0) / 6.0) ** 2) * np.clip(nose / 5.0, 0.0, 1.0)
    points[:, 0] += 1.1 * wing
    points[:, 1] -= 1.6 * wing
    nostril = np.exp(-((((x - NOSTRIL_CENTRE[0]) / 2.6) ** 2 + ((y - NOSTRIL_CENTRE[1]) / 2.0) ** 2) ** 1.5))
    points[:, 1] += 3.6 * nostril
    points[:, 2] -= 2.0 * nostril
    return points


def _cheek_fold(front: Plane) -> Values:
    """The soft edge of the cheek from the wing of the nose to the corner of the mouth."""
    start, end = np.array([19.0, -4.0]), np.array([34.0, -36.0])
    along = end - start
    t = (front - start) @ along / (along @ along)
    offset = (front - start) @ np.array([-along[1], along[0]]) / np.linalg.norm(along)
    strength = np.exp(-((np.clip(t - 0.45, -3.0, 3.0) / 0.5) ** 4))
    return strength * (0.9 * np.exp(-(((offset - 4.5) / 4.5) ** 2)) - 0.9 * np.exp(-((offset / 2.6) ** 2)))


def _lid_relief(front: Plane, distance: Values) -> Values:
    """Fold of the upper lid and the slight bag of the lower one, by distance from the opening."""
    offset = front - EYE_CENTRE[:2]
    middle = np.exp(-(((offset[:, 0] + 1.0) / 13.0) ** 4))
    upper = middle * smooth_step(offset[:, 1], 0.0, 4.0)
    lower = middle * smooth_step(-offset[:, 1], 1.0, 4.0)
    fold = 1.3 * smooth_step(distance, 3.8, 5.8) + 4.2 * smooth_step(distance, 4.5, 10.5)
    fold -= 0.7 * np.exp(-(((distance - 4.0) / 0.9) ** 2))
    return upper * fold + lower * (
        0.5 * np.exp(-(((distance - 3.0) / 1.6) ** 2)) - 0.5 * np.exp(-(((distance - 7.0) / 2.0) ** 2))
    )
