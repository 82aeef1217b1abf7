"""Log-mel features at 100 Hz, two rows per frame, that come out the same for a whole clip and for its pieces.

Convention: row k covers a window of 25 ms around (k + 0.5) / 100 s, so it needs 120 samples on either side of its 160.
Level: a causal estimate of how loud the speech is by then moves every row to one loudness; its state travels from piece
to piece. It starts as if a second had been heard at the level of normalised clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.animation.clip import SAMPLE_RATE_HZ, frame_count

MEL_BINS = 80
ROWS_PER_FRAME = 2
HOP = 160
WINDOW = 400
FFT = 512
CONTEXT = (WINDOW - HOP) // 2
"""Samples that a row needs before and after its own."""
LOWEST_HZ, HIGHEST_HZ = 60.0, 7600.0
FLOOR_DB = -80.0
"""Of a mel bin, below full scale: what is quieter is noise of the recording."""
LEVEL_DB = -23.0
"""To which speech is moved, and at which the estimate starts."""
HEARD_DB = -55.0
"""Quieter rows say nothing about the level of speech."""
START_ROWS = 100.0
MAX_GAIN_DB = 30.0
CENTRE_DB, SPREAD_DB = -59.0, 13.0
"""About the mean and spread of the features over speech, so that networks see numbers around 0 and 1."""


@dataclass(frozen=True)
class LevelState:
    """Power and number of the rows heard so far."""

    power: float = START_ROWS * 10.0 ** (LEVEL_DB / 10.0)
    rows: float = START_ROWS


def log_mel(audio: Float[Tensor, " N"]) -> Float[Tensor, "K 80"]:
    """Features of a whole clip: two rows for each of its N // 320 frames. Silence lies beyond its ends."""
    rows = ROWS_PER_FRAME * frame_count(audio.shape[0])
    missing = max(0, CONTEXT - (audio.shape[0] - rows * HOP))
    padded = functional.pad(audio, (CONTEXT, missing))
    return log_mel_piece(padded[: rows * HOP + 2 * CONTEXT], LevelState())[0]


def log_mel_piece(audio: Float[Tensor, " N"], state: LevelState) -> tuple[Float[Tensor, "K 80"], LevelState]:
    """Features of a piece with its context: N is 160 K + 240, and the first row belongs to samples 120 to 280.

    Raises: ValueError if the length does not fit.
    """
    rows, rest = divmod(audio.shape[0] - 2 * CONTEXT, HOP)
    if rows < 0 or rest:
        raise ValueError(f"a piece of {audio.shape[0]} samples, expected a multiple of {HOP} and {2 * CONTEXT} more")
    if not rows:
        return audio.new_zeros(0, MEL_BINS), state
    windows = audio.unfold(0, WINDOW, HOP)
    spectrum = torch.fft.rfft(windows * _window().to(audio), FFT).abs().square()
    mel_db = 10.0 * torch.log10(torch.clamp(spectrum @ mel_weights().to(audio), min=1e-12))
    gain, state = _level_gain_db(windows.square().mean(1).double(), state)
    levelled = torch.clamp(mel_db + gain[:, None].to(mel_db), min=FLOOR_DB)
    return (levelled - CENTRE_DB) / SPREAD_DB, state


def _level_gain_db(power: Float[Tensor, " K"], state: LevelState) -> tuple[Float[Tensor, " K"], LevelState]:
    heard = (power > 10.0 ** (HEARD_DB / 10.0)).double()
    total = state.power + torch.cumsum(power * heard, 0)
    count = state.rows + torch.cumsum(heard, 0)
    gain = torch.clamp(LEVEL_DB - 10.0 * torch.log10(total / count), -MAX_GAIN_DB, MAX_GAIN_DB)
    return gain, LevelState(float(total[-1]), float(count[-1]))


@cache
def _window() -> Float[Tensor, " 400"]:
    return torch.hann_window(WINDOW, periodic=True)


@cache
def mel_weights() -> Float[Tensor, "257 80"]:
    """Triangles that are evenly spaced in mel (2595 log10(1 + f / 700)), scaled so that white noise is level.

    A tone of full scale reaches 0 dB: the window's coherent gain and the two halves of the spectrum are divided out.
    """

    def mel(hertz: float | np.ndarray) -> np.ndarray:
        return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hertz) / 700.0))

    edges = np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), MEL_BINS + 2)
    places = mel(np.arange(FFT // 2 + 1) * SAMPLE_RATE_HZ / FFT)[:, None]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0.0, np.minimum(rising, falling))
    amplitude = float(_window().sum()) / 2.0
    return torch.from_numpy((weights / amplitude**2).astype(np.float32))
