from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from models.animation.audio import AudioError, AudioLimits, normalised, read_audio, resampled, speech_level_db
from tests.wav_files import RATE, hum, write_float_wav, write_long_wav, write_wav


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    audio = hum(1.0)
    read, facts = read_audio(write_wav(tmp_path / "a.wav", audio))
    assert read.dtype == np.float32
    assert facts.sample_rate_hz == RATE
    assert facts.channels == 1
    assert facts.seconds == pytest.approx(1.0)
    np.testing.assert_allclose(read, audio, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000, 96_000])
def test_any_rate_gives_the_same_sound(tmp_path: Path, rate: int) -> None:
    read, facts = read_audio(write_wav(tmp_path / "a.wav", hum(1.0, rate=rate), rate=rate))
    assert facts.sample_rate_hz == rate
    assert abs(len(read) - RATE) <= 2
    assert np.corrcoef(read[500:15000], hum(1.0)[500:15000])[0, 1] > 0.999


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = hum(1.0)
    read, facts = read_audio(write_wav(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], 1)))
    assert facts.channels == 2
    np.testing.assert_allclose(read, left / 2.0, atol=1e-4)


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "empty":
        path.touch()
    elif kind == "header_only":
        write_wav(path, np.zeros(0))
    elif kind == "silent":
        write_wav(path, np.zeros(RATE))
    elif kind == "whisper":
        write_wav(path, hum(1.0, level=0.001))
    elif kind == "clipped":
        write_wav(path, np.clip(hum(1.0, level=3.0), -1.0, 1.0))
    elif kind == "short":
        write_wav(path, hum(0.2))
    elif kind == "text":
        path.write_text("this is no sound", encoding="utf-8")
    elif kind == "three_hours":
        write_long_wav(path, 3.0)
    elif kind == "slow":
        write_wav(path, hum(1.0, rate=4000), rate=4000)
    elif kind == "not_finite":
        audio = hum(1.0)
        audio[5000] = np.nan
        write_float_wav(path, audio)
    return path


@pytest.mark.parametrize(
    ("kind", "reason", "message"),
    [
        ("empty", "empty", "the file is empty"),
        ("header_only", "empty", "no sound in it"),
        ("silent", "silent", "digital silence, expected speech above -55 dB"),
        ("whisper", "silent", "expected speech above -55 dB; record it louder"),
        ("clipped", "clipped", "of the samples at full scale, expected at most 1.0%"),
        ("short", "too_short", "0.20 s, expected at least 0.5 s"),
        ("text", "not_audio", "cannot be decoded"),
        ("three_hours", "too_long", "10800 s or more, expected at most 900 s"),
        ("slow", "sample_rate", "4000 Hz, expected 8000 to 192000 Hz"),
        ("not_finite", "not_finite", "samples that are no numbers"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path, kind: str, reason: str, message: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(AudioError, match=message) as caught:
        read_audio(path)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(path.name)
    assert "\n" not in str(caught.value)


def test_a_file_that_hides_its_length_is_stopped_while_it_is_decoded(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", hum(3.0))
    content = bytearray(path.read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"  # a size that streams write
    path.write_bytes(bytes(content))
    with pytest.raises(AudioError, match="expected at most 2 s"):
        read_audio(path, AudioLimits(max_seconds=2.0))


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="expected at most 0"):
        read_audio(write_wav(tmp_path / "a.wav", hum(1.0)), AudioLimits(max_file_bytes=1000))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; name a sound file"):
        read_audio(tmp_path / "none.wav")


def test_level_counts_speech_only() -> None:
    tone = (0.1 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)).astype(np.float32)
    assert speech_level_db(tone) == pytest.approx(20 * math.log10(0.1 / math.sqrt(2)), abs=0.05)
    half = np.concatenate([tone, np.zeros(5 * RATE, np.float32)])
    assert speech_level_db(half) == pytest.approx(speech_level_db(tone), abs=0.05)
    assert speech_level_db(np.zeros(RATE, np.float32)) == -math.inf


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_normalised_speech_has_the_level(level: float) -> None:
    assert speech_level_db(normalised(hum(1.0, level=level), level_db=-23.0)) == pytest.approx(-23.0, abs=0.01)


def test_normalising_cuts_no_peak_and_lifts_no_silence() -> None:
    click = np.zeros(RATE, np.float32)
    click[::4000] = 0.9
    assert np.abs(normalised(click, level_db=-6.0)).max() <= 0.99
    silence = np.zeros(RATE, np.float32)
    assert np.array_equal(normalised(silence, level_db=-23.0), silence)


def test_resampling_keeps_length_in_seconds() -> None:
    assert abs(len(resampled(hum(2.0, rate=22_050), 22_050)) - 2 * RATE) <= 2
    same = hum(0.5)
    assert np.array_equal(resampled(same, RATE), same)
