from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.animation.log_mel import (
    CENTRE_DB,
    CONTEXT,
    FLOOR_DB,
    HIGHEST_HZ,
    HOP,
    LOWEST_HZ,
    MEL_BINS,
    SPREAD_DB,
    LevelState,
    log_mel,
    log_mel_piece,
)
from tests.wav_files import RATE, hum


def tone(frequency: float, level: float = 0.1) -> torch.Tensor:
    return level * torch.sin(2 * torch.pi * frequency * torch.arange(RATE) / RATE)


@pytest.mark.parametrize("samples", [0, 319, 320, 321, 999, 16_000])
def test_two_rows_per_whole_frame(samples: int) -> None:
    assert log_mel(torch.randn(samples)).shape == (2 * (samples // 320), MEL_BINS)


def test_a_tone_lies_in_its_bin() -> None:
    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    for frequency in (200.0, 1000.0, 4000.0):
        place = (mel(frequency) - mel(LOWEST_HZ)) / (mel(HIGHEST_HZ) - mel(LOWEST_HZ)) * (MEL_BINS + 1) - 1
        assert abs(int(log_mel(tone(frequency))[50].argmax()) - place) <= 1.0


@pytest.mark.parametrize("cut", [[0, 100], [0, 1, 2, 50, 100], list(range(0, 101, 10))])
def test_pieces_give_what_the_whole_gives(cut: list[int]) -> None:
    audio = torch.from_numpy(hum(1.0)) * torch.linspace(0.1, 3.0, RATE)
    padded = functional.pad(audio, (CONTEXT, CONTEXT))
    state, rows = LevelState(), []
    for first, last in itertools.pairwise(cut):
        made, state = log_mel_piece(padded[first * HOP : last * HOP + 2 * CONTEXT], state)
        rows.append(made)
    torch.testing.assert_close(torch.cat(rows), log_mel(audio), atol=1e-4, rtol=0)


def test_a_row_sees_nothing_beyond_its_context() -> None:
    audio = torch.from_numpy(hum(1.0))
    later = audio.clone()
    later[40 * HOP + HOP + CONTEXT :] = 0.0
    assert torch.equal(log_mel(audio)[:41], log_mel(later)[:41])
    assert not torch.equal(log_mel(audio)[41], log_mel(later)[41])


def test_quiet_speech_is_brought_to_the_level_in_time() -> None:
    audio = torch.from_numpy(np.tile(hum(1.0, level=0.15), 20))
    quiet = log_mel(audio * 0.3)
    above_floor = quiet > (FLOOR_DB - CENTRE_DB) / SPREAD_DB + 0.1
    difference = (log_mel(audio) - quiet) * SPREAD_DB
    # Ten decibels and a half, of which the running level gives back two thirds in 20 s; its start weighs a second.
    assert float(difference[:20][above_floor[:20]].median()) == pytest.approx(10.5, abs=1.0)
    assert 0.0 < float(difference[-100:][above_floor[-100:]].median()) < 4.0


def test_silence_lies_at_the_floor_and_is_finite() -> None:
    rows = log_mel(torch.zeros(3200))
    assert torch.isfinite(rows).all()
    assert rows.max() == rows.min() == pytest.approx((-80.0 - CENTRE_DB) / SPREAD_DB)


def test_a_piece_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a piece of 500 samples, expected a multiple of 160 and 240 more"):
        log_mel_piece(torch.zeros(500), LevelState())
