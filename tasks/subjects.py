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

from models.face.sampling import draw_expression, normal

Floats = NDArray[np.float64]

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
class Lamp:
    """A distant light beside the soft one, for strong randomisation."""

    direction: Floats
    """(3,) unit vector towards it, camera space."""
    colour: Floats
    """(3,) RGB; 1 lights a surface that faces it as brightly as white light of 1 from everywhere."""
    softness: float
    """0: the edges of shadows are sharp; 1: there are hardly any."""


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
    lamp: Lamp | None = None
    may_leave: bool = False
    """Whether the landmarks' box may reach beyond the photo."""


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


def draw_varied_shot(
    stream: Generator, *, expression_names: Sequence[str], max_yaw_deg: float, occluder_share: float
) -> Shot:
    """A random photo for strong randomisation: any lens, distance and tilt, a lamp from any side, faces cut off."""
    ambient, directions, colours = _draw_lights(stream)
    yaw, _, _ = draw_angles(stream, max_yaw_deg)
    pitch = float(np.radians(np.clip(stream.normal(0.0, 12.0), -30.0, 30.0)))
    tilted = stream.random() < 0.3
    roll = float(np.radians(stream.uniform(-40.0, 40.0) if tilted else np.clip(stream.normal(0.0, 9.0), -25.0, 25.0)))
    cast = np.exp(stream.normal(0.0, 0.15 if stream.random() < 0.2 else 0.04, 3))
    fill = float(stream.uniform(0.25, 0.95))
    focal = float(np.exp(stream.uniform(math.log(0.2), math.log(1.8))))
    may_leave = bool(stream.random() < 0.2)
    return Shot(
        expression=draw_expression(stream, expression_names),
        angles=np.array([yaw, pitch, roll]),
        # From a wide-angle lens, no nearer than some 30 cm, to a tele lens across the street.
        focal_factor=max(0.45 * fill, focal),
        fill=fill,
        offset=stream.normal(0.0, 0.2 if may_leave else 0.12, 2).clip(-0.4, 0.4),
        ambient=ambient * cast,
        light_directions=directions,
        light_colours=colours * np.exp(stream.normal(0.0, 0.08, 3)),
        exposure=float(np.exp(stream.normal(-0.05, 0.3)).clip(0.4, 1.8)),
        occluded=bool(stream.random() < occluder_share),
        scenery=np.random.default_rng(stream.integers(2**63)),
        lamp=_draw_lamp(stream),
        may_leave=may_leave,
    )


def draw_angles(stream: Generator, max_yaw_deg: float) -> Floats:
    """Yaw, pitch and roll in radians: half of the photos within 30° of yaw, the rest beyond, up to the limit."""
    inner = min(30.0, max_yaw_deg)
    if stream.random() < 0.5:
        yaw = stream.uniform(-inner, inner)
    else:
        yaw = stream.uniform(inner, max_yaw_deg) * stream.choice([-1.0, 1.0])
    pitch, roll = stream.normal(0.0, 9.0), stream.normal(0.0, 7.0)
    return np.radians([yaw, np.clip(pitch, -20.0, 20.0), np.clip(roll, -15.0, 15.0)])


def _draw_lamp(stream: Generator) -> Lamp:
    """Weak and soft for the most part; else the sun, a window at the side, or a coloured light."""
    azimuth, elevation = stream.normal(0.0, math.radians(60.0)), math.radians(stream.uniform(-20.0, 80.0))
    direction = [
        math.sin(azimuth) * math.cos(elevation),
        -math.sin(elevation),
        -math.cos(azimuth) * math.cos(elevation),
    ]
    hard = stream.random() < 0.4
    vivid = stream.random() < 0.08
    tint = np.exp(stream.normal(0.0, 0.35 if vivid else 0.06, 3))
    # Lamps are warmer or cooler than what is around them.
    warmth = stream.normal(0.0, 0.1) * np.array([1.0, 0.0, -1.0])
    strength = stream.uniform(0.8, 3.0) if hard else stream.uniform(0.1, 0.8)
    softness = stream.uniform(0.0, 0.35) if hard else stream.uniform(0.3, 1.0)
    return Lamp(np.array(direction), strength * tint * np.exp(warmth), float(softness))


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
