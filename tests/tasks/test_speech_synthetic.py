from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.animation.audio import speech_level_db
from models.animation.phonemes import BILABIALS
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.speech_candidates import SpeechCandidate
from tasks.speech_params import IngestSpeechParams, SyntheticSpeechSource
from tasks.speech_synthetic import draw_speakers, read_sentences, recorded, synthesize_speech

pytest.importorskip("espeakng_loader")
PARAMS = IngestSpeechParams()


def source(**changes: Any) -> SyntheticSpeechSource:
    data = {"kind": "synthetic", "name": "said", "sentences": 8, "speakers": 4, "held_out_speakers": 1, **changes}
    return SyntheticSpeechSource.model_validate(data)


@pytest.fixture(scope="module")
def clips() -> Sequence[SpeechCandidate]:
    return list(synthesize_speech(source(), PARAMS, seed=0))


def test_every_sentence_is_read_as_often_as_asked(clips: Sequence[SpeechCandidate]) -> None:
    assert len(clips) == 16
    assert len({clip.text for clip in clips}) == 8
    for clip in clips:
        assert (
            len(clip.coefficients) == len(clip.audio) // 320 == len(clip.phonemes if clip.phonemes is not None else ())
        )
        assert clip.known.all()
        assert speech_level_db(clip.audio) == pytest.approx(-23.0, abs=0.1) or np.abs(clip.audio).max() > 0.98


def test_held_out_sentences_and_voices_are_not_trained_on(clips: Sequence[SpeechCandidate]) -> None:
    trained = [clip for clip in clips if clip.split != "test"]
    tests = [clip for clip in clips if clip.split == "test"]
    assert {clip.split for clip in clips} == {"train", "validation", "test"}
    assert not {clip.text for clip in trained} & {clip.text for clip in tests}
    assert {clip.held_out for clip in tests} == {"sentences", "voices"}
    strangers = {clip.speaker for clip in tests if clip.held_out == "voices"}
    assert not strangers & {clip.speaker for clip in clips if clip.held_out != "voices"}
    assert all(clip.held_out is None for clip in trained)


def test_lips_are_closed_where_the_sound_is_weak(clips: Sequence[SpeechCandidate]) -> None:
    jaw, close = ARKIT_NAMES.index("jawOpen"), ARKIT_NAMES.index("mouthClose")
    closed, others = [], []
    for clip in clips:
        labels = np.asarray(clip.phonemes)
        frames = np.square(clip.audio[: len(labels) * 320].reshape(-1, 320)).mean(1)
        bilabial = np.isin(labels, BILABIALS)
        gap = clip.coefficients[:, jaw] - clip.coefficients[:, close]
        assert gap[bilabial].mean() < 0.02
        closed += frames[bilabial].tolist()
        others += frames[(labels >= 0) & ~bilabial].tolist()
    assert np.mean(closed) < 0.5 * np.mean(others)


def test_the_same_seed_says_the_same(clips: Sequence[SpeechCandidate]) -> None:
    again = next(iter(synthesize_speech(source(), PARAMS, seed=0)))
    assert np.array_equal(again.audio, clips[0].audio)
    assert np.array_equal(again.coefficients, clips[0].coefficients)


def test_speakers_differ() -> None:
    speakers = draw_speakers(source(speakers=30, held_out_speakers=3), seed=0)
    assert len({speaker.voice for speaker in speakers}) == 30


def test_a_recording_is_noisy_and_never_cut() -> None:
    random = np.random.default_rng(0)
    loud = np.full(3200, 0.99, np.float32)
    for _ in range(5):
        heard = recorded(loud, random)
        assert heard.shape == loud.shape
        assert np.abs(heard).max() <= 0.99 + 1e-6
        assert np.ptp(heard[1600:]) > 0.0


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One boat.\n\n  Two maps. \nOne boat.\nThree pumps.\n", encoding="utf-8")
    assert read_sentences(path, source()) == ["One boat.", "Two maps.", "Three pumps."]
    assert read_sentences(path, source(sentences=2)) == ["One boat.", "Two maps."]
    path.write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match="no sentences, expected one per line"):
        read_sentences(path, source())
    path.write_text("a" * 500, encoding="utf-8")
    with pytest.raises(ValueError, match="a line of 500 characters, expected at most 400; split it"):
        read_sentences(path, source())
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_sentences(path, source())
    with pytest.raises(FileNotFoundError, match="no such file; correct text"):
        read_sentences(tmp_path / "none.txt", source())


@pytest.mark.parametrize("change", [{"emotions": ("bored",)}, {"styles": ("sung",)}])
def test_names_without_rules_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"source said: (emotion 'bored'|style 'sung'), expected one of"):
        next(iter(synthesize_speech(source(**change), PARAMS, seed=0)))
