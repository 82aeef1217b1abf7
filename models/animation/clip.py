"""A clip of speech with its coefficients, and how frames, samples and seconds go together.

Convention: sound is mono, 16 kHz, float in [-1, 1]. Frame t covers samples [320 t, 320 (t + 1)) and stands for its
middle, at (t + 0.5) / 50 seconds. A clip of N samples has N // 320 frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

SAMPLE_RATE_HZ = 16_000
FRAME_RATE_HZ = 50
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FRAME_RATE_HZ


@dataclass(frozen=True)
class SpeechClip:
    """Sound, curves and what is known of them."""

    clip_id: str
    source: str
    speaker: str
    emotion: str
    style: str
    text: str | None
    split: str
    held_out: str | None
    """Test split only: `sentences`, `voices` or `clips`."""
    audio: Float[np.ndarray, " N"]
    coefficients: Float[np.ndarray, "T 52"]
    """In [0, 1], in the order of ARKIT_NAMES."""
    known: Bool[np.ndarray, " 52"]
    """Which coefficients carry meaning; the others are zero and teach nothing."""
    phonemes: Int[np.ndarray, " T"]
    """Numbers of PHONEMES; -1 where nobody speaks or it is not known."""


def frame_count(samples: int) -> int:
    """Whole frames in a number of samples."""
    return samples // SAMPLES_PER_FRAME


def frame_times(frames: int) -> Float[np.ndarray, " T"]:
    """Middle of every frame in seconds."""
    return (np.arange(frames) + 0.5) / FRAME_RATE_HZ
