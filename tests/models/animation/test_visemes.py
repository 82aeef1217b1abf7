from __future__ import annotations

import itertools

import numpy as np
import pytest

from models.animation.phonemes import BILABIALS, EMOTIONS, PHONEMES, STYLES, Segment
from models.animation.visemes import EMOTION_SHAPES, GLIDES, MANNERS, SHAPES, viseme_curves
from models.face.procedural_expressions import ARKIT_NAMES


def word(*sounds: str | None, step: float = 0.12) -> list[Segment]:
    return [Segment(place * step, (place + 1) * step, sound) for place, sound in enumerate(sounds)]


def curves(segments: list[Segment], emotion: str = "neutral", style: str = "plain") -> tuple[np.ndarray, np.ndarray]:
    return viseme_curves(segments, round(50 * segments[-1].end), emotion=emotion, style=style)


def channel(values: np.ndarray, name: str) -> np.ndarray:
    return values[:, ARKIT_NAMES.index(name)]


def gap(values: np.ndarray) -> np.ndarray:
    return channel(values, "jawOpen") - channel(values, "mouthClose")


def test_every_sound_emotion_and_style_has_rules() -> None:
    assert set(SHAPES) | set(GLIDES) == set(PHONEMES)
    assert set(EMOTION_SHAPES) == set(EMOTIONS)
    assert set(MANNERS) == set(STYLES)


@pytest.mark.parametrize(("emotion", "style"), list(itertools.product(EMOTIONS, STYLES)))
def test_coefficients_stay_in_range_and_lips_close(emotion: str, style: str) -> None:
    segments = word(None, "ae", "p", "aa", "m", "iy", "b", "ao", None, None)
    values, labels = curves(segments, emotion, style)
    assert values.shape == (60, 52)
    assert values.min() >= 0.0
    assert values.max() <= 1.0
    for sound in ("p", "b", "m"):
        frames = labels == PHONEMES.index(sound)
        assert frames.sum() >= 2
        assert gap(values)[frames].min() < 0.02
        for opener in ("mouthFunnel", "mouthLowerDownLeft", "mouthUpperUpRight"):
            assert channel(values, opener)[frames].min() < 0.05


@pytest.mark.parametrize("sound", [sound for sound in PHONEMES if sound not in ("p", "b", "m")])
def test_no_other_sound_closes_the_lips(sound: str) -> None:
    values, labels = curves(word(None, "aa", sound, "aa", None))
    assert gap(values)[labels == PHONEMES.index(sound)].min() > 0.05
    assert not np.isin(labels, BILABIALS).any()


def test_a_p_is_closed_before_its_burst() -> None:
    values, labels = curves(word("aa", "p", "aa"))
    closed = np.flatnonzero(gap(values) < 0.03)
    assert 0.045 <= (closed[0] + 0.5) / 50 <= 0.12
    assert (closed[-1] + 0.5) / 50 <= 0.15
    assert set(closed) >= set(np.flatnonzero(labels == PHONEMES.index("p")))
    assert set(labels[np.flatnonzero(labels == PHONEMES.index("p"))[-1] + 1 : 12]) == {PHONEMES.index("h")}


def test_neighbours_shape_each_other() -> None:
    alone, _ = curves(word("aa", "k", "aa"))
    rounded, _ = curves(word("uw", "k", "uw"))
    middle = len(alone) // 2
    assert channel(rounded, "mouthPucker")[middle] > channel(alone, "mouthPucker")[middle] + 0.1
    assert channel(alone, "jawOpen")[middle] > channel(rounded, "jawOpen")[middle] + 0.05


def test_a_pause_rests_and_brings_a_blink() -> None:
    values, labels = curves([*word("aa", "k"), Segment(0.24, 1.24, None)])
    assert (labels[12:] == -1).all()
    assert channel(values, "jawOpen")[-1] < 0.01
    assert channel(values, "eyeBlinkLeft").max() > 0.7
    assert channel(curves(word("aa", "k", "aa"))[0], "eyeBlinkLeft").max() == 0.0


def test_emotion_and_style_show() -> None:
    segments = word(None, "aa", "t", "iy", None)
    neutral, joy = curves(segments)[0], curves(segments, "joy")[0]
    assert (channel(joy, "mouthSmileLeft") - channel(neutral, "mouthSmileLeft")).min() > 0.2
    mumbled = curves(segments, style="mumbled")[0]
    assert channel(mumbled, "jawOpen").max() < 0.8 * channel(neutral, "jawOpen").max()


def test_curves_move_like_a_face() -> None:
    values, _ = curves(word(None, "b", "aa", "p", "iy", "m", "ao", "b", None), style="lively")
    assert np.abs(np.diff(values, axis=0)).max() < 0.5


@pytest.mark.parametrize(("emotion", "style", "what"), [("bored", "plain", "emotion"), ("joy", "sung", "style")])
def test_names_without_rules_are_refused(emotion: str, style: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what} '.*' has no viseme rules, expected one of"):
        curves(word("aa"), emotion, style)
