"""Strong randomisation of a face's colours: skin, freckles, beard, brows, make-up, eyes, teeth, painted pixel by pixel.

Everything is a function of where a pixel lies on the mean face, so that one description serves all face models,
however coarse their meshes are. Convention: N pixels that show the face; places are millimetres in model space (x the
subject's left, y up, z out of the face); colours are display-referred RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tasks.face_layout import CHANNELS, GRAIN, NOISE_PER_MM, NOISE_PX, PATCHES, REGIONS, SPOTS, FaceLayout
from tasks.subjects import Subject

Floats = NDArray[np.floating]

IRIS_RADIUS_MM = 5.9

IRIS_COLOURS = np.array(
    [[58, 36, 22], [92, 60, 34], [112, 92, 48], [86, 104, 78], [96, 122, 148], [124, 140, 152]], np.float64
)
LIPSTICKS = np.array([[170, 30, 45], [140, 20, 60], [200, 90, 95], [110, 25, 30], [190, 110, 95], [90, 30, 60]]) / 255
TOOTH = np.array([0.86, 0.82, 0.74])
GUM = np.array([0.60, 0.32, 0.31])
WHITE_OF_EYE = np.array([0.70, 0.67, 0.65])


@dataclass(frozen=True)
class Skin:
    """The pixels of one face before it is lit."""

    albedo: Floats
    """(N, 3) of the face model."""
    place: Floats
    """(N, 3) on the mean face."""
    weights: Floats
    """(N, C) of `CHANNELS`."""

    def weight(self, name: str) -> Floats:
        """(N,) how much of each pixel a part covers."""
        return np.asarray(self.weights[:, CHANNELS.index(name)])


@dataclass(frozen=True)
class Painted:
    """Colours and gloss of the pixels of one face."""

    albedo: Floats
    """(N, 3)"""
    gloss: Floats
    """(N,) strength of mirror-like reflections."""
    sharpness: Floats
    """(N,) exponent of the reflections."""
    bare: NDArray[np.bool_]
    """(N,) skin without hair."""
    hairy: NDArray[np.bool_]
    """(N,) the hairy part of the skull."""


def paint(skin: Skin, layout: FaceLayout, subject: Subject, stream: Generator) -> Painted:
    """Random colours of one face."""
    noise = _NoiseField(skin.place, layout, stream)
    bare = skin.weight("skin").clip(0.0, 1.0)
    albedo: Floats = skin.albedo.astype(np.float64)
    # Of people, and of the white balance of whoever measured them.
    albedo = albedo ** stream.uniform(0.75, 1.3) * np.exp(stream.normal(0.0, 0.1) + stream.normal(0.0, 0.035, 3))
    albedo = _texture(albedo, skin, layout, noise, bare, stream)
    albedo = _brows_and_lashes(albedo, skin, layout, noise, subject, stream)
    albedo = _make_up(albedo, skin, layout, noise, bare, stream)
    beard, hair = _beard(skin, layout, noise, stream), _scalp(skin, layout, noise, subject)
    fur = np.asarray(subject.hair_colour / 255.0) * stream.uniform(0.5, 1.1)
    strands = (0.75 + 0.3 * noise.strands())[:, None]
    albedo += (beard * bare)[:, None] * (0.85 * fur * strands - albedo)
    albedo += (hair * bare)[:, None] * (fur * strands - albedo)
    albedo = _mouth(albedo, skin, layout, stream)
    albedo = _eyes(albedo, skin, layout, noise, stream)
    oily = stream.uniform(0.02, 0.3) * (1.0 + 0.4 * noise(PATCHES)).clip(0.2, 2.0)
    moist = np.maximum(skin.weight("eyes"), 0.7 * skin.weight("teeth"))
    gloss = oily * bare * (1.0 - 0.8 * np.maximum(beard, hair)) + 0.35 * skin.weight("lips") * stream.random()
    gloss = gloss + stream.uniform(0.5, 1.2) * moist
    sharpness = 8.0 + 22.0 * skin.weight("lips") + 160.0 * moist
    clean = (bare > 0.8) & (np.maximum(beard, hair) < 0.3)
    return Painted(albedo.clip(0.01, 1.0), gloss, sharpness, clean, hair > 0.5)


class _NoiseField:
    """Noise of unit variance at the pixels of one face."""

    def __init__(self, place: Floats, layout: FaceLayout, stream: Generator) -> None:
        # Unrolled about the axis between the ears, so that the sides of the face are not smeared.
        depth = place[:, 2] - layout.points[[0, 16], 2].mean()
        across = np.arctan2(place[:, 0] - layout.middle, np.maximum(depth, -200.0) + 1e-3) * layout.half_width
        self._across, self._up = across * NOISE_PER_MM, place[:, 1] * NOISE_PER_MM
        self._bank, self._stream = layout.noise, stream

    def __call__(self, scale: int, *, stretch: tuple[float, float] = (1.0, 1.0)) -> Floats:
        shift = self._stream.integers(0, NOISE_PX, 2)
        row = (self._up * stretch[1]).astype(np.int64) + shift[0]
        column = (self._across * stretch[0]).astype(np.int64) + shift[1]
        return np.asarray(self._bank[scale][row % NOISE_PX, column % NOISE_PX])

    def strands(self) -> Floats:
        """Noise that is drawn out downwards, like hair."""
        return 0.6 * self(GRAIN, stretch=(1.0, 0.12)) + 0.5 * self(SPOTS, stretch=(1.0, 0.1))


def _texture(
    albedo: Floats, skin: Skin, layout: FaceLayout, noise: _NoiseField, bare: Floats, stream: Generator
) -> Floats:
    """Blotches, pores, freckles, moles, folds and shadows under the eyes."""
    points, place = layout.points, skin.place
    x = np.abs(place[:, 0] - layout.middle)
    flush = stream.uniform(0.0, 0.09) * noise(REGIONS) + stream.uniform(0.0, 0.06) * noise(PATCHES)
    albedo = albedo * (1.0 - (bare * flush)[:, None] * [0.2, 1.0, 0.9])
    tone = stream.uniform(0.0, 0.03) * noise(SPOTS) + stream.uniform(0.0, 0.05) * noise(GRAIN)
    albedo = albedo * (1.0 + (bare * (tone + stream.uniform(0.0, 0.06) * noise(REGIONS)))[:, None])
    darkness = np.zeros(len(x))
    if stream.random() < 0.15:
        cheeks = np.exp(-(((place[:, 1] - points[29, 1]) / 25.0) ** 2) - ((x - 25.0) / 30.0) ** 2)
        darkness += stream.uniform(0.1, 0.35) * cheeks * (noise(SPOTS) > stream.uniform(1.0, 2.0))
    places = np.flatnonzero(bare > 0.9)
    for _ in range(stream.poisson(2.0) if len(places) else 0):
        distance = np.linalg.norm(place - place[stream.choice(places)], axis=1)
        darkness += stream.uniform(0.3, 0.8) * np.exp(-((distance / stream.uniform(0.7, 2.4)) ** 4))
    for side, wing, corner in ((-1, 31, 48), (1, 35, 54)):
        depth = stream.uniform(0.05, 0.35) * (stream.random() < 0.5)
        start = points[wing] + [5.0 * side, 3.0, 0.0]
        fold = _to_segment(place, start, points[corner] + [7.0 * side, 0.0, 0.0])
        darkness += depth * np.exp(-((fold / 2.0) ** 2))
    for eye in (points[36:42], points[42:48]):
        below = eye[4:6].mean(0) - [0.0, 7.0, 0.0]
        shade = np.exp(-(((place[:, 0] - below[0]) / 13.0) ** 2) - ((place[:, 1] - below[1]) / 5.0) ** 2)
        darkness += stream.uniform(0.0, 0.2) * shade
    if stream.random() < 0.2:
        height = place[:, 1] - layout.brow_height
        lines = np.sin(2.0 * np.pi * (height + 2.0 * noise(REGIONS)) / stream.uniform(7.0, 12.0)).clip(0.0) ** 8
        darkness += stream.uniform(0.1, 0.3) * lines * (height > 8.0) * (x < 45.0)
    return np.asarray(albedo * (1.0 - (bare * darkness.clip(0.0, 0.9))[:, None] * [0.75, 1.0, 1.0]))


def _brows_and_lashes(
    albedo: Floats, skin: Skin, layout: FaceLayout, noise: _NoiseField, subject: Subject, stream: Generator
) -> Floats:
    brows = skin.weight("brows").clip(0.0, 1.0)
    colour = np.asarray(subject.hair_colour / 255.0) * stream.uniform(0.35, 1.0)
    strength = stream.uniform(0.0, 1.0) * (0.75 + 0.3 * noise(SPOTS)).clip(0.0, 1.0)
    albedo = albedo + (brows * strength)[:, None] * (colour - albedo)
    if stream.random() < 0.2:
        known = skin.weight("skin") > 0.9
        skin_tone = np.median(skin.albedo[known], axis=0) if known.any() else np.full(3, 0.5)
        albedo = albedo + (brows * stream.uniform(0.3, 0.8))[:, None] * (skin_tone - albedo)
    points = layout.points
    lash = np.zeros(len(albedo))
    for upper in (points[36:40], points[42:46]):
        distance = np.min([_to_segment(skin.place, *ends) for ends in pairwise(upper)], axis=0)
        lash = np.maximum(lash, np.exp(-((distance / 1.1) ** 2)))
    lash *= stream.uniform(0.1, 0.9) * (1.0 - skin.weight("ball"))
    return albedo + lash[:, None] * (0.08 - albedo)


def _make_up(
    albedo: Floats, skin: Skin, layout: FaceLayout, noise: _NoiseField, bare: Floats, stream: Generator
) -> Floats:
    points, place = layout.points, skin.place
    lips = skin.weight("lips").clip(0.0, 1.0)
    if stream.random() < 0.3:
        colour = LIPSTICKS[stream.integers(len(LIPSTICKS))] * stream.uniform(0.7, 1.2)
        albedo = albedo + (lips * stream.uniform(0.2, 0.95))[:, None] * (colour - albedo)
    else:
        albedo = albedo * (1.0 + lips[:, None] * stream.normal(0.0, 0.1, 3))
    albedo = albedo * (1.0 + (lips * 0.08 * noise(SPOTS, stretch=(1.5, 0.3)))[:, None])
    if stream.random() < 0.2:
        colour, strength = stream.uniform(0.05, 0.6, 3), stream.uniform(0.1, 0.6)
        for eye, brow in ((points[36:42], points[17:22]), (points[42:48], points[22:27])):
            middle = 0.7 * eye[1:3].mean(0) + 0.3 * brow.mean(0)
            lid = np.exp(-(((place[:, 0] - middle[0]) / 15.0) ** 2) - ((place[:, 1] - middle[1]) / 5.0) ** 2)
            albedo = albedo + (strength * lid * bare)[:, None] * (colour - albedo)
    if stream.random() < 0.25:
        strength = stream.uniform(0.1, 0.35)
        for cheek, side in ((points[[1, 31]].mean(0), -1), (points[[15, 35]].mean(0), 1)):
            centre = cheek + [6.0 * side, 0.0, 0.0]
            round_it = np.exp(-(((place[:, :2] - centre[:2]) / [17.0, 12.0]) ** 2).sum(1))
            albedo = albedo * (1.0 - (strength * round_it * bare)[:, None] * [0.0, 0.8, 0.6])
    return albedo


def _beard(skin: Skin, layout: FaceLayout, noise: _NoiseField, stream: Generator) -> Floats:
    """(N,) how densely hair covers chin, lip, cheeks and neck."""
    if stream.random() > 0.35:
        return np.zeros(len(skin.place))
    points = layout.points
    x, y = np.abs(skin.place[:, 0] - layout.middle), skin.place[:, 1]
    corner, lip = abs(points[54, 0] - points[48, 0]) / 2.0, points[[48, 54], 1].mean()
    nose, upper_lip, chin, ear = points[33, 1], points[51, 1], points[8, 1], points[[0, 16], 1].mean()
    ragged = 2.0 * noise(PATCHES) + 1.5 * noise(SPOTS)
    rise = ((x - corner) / (layout.half_width - corner)).clip(0.0, 1.0) ** 1.4
    cheek_line = lip + stream.uniform(-12.0, 8.0) + rise * (ear - lip + stream.uniform(-10.0, 15.0))
    below = _step(cheek_line - y + ragged, 0.0, 5.0) * _step(y - chin + stream.uniform(15.0, 40.0) + ragged, 0.0, 12.0)
    # The mouth's surroundings stay bare above its corners, but for the moustache.
    below *= 1.0 - _step(y - lip + ragged, -2.0, 2.0) * _step(corner + 4.0 - x, 0.0, 4.0)
    moustache = _step(nose - 3.0 - y + 0.5 * ragged, 0.0, 2.0) * _step(y - lip + 8.0, 0.0, 6.0)
    moustache *= _step(corner + stream.uniform(2.0, 9.0) - x + ragged, 0.0, 4.0) * (y > upper_lip - 12.0)
    kind = stream.random()
    if kind < 0.55:
        region = np.maximum(below, moustache * (stream.random() < 0.85))
    elif kind < 0.8:
        goatee = below * _step(corner * stream.uniform(0.5, 1.1) - x + ragged, 0.0, 5.0)
        region = np.maximum(goatee, moustache * (stream.random() < 0.8))
    else:
        region = moustache
    if stream.random() < 0.5:
        return np.asarray(region * stream.uniform(0.1, 0.45) * (0.8 + 0.35 * noise(GRAIN)).clip(0.0, 1.3))
    return np.asarray(region * stream.uniform(0.5, 0.95) * (0.9 + 0.15 * noise(SPOTS)).clip(0.0, 1.05))


def _scalp(skin: Skin, layout: FaceLayout, noise: _NoiseField, subject: Subject) -> Floats:
    """(N,) how densely hair covers the skull, where the face model has one."""
    if not subject.hair_volume:
        return np.zeros(len(skin.place))
    width, brow_depth = 2.0 * layout.half_width, float(layout.points[17:27, 2].mean())
    behind = (brow_depth - skin.place[:, 2] - 0.22 * width).clip(0.0)
    edge = layout.brow_height + width * subject.hairline - 2.2 * behind
    ears = np.abs(skin.place[:, 0] - layout.middle) > 1.09 * layout.half_width
    nape = layout.points[8, 1] + 0.1 * width
    covered = _step(skin.place[:, 1] - edge + 3.0 * noise(PATCHES), -3.0, 5.0)
    return np.asarray(covered * ~ears * _step(skin.place[:, 1] - nape + 3.0 * noise(PATCHES), -6.0, 6.0))


def _mouth(albedo: Floats, skin: Skin, layout: FaceLayout, stream: Generator) -> Floats:
    """Teeth, gums and tongue, darker the deeper they lie."""
    teeth, inside = skin.weight("teeth"), np.maximum(skin.weight("mouth"), skin.weight("teeth")).clip(0.0, 1.0)
    if not inside.any():
        return albedo
    if layout.weights[:, CHANNELS.index("teeth")].any():
        gums = GUM * np.exp(stream.normal(0.0, 0.08, 3))
        tooth = TOOTH * stream.uniform(0.8, 1.1) * [1.0, 1.0, stream.uniform(0.85, 1.05)]
        albedo = albedo + inside[:, None] * (gums - albedo)
        albedo = albedo + teeth[:, None] * (tooth - albedo)
    depth = (layout.points[[61, 62, 63, 65, 66, 67], 2].mean() - skin.place[:, 2] - 4.0).clip(0.0)
    return np.asarray(albedo * (1.0 - inside + inside * np.exp(-depth / stream.uniform(9.0, 18.0)))[:, None])


def _eyes(albedo: Floats, skin: Skin, layout: FaceLayout, noise: _NoiseField, stream: Generator) -> Floats:
    """White, iris and pupil of the eyeballs, looking in a common direction; what lies around them is dark."""
    if not len(layout.balls):
        return albedo
    yaw, pitch = np.radians(stream.normal(0.0, 13.0)), np.radians(stream.normal(0.0, 7.0))
    gaze = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    white = WHITE_OF_EYE * stream.uniform(0.8, 1.08) * np.exp(stream.normal(0.0, 0.025, 3))
    iris = IRIS_COLOURS[stream.integers(len(IRIS_COLOURS))] / 255.0 * stream.uniform(0.6, 1.3)
    iris_mm, pupil_share = IRIS_RADIUS_MM * stream.uniform(0.92, 1.08), stream.uniform(0.25, 0.6)
    ball = skin.weight("ball")
    socket = (skin.weight("eyes") - ball).clip(0.0, 1.0)
    albedo = albedo + socket[:, None] * (np.array([0.45, 0.22, 0.2]) - albedo)
    nearest = np.linalg.norm(skin.place[:, None] - layout.balls[:, :3], axis=2).argmin(1)
    for number, (*centre, radius) in enumerate(layout.balls):
        mine = np.flatnonzero((ball > 0.3) & (nearest == number))
        if not len(mine):
            continue
        iris_deg = float(np.degrees(np.arcsin(iris_mm / radius)))
        pupil_deg = pupil_share * iris_deg
        direction = skin.place[mine] - centre
        direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)
        angle = np.degrees(np.arccos((direction @ gaze).clip(-1.0, 1.0)))
        side = np.cross(gaze, [0.0, 1.0, 0.0])
        around = np.arctan2(direction @ np.cross(side, gaze), direction @ side)
        rays = 0.85 + 0.2 * layout.noise[SPOTS][0][((around + np.pi) * 60.0).astype(int) % NOISE_PX]
        ring = 1.0 - 0.65 * _step(angle, 0.72 * iris_deg, iris_deg)
        glow = 1.0 + 0.35 * (direction[:, 1] < 0.0) * (angle > pupil_deg)
        veins = 0.06 * noise(SPOTS)[mine].clip(0.0)
        colour = white * (1.0 - veins[:, None] * [0.2, 1.0, 1.0])
        # The lids shade the ball above and in the corners.
        colour = colour * (1.0 - 0.45 * _step(direction[:, 1], 0.2, 0.55) - 0.3 * _step(angle, 40.0, 75.0))[:, None]
        inside = 1.0 - _step(angle, iris_deg - 1.5, iris_deg + 1.5)
        colour = colour + inside[:, None] * (iris * (rays * ring * glow)[:, None] - colour)
        black = 1.0 - _step(angle, pupil_deg - 1.5, pupil_deg + 1.5)
        colour = colour + black[:, None] * (0.015 - colour)
        albedo[mine] += ball[mine, None] * (colour - albedo[mine])
    return albedo


def _to_segment(place: Floats, start: Floats, end: Floats) -> Floats:
    """(N,) distance in millimetres from a segment."""
    along = end - start
    share = (((place - start) @ along) / max(float(along @ along), 1e-6)).clip(0.0, 1.0)
    return np.asarray(np.linalg.norm(place - start - share[:, None] * along, axis=1))


def _step(values: Floats, low: float, high: float) -> Floats:
    share = ((values - low) / (high - low)).clip(0.0, 1.0)
    return np.asarray(share * share * (3.0 - 2.0 * share))
