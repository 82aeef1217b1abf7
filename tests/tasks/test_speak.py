from __future__ import annotations

import numpy as np
import pytest

from models.animation.phonemes import ipa_symbols
from tasks.speak import SpeechError, Utterance, speak

pytest.importorskip("espeakng_loader")
CUP = Utterance("Bob's paper cup.", "en-us+f2")


def test_sound_and_phonemes_go_together() -> None:
    (spoken,) = speak([CUP])
    assert spoken.sample_rate_hz == 22_050
    seconds = len(spoken.samples) / spoken.sample_rate_hz
    assert 0.8 < seconds < 2.5
    starts = [start for start, _ in spoken.phonemes]
    assert starts == sorted(starts)
    assert 0.0 <= starts[0] <= starts[-1] <= seconds
    said = [symbol for _, ipa in spoken.phonemes for symbol in ipa_symbols(ipa)]
    assert said == ["b", "aa", "b", "z", "p", "ey", "p", "er", "k", "ah", "p"]
    # A p begins with its burst: what comes right before is nearly silent.
    burst = next(start for start, ipa in spoken.phonemes if ipa == "p")
    power = np.square(spoken.samples.astype(float))
    at = round(burst * spoken.sample_rate_hz)
    assert power[at - 400 : at - 100].mean() < 0.05 * power.mean()


def test_what_was_said_before_changes_nothing() -> None:
    other = Utterance("Something else, and longer!", "en-gb-scotland+m3", words_per_minute=220)
    first, _, again = speak([CUP, other, CUP])
    assert np.array_equal(first.samples, again.samples)
    assert first.phonemes == again.phonemes


def test_rate_and_pitch_are_heard() -> None:
    slow, fast = speak([Utterance("my mother", "en", words_per_minute=110), Utterance("my mother", "en", 220)])
    assert len(slow.samples) > 1.4 * len(fast.samples)


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(SpeechError, match="espeak-ng has no voice 'xx-none'; correct voices"):
        list(speak([Utterance("a", "xx-none")]))


def test_a_reader_that_stops_early_leaves_no_process() -> None:
    spoken = speak([CUP] * 50)
    next(iter(spoken))
    spoken.close()  # type: ignore[attr-defined]
