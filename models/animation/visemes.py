"""Rules from sounds to ARKit curves: co-articulated mouth shapes, lips that close, emotion, manner, blinks.

Every sound pulls the mouth towards its shape with a strength that fades with the distance in time, and the mouth takes
the weighted mean: so neighbours shape each other. Closed lips are no mean but a must: around p, b and m they close
whatever the jaw does, by `mouthClose` following `jawOpen`, and what opens the lips gives way.
Source: dominance functions of Cohen and Massaro (1993); shapes and constants by eye, after common viseme charts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from models.animation.clip import frame_times
from models.animation.phonemes import PHONEMES, SILENCE, VOWELS, Segment
from models.face.procedural_expressions import ARKIT_NAMES

Curve = Float[np.ndarray, " T"]
Shape = dict[str, float]

SHAPES: dict[str, Shape] = {
    **{sound: {"jawOpen": 0.08, "mouthShrugUpper": 0.05} for sound in ("p", "b", "m")},
    **{sound: {"jawOpen": 0.09, "mouthRollLower": 0.5, "mouthUpperUp": 0.18} for sound in ("f", "v")},
    **{sound: {"jawOpen": 0.13, "tongueOut": 0.3, "mouthLowerDown": 0.12} for sound in ("th", "dh")},
    **{sound: {"jawOpen": 0.12, "mouthLowerDown": 0.16, "mouthUpperUp": 0.06} for sound in ("t", "d", "n")},
    **{
        sound: {"jawOpen": 0.08, "mouthStretch": 0.2, "mouthLowerDown": 0.22, "mouthUpperUp": 0.1}
        for sound in ("s", "z")
    },
    **{
        sound: {"jawOpen": 0.1, "mouthFunnel": 0.45, "mouthPucker": 0.15, "mouthLowerDown": 0.15}
        for sound in ("sh", "zh", "ch", "jh")
    },
    **{sound: {"jawOpen": 0.16, "mouthLowerDown": 0.08} for sound in ("k", "g", "ng")},
    "l": {"jawOpen": 0.2, "tongueOut": 0.06, "mouthLowerDown": 0.12},
    "r": {"jawOpen": 0.14, "mouthFunnel": 0.28, "mouthPucker": 0.2},
    "w": {"jawOpen": 0.09, "mouthPucker": 0.7, "mouthFunnel": 0.25},
    "y": {"jawOpen": 0.11, "mouthStretch": 0.2, "mouthSmile": 0.12},
    "h": {"jawOpen": 0.2},
    "iy": {"jawOpen": 0.15, "mouthStretch": 0.32, "mouthSmile": 0.22, "mouthLowerDown": 0.12},
    "ih": {"jawOpen": 0.2, "mouthStretch": 0.2, "mouthSmile": 0.12, "mouthLowerDown": 0.1},
    "eh": {"jawOpen": 0.34, "mouthStretch": 0.18, "mouthLowerDown": 0.2, "mouthUpperUp": 0.1},
    "ae": {"jawOpen": 0.48, "mouthStretch": 0.22, "mouthLowerDown": 0.22, "mouthUpperUp": 0.15},
    "ah": {"jawOpen": 0.4, "mouthLowerDown": 0.14, "mouthUpperUp": 0.08},
    "aa": {"jawOpen": 0.6, "mouthLowerDown": 0.16, "mouthUpperUp": 0.1},
    "ao": {"jawOpen": 0.48, "mouthFunnel": 0.4, "mouthPucker": 0.15},
    "uh": {"jawOpen": 0.22, "mouthFunnel": 0.25, "mouthPucker": 0.3},
    "uw": {"jawOpen": 0.15, "mouthPucker": 0.65, "mouthFunnel": 0.25},
    "er": {"jawOpen": 0.24, "mouthFunnel": 0.25, "mouthPucker": 0.18},
    "ax": {"jawOpen": 0.24, "mouthLowerDown": 0.08},
}
"""Without `Left` and `Right` both sides are meant."""
GLIDES = {"ey": ("eh", "iy"), "ay": ("aa", "iy"), "oy": ("ao", "iy"), "ow": ("ao", "uw"), "aw": ("aa", "uw")}
STRENGTHS = {
    **dict.fromkeys(("p", "b", "m", "h", "k", "g", "ng", "t", "d", "n", "l"), 0.8),
    **dict.fromkeys(("s", "z", "sh", "zh", "ch", "jh", "f", "v", "w", "th", "dh"), 2.0),
    "ax": 0.7,
}
PAUSE_STRENGTH = 1.2
INDIFFERENT = 0.25
"""Strength, relative to its own, with which a sound pulls channels of which its shape says nothing."""
PAUSE_REACH_S = 0.09

RELEASE_S = 0.01
"""Lips part this long before the burst is over."""
STOP_CLOSURE_S = 0.075
"""A p is silent while the lips are closed: espeak's p starts with the burst, so its closure lies before."""
VOICED_CLOSURE_S = 0.03
CLOSING_S = 0.05
"""Time in which lips close or part."""
CLOSED: Shape = {"mouthPress": 0.22, "mouthRollLower": 0.12, "mouthRollUpper": 0.08}
OPENERS = ("mouthFunnel", "mouthShrugUpper", "mouthLowerDown", "mouthUpperUp", "tongueOut")
"""What keeps lips apart and gives way where they close."""

SPEAKING_S = 0.12
BLINK_PAUSE_S = 0.12
"""From this length a pause brings a blink."""
BLINK_CLOSES_S, BLINK_OPENS_S = 0.08, 0.16
EMPHASIS_S = 0.11


@dataclass(frozen=True)
class Emotion:
    """What a feeling adds to the face always, adds while it speaks, and multiplies."""

    always: Shape
    speaking: Shape
    factors: Shape


EMOTION_SHAPES = {
    "neutral": Emotion({}, {}, {}),
    "joy": Emotion(
        {"mouthSmile": 0.42, "cheekSquint": 0.4, "eyeSquint": 0.18, "mouthDimple": 0.12, "browOuterUp": 0.1},
        {"mouthUpperUp": 0.08},
        {"mouthPucker": 0.85},
    ),
    "anger": Emotion(
        {"browDown": 0.65, "noseSneer": 0.35, "eyeSquint": 0.35, "mouthFrown": 0.15, "jawForward": 0.12},
        {"mouthLowerDown": 0.12, "mouthStretch": 0.1},
        {"jawOpen": 1.1},
    ),
    "sadness": Emotion(
        {"browInnerUp": 0.6, "mouthFrown": 0.45, "eyeLookDown": 0.25, "eyeBlink": 0.1, "mouthShrugLower": 0.15},
        {},
        {"jawOpen": 0.8, "mouthStretch": 0.7},
    ),
    "fear": Emotion(
        {"browInnerUp": 0.55, "browOuterUp": 0.35, "eyeWide": 0.5, "mouthStretch": 0.22}, {"mouthLowerDown": 0.08}, {}
    ),
    "disgust": Emotion(
        {"noseSneer": 0.6, "browDown": 0.35, "cheekSquint": 0.25, "mouthFrown": 0.2}, {"mouthUpperUp": 0.22}, {}
    ),
    "surprise": Emotion({"browInnerUp": 0.6, "browOuterUp": 0.6, "eyeWide": 0.55}, {}, {"jawOpen": 1.2}),
}


@dataclass(frozen=True)
class Manner:
    """How a style articulates."""

    amplitude: float
    """Of the mouth."""
    reach_s: float
    """Time constant with which a sound's pull fades."""
    emphasis: float
    """How far the brows rise on stressed syllables."""


MANNERS = {"plain": Manner(1.0, 0.06, 0.08), "lively": Manner(1.25, 0.05, 0.3), "mumbled": Manner(0.6, 0.08, 0.02)}


def viseme_curves(
    segments: Sequence[Segment], frames: int, *, emotion: str, style: str
) -> tuple[Float[np.ndarray, "T 52"], Int[np.ndarray, " T"]]:
    """Coefficients and phoneme labels of a clip, in the middle of every frame.

    Frames in which lips are closed for p, b or m carry that sound as their label, also before its burst; the breath
    after it is an h.
    Raises: ValueError if emotion or style have no rules.
    """
    for name, value, table in (("emotion", emotion, EMOTION_SHAPES), ("style", style, MANNERS)):
        if value not in table:
            raise ValueError(f"{name} {value!r} has no viseme rules, expected one of {', '.join(table)}")
    times = frame_times(frames)
    manner, feeling = MANNERS[style], EMOTION_SHAPES[emotion]
    closure, labels = _closure(segments, times)
    curves = {name: manner.amplitude * curve for name, curve in _mouth(segments, times, manner).items()}
    speaking = _speaking(segments, times)

    def add(shape: Shape, weight: Curve | float) -> None:
        for name, value in shape.items():
            curves[name] = curves.get(name, np.zeros(frames)) + value * weight

    for name, factor in feeling.factors.items():
        if name in curves:
            curves[name] = curves[name] * factor
    add(feeling.always, 0.75 + 0.25 * speaking)
    add(feeling.speaking, speaking)
    rise = manner.emphasis * _emphasis(segments, times)
    add({"browInnerUp": 0.6, "browOuterUp": 1.0}, rise)
    blink = _blinks(segments, times)
    curves["eyeBlink"] = np.maximum(curves.get("eyeBlink", 0.0), blink)
    for name in OPENERS:
        if name in curves:
            curves[name] = curves[name] * (1.0 - closure)
    add(CLOSED, closure)
    curves["mouthClose"] = closure * np.clip(curves["jawOpen"], 0.0, 1.0)
    return _coefficients(curves, frames), labels


def _mouth(segments: Sequence[Segment], times: Curve, manner: Manner) -> dict[str, Curve]:
    """The weighted mean of the shapes of all sounds."""
    names = sorted({name for shape in SHAPES.values() for name in shape})
    numerator = np.zeros((len(names), len(times)))
    denominator = np.full((len(names), len(times)), 1e-6)
    for middle, half, symbol, share in _pulls(segments):
        shape = {} if symbol is None else SHAPES[symbol]
        strength = share * (PAUSE_STRENGTH if symbol is None else STRENGTHS.get(symbol, 1.0))
        reach = PAUSE_REACH_S if symbol is None else manner.reach_s
        away = np.maximum(np.abs(times - middle) - 0.5 * half, 0.0)
        pull = strength * np.exp(-((away / reach) ** 1.3))
        for row, name in enumerate(names):
            weight = pull if name in shape or symbol is None else INDIFFERENT * pull
            numerator[row] += weight * shape.get(name, 0.0)
            denominator[row] += weight
    return dict(zip(names, numerator / denominator, strict=True))


def _pulls(segments: Sequence[Segment]) -> Iterator[tuple[float, float, str | None, float]]:
    """Middle, half width, sound and share of everything that pulls; a glide pulls twice, one after the other."""
    for segment in segments:
        length = segment.end - segment.start
        if segment.symbol in GLIDES:
            first, second = GLIDES[segment.symbol]
            yield segment.start + 0.3 * length, 0.3 * length, first, 1.0
            yield segment.start + 0.8 * length, 0.2 * length, second, 0.8
        else:
            yield segment.start + 0.5 * length, 0.5 * length, segment.symbol, 1.0


def _closure(segments: Sequence[Segment], times: Curve) -> tuple[Curve, Int[np.ndarray, " T"]]:
    """How far the lips are closed by p, b and m, and the label of every frame."""
    closure = np.zeros(len(times))
    labels = np.full(len(times), SILENCE)
    for segment in segments:
        if segment.symbol is not None:
            labels[(times >= segment.start) & (times < segment.end)] = PHONEMES.index(segment.symbol)
    previous: Segment | None = None
    for segment in segments:
        if segment.symbol in ("p", "b", "m"):
            room = 0.6 * (segment.start - previous.start) if previous else 0.0
            before = STOP_CLOSURE_S if segment.symbol == "p" else 0.0
            if previous is None or previous.symbol is None:
                before = max(before, VOICED_CLOSURE_S)
            start = segment.start - min(before, room)
            end = segment.start + RELEASE_S if segment.symbol == "p" else segment.end - RELEASE_S
            # Lips that close for less than a frame would not be seen.
            end = max(end, start + 0.04)
            away = np.maximum(np.maximum(start - times, times - end), 0.0)
            closure = np.maximum(closure, 0.5 + 0.5 * np.cos(np.pi * np.clip(away / CLOSING_S, 0.0, 1.0)))
            if segment.symbol == "p":
                # What follows the burst is breath through open lips.
                labels[(times > end) & (times < segment.end)] = PHONEMES.index("h")
            labels[(times >= start) & (times <= end)] = PHONEMES.index(segment.symbol)
        previous = segment
    return closure, labels


def _speaking(segments: Sequence[Segment], times: Curve) -> Curve:
    """1 while somebody speaks, fading over pauses."""
    speaking = np.zeros(len(times))
    for segment in segments:
        if segment.symbol is not None:
            away = np.maximum(np.maximum(segment.start - times, times - segment.end), 0.0)
            speaking = np.maximum(speaking, np.exp(-((away / SPEAKING_S) ** 2)))
    return speaking


def _emphasis(segments: Sequence[Segment], times: Curve) -> Curve:
    rise = np.zeros(len(times))
    for segment in segments:
        if segment.stressed and segment.symbol in VOWELS:
            middle = 0.5 * (segment.start + segment.end)
            rise = np.maximum(rise, np.exp(-(((times - middle) / EMPHASIS_S) ** 2)))
    return rise


def _blinks(segments: Sequence[Segment], times: Curve) -> Curve:
    """A blink where a pause begins, as people do; at other times they blink, too, but the sound does not tell when."""
    blink = np.zeros(len(times))
    for place, segment in enumerate(segments):
        if place and segment.symbol is None and segment.end - segment.start >= BLINK_PAUSE_S:
            after = times - (segment.start + 0.04)
            width = np.where(after < 0.0, BLINK_CLOSES_S, BLINK_OPENS_S)
            blink = np.maximum(blink, 0.9 * np.exp(-((after / (0.6 * width)) ** 2)))
    return blink


def _coefficients(curves: dict[str, Curve], frames: int) -> Float[np.ndarray, "T 52"]:
    coefficients = np.zeros((frames, len(ARKIT_NAMES)), np.float32)
    for column, name in enumerate(ARKIT_NAMES):
        key = name if name in curves else name.removesuffix("Left").removesuffix("Right")
        if key in curves:
            coefficients[:, column] = np.clip(curves[key], 0.0, 1.0)
    return coefficients
