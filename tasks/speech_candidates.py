"""What sources of speech offer: clips that could be read, and files that could not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.animation.audio import AudioLimits
from tasks.speech_params import IngestSpeechParams


@dataclass(frozen=True)
class SpeechCandidate:
    """A clip with its curves, on its way into the store."""

    source: str
    path: str
    """Of the sound file relative to the source's folder; empty for synthetic speech."""
    speaker: str
    """Unique over all sources: source/speaker."""
    emotion: str
    style: str
    text: str | None
    split: str | None
    """Where the source says it; else the stage decides."""
    held_out: str | None
    audio: NDArray[np.float32]
    """Mono, 16 kHz, normalised."""
    coefficients: NDArray[np.float32]
    """(T, 52) at 50 Hz, before anything is cut to equal length."""
    known: NDArray[np.bool_]
    """(52,)"""
    phonemes: NDArray[np.int64] | None
    """(T,) or none."""
    level_db: float
    clipped_share: float
    sha256: str


@dataclass(frozen=True)
class SpeechRefusal:
    """A file that cannot be used."""

    source: str
    path: str
    reason: str
    detail: str


def audio_limits(params: IngestSpeechParams) -> AudioLimits:
    """What the params refuse."""
    return AudioLimits(
        min_seconds=params.min_seconds,
        max_seconds=params.max_seconds,
        max_file_bytes=params.max_file_bytes,
        min_sample_rate_hz=params.min_sample_rate_hz,
        max_sample_rate_hz=params.max_sample_rate_hz,
        silence_db=params.silence_db,
        max_clipped_share=params.max_clipped_share,
    )
