"""Random faces and poses for simulation: what a face model and a camera may plausibly show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Generator, Tensor

from models.face.camera import rotation_from_angles
from models.face.procedural_expressions import ARKIT_NAMES

Floats = NDArray[np.float64]

SPREAD = 2.5
"""Coefficients are drawn from a normal distribution cut off at this many standard deviations."""

STATISTICAL_EXPRESSION_SIGMA = 0.7


def normal(stream: np.random.Generator, count: int, sigma: float = 1.0) -> Floats:
    """Normally distributed numbers without the tails."""
    return sigma * stream.standard_normal(count).clip(-SPREAD, SPREAD)


def sample_expressions(names: Sequence[str], count: int, *, seed: int) -> Float[Tensor, "N E"]:
    """Many random expressions, as `draw_expression` draws each of them."""
    stream = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([draw_expression(stream, names) for _ in range(count)])).float()


def draw_expression(stream: np.random.Generator, names: Sequence[str]) -> Floats:
    """Coefficients of a plausible expression: a third nearly neutral, else one to three facial actions at once.

    Convention: ARKit-named shapes (recognised by jawOpen) lie in [0, 1], their left and right halves go together for
    the most part, and mouthClose never exceeds jawOpen, without which it has no meaning. Other modes are Gaussian, also
    beside ARKit-named ones, as in FLAME, where only the joints have such names.
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
    # Drawn last, so that the named shapes are drawn as they would be alone.
    statistical = [place for shape, found in places.items() if shape not in ARKIT_SHAPES for place in found]
    if statistical:
        values[statistical] = normal(stream, len(statistical), STATISTICAL_EXPRESSION_SIGMA)
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
        base = _without_side(name)
        places[base] = (*places.get(base, ()), place)
    return places


def _without_side(name: str) -> str:
    base = name
    for suffix in ("_L", "_R", "Left", "Right"):
        base = base.removesuffix(suffix)
    return name if base in ("jaw", "mouth") else base


ARKIT_SHAPES = frozenset(_places(ARKIT_NAMES))
"""ARKit's names without their sides. Those that no action uses, such as tongueOut, stay at rest."""


def is_arkit_shape(name: str) -> bool:
    """Whether an expression has one of ARKit's names, with or without a side, and so lies in [0, 1]."""
    return _without_side(name) in ARKIT_SHAPES


def sample_rotation(count: int, *, max_yaw_deg: float, generator: Generator) -> Float[Tensor, "B 3"]:
    """Random head poses as axis-angle: half of them within 30° of yaw, the rest up to the limit."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    small = min(30.0, max_yaw_deg)
    frontal = torch.rand(count, generator=generator) < 0.5
    yaw = torch.where(frontal, uniform(-small, small), uniform(-max_yaw_deg, max_yaw_deg))
    pitch = (12.0 * torch.randn(count, generator=generator)).clamp(-30.0, 30.0)
    roll = (10.0 * torch.randn(count, generator=generator)).clamp(-30.0, 30.0)
    radians = math.pi / 180.0
    return rotation_from_angles(yaw * radians, pitch * radians, roll * radians)
