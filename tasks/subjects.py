"""Random persons, and how they look on a photo: expression, pose, light and camera. Plain numbers, no pixels.

Every person has a random stream of their own, named by seed, source and number, so that a person's photos do not depend
on how many others are rendered, nor on how they are grouped into batches.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPREAD = 2.5
"""Coefficients are drawn from a normal distribution cut off at this many standard deviations."""

STATISTICAL_EXPRESSION_SIGMA = 0.7

HAIR_COLOURS = np.array(
    [
        [26, 22, 20],
        [48, 34, 26],
        [78, 54, 36],
        [112, 78, 48],
        [168, 132, 84],
        [206, 180, 136],
        [128, 60, 36],
        [150, 146, 142],
    ]
)
"""sRGB: black, browns, fair, red, grey."""


@dataclass(frozen=True)
class Subject:
    """What all photos of a person share."""

    identity: Floats
    """(I,) standard deviations."""
    albedo: Floats
    """(T,) standard deviations."""
    hair_colour: Floats
    """(3,) sRGB, 0 to 255."""
    hairline: float
    """How high the hair begins above the brows, as a fraction of the face's width."""
    hair_volume: float
    """Radius of the hair relative to the skull's; below 1 the person shows none."""
    hair_length: float
    """How far the hair falls beside the face, as a fraction of the face's width."""
    wears_glasses: bool


@dataclass(frozen=True)
class Shot:
    """What is particular to one photo."""

    expression: Floats
    """(E,)"""
    angles: Floats
    """(3,) yaw, pitch, roll in radians."""
    focal_factor: float
    fill: float
    """Larger side of the landmarks' box as a fraction of the photo's side."""
    offset: Floats
    """(2,) of the landmarks' box from the middle, as fractions of the photo's side."""
    ambient: Floats
    """(3,) RGB."""
    light_directions: Floats
    """(2, 3) unit vectors towards the lights, camera space."""
    light_colours: Floats
    """(2, 3) RGB."""
    exposure: float
    """Mean irradiance over normals that face the camera."""
    occluded: bool
    scenery: Generator
    """Stream for everything that is drawn in pixels."""


def person_stream(seed: int, source: str, key: int | str) -> Generator:
    """The random stream of one person of a source."""
    number = key if isinstance(key, int) else zlib.crc32(key.encode())
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(source.encode()), number]))


def draw_subject(stream: Generator, *, identity_size: int, albedo_size: int) -> Subject:
    """A random person."""
    bald = stream.random() < 0.15
    return Subject(
        identity=normal(stream, identity_size),
        albedo=normal(stream, albedo_size),
        hair_colour=HAIR_COLOURS[stream.integers(len(HAIR_COLOURS))] * stream.uniform(0.7, 1.2),
        hairline=float(stream.uniform(0.14, 0.5)),
        hair_volume=0.0 if bald else float(stream.uniform(1.03, 1.3)),
        hair_length=float(max(0.0, stream.uniform(-1.0, 1.3))),
        wears_glasses=bool(stream.random() < 0.15),
    )


def draw_shot(stream: Generator, *, expression_names: Sequence[str], max_yaw_deg: float, occluder_share: float) -> Shot:
    """A random photo of whomever."""
    ambient, directions, colours = _draw_lights(stream)
    return Shot(
        expression=draw_expression(stream, expression_names),
        angles=draw_angles(stream, max_yaw_deg),
        focal_factor=float(stream.uniform(0.8, 1.25)),
        fill=float(stream.uniform(0.45, 0.75)),
        offset=stream.normal(0.0, 0.05, 2).clip(-0.12, 0.12),
        ambient=ambient,
        light_directions=directions,
        light_colours=colours,
        exposure=float(np.exp(stream.normal(-0.05, 0.25)).clip(0.45, 1.5)),
        occluded=bool(stream.random() < occluder_share),
        scenery=np.random.default_rng(stream.integers(2**63)),
    )


def normal(stream: Generator, count: int, sigma: float = 1.0) -> Floats:
    """Normally distributed numbers without the tails."""
    return sigma * stream.standard_normal(count).clip(-SPREAD, SPREAD)


def draw_angles(stream: Generator, max_yaw_deg: float) -> Floats:
    """Yaw, pitch and roll in radians: half of the photos within 30° of yaw, the rest beyond, up to the limit."""
    inner = min(30.0, max_yaw_deg)
    if stream.random() < 0.5:
        yaw = stream.uniform(-inner, inner)
    else:
        yaw = stream.uniform(inner, max_yaw_deg) * stream.choice([-1.0, 1.0])
    pitch, roll = stream.normal(0.0, 9.0), stream.normal(0.0, 7.0)
    return np.radians([yaw, np.clip(pitch, -20.0, 20.0), np.clip(roll, -15.0, 15.0)])


def draw_expression(stream: Generator, names: Sequence[str]) -> Floats:
    """Coefficients of a plausible expression: a third nearly neutral, else one to three facial actions at once.

    Convention: ARKit-named shapes (recognised by jawOpen) lie in [0, 1], their left and right halves go together for
    the most part, and mouthClose never exceeds jawOpen, without which it has no meaning. Other modes are Gaussian.
    """
    places = _places(names)
    if "jawOpen" not in places:
        return normal(stream, len(names), STATISTICAL_EXPRESSION_SIGMA)
    values = np.zeros(len(names))

    def add(shape: str, strength: float) -> None:
        lopsided = stream.normal(0.0, 0.08)
        for side, place in enumerate(places.get(shape, ())):
            values[place] += max(0.0, strength * (1.0 + (lopsided if side else -lopsided)))

    if stream.random() < 1.0 / 3.0:
        for shape in ("mouthSmile", "browInnerUp", "jawOpen", "eyeBlink", "mouthFrown"):
            add(shape, stream.uniform(0.0, 0.12))
    else:
        for number in stream.choice(len(ACTIONS), size=stream.integers(1, 4), replace=False):
            strength = stream.uniform(0.3, 1.0)
            for shape, low, high in ACTIONS[number]:
                add(shape, strength * stream.uniform(low, high))
    if stream.random() < 0.3:
        add(str(stream.choice(["eyeLookUp", "eyeLookDown"])), stream.uniform(0.1, 0.8))
    if stream.random() < 0.12:
        add("eyeBlink", stream.uniform(0.5, 1.0))
    values = values.clip(0.0, 1.0)
    if "mouthClose" in places:
        (closed,), (opened,) = places["mouthClose"], places["jawOpen"]
        values[closed] = min(values[closed], 0.9 * values[opened])
    return values


ACTIONS: tuple[tuple[tuple[str, float, float], ...], ...] = (
    (("mouthSmile", 0.4, 1.0), ("cheekSquint", 0.2, 0.6), ("eyeSquint", 0.0, 0.4)),
    (("mouthSmile", 0.5, 1.0), ("jawOpen", 0.1, 0.4), ("mouthUpperUp", 0.1, 0.5), ("cheekSquint", 0.3, 0.7)),
    (("mouthFrown", 0.3, 1.0), ("browInnerUp", 0.1, 0.8), ("mouthShrugLower", 0.0, 0.6)),
    (("browInnerUp", 0.3, 1.0), ("browOuterUp", 0.3, 1.0), ("eyeWide", 0.2, 0.9), ("jawOpen", 0.0, 0.6)),
    (("browDown", 0.4, 1.0), ("noseSneer", 0.0, 0.7), ("mouthPress", 0.0, 0.6), ("eyeSquint", 0.1, 0.6)),
    (("jawOpen", 0.2, 1.0),),
    (("jawOpen", 0.1, 0.5), ("mouthFunnel", 0.2, 0.8)),
    (("jawOpen", 0.0, 0.3), ("mouthPucker", 0.3, 1.0)),
    (("jawOpen", 0.1, 0.5), ("mouthLowerDown", 0.2, 0.8), ("mouthStretch", 0.0, 0.6)),
    (("jawOpen", 0.2, 0.7), ("mouthClose", 0.1, 0.6)),
    (("mouthRollLower", 0.1, 0.8), ("mouthRollUpper", 0.1, 0.7), ("mouthPress", 0.0, 0.5)),
    (("mouthLeft", 0.3, 1.0),),
    (("mouthRight", 0.3, 1.0),),
    (("jawLeft", 0.3, 1.0), ("jawOpen", 0.0, 0.3)),
    (("jawRight", 0.3, 1.0), ("jawOpen", 0.0, 0.3)),
    (("jawForward", 0.3, 0.9), ("mouthShrugLower", 0.0, 0.5)),
    (("cheekPuff", 0.3, 1.0), ("mouthPress", 0.0, 0.5)),
    (("noseSneer", 0.3, 1.0), ("mouthUpperUp", 0.1, 0.7), ("eyeSquint", 0.0, 0.5)),
    (("eyeSquint", 0.3, 1.0), ("cheekSquint", 0.2, 0.8)),
    (("mouthDimple", 0.2, 0.9), ("mouthPress", 0.0, 0.6)),
    (("mouthShrugUpper", 0.2, 0.8), ("mouthShrugLower", 0.2, 0.8)),
)
"""Shapes that people use together, each with the range of its share in the action's strength."""


def _places(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Columns of a shape by its name without the side: one, or left and right."""
    places: dict[str, tuple[int, ...]] = {}
    for place, name in enumerate(names):
        base = name
        for suffix in ("_L", "_R", "Left", "Right"):
            base = base.removesuffix(suffix)
        if base in ("jaw", "mouth"):
            base = name
        places[base] = (*places.get(base, ()), place)
    return places


def _draw_lights(stream: Generator) -> tuple[Floats, Floats, Floats]:
    """One key light, mostly from the front or above, a weaker second one from anywhere, and light from all around."""
    azimuth, elevation = stream.normal(0.0, math.radians(50.0)), math.radians(stream.uniform(-10.0, 75.0))
    key = [
        math.sin(azimuth) * math.cos(elevation),
        -math.sin(elevation),
        -math.cos(azimuth) * math.cos(elevation),
    ]
    second = stream.standard_normal(3)
    second /= np.linalg.norm(second)
    strength = np.array([[stream.uniform(0.2, 1.0)], [stream.uniform(0.0, 0.3)]])
    tint = np.exp(stream.normal(0.0, 0.05, (3, 3)) + stream.normal(0.0, 0.03, 3))
    return tint[0] * stream.uniform(0.25, 0.7), np.array([key, second]), tint[1:] * strength
