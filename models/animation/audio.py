"""Sound files to mono speech at 16 kHz, at one loudness, with the facts by which a clip is judged.

Convention: samples are float32 in [-1, 1]; levels are dB of full scale, root mean square.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soxr
from jaxtyping import Float
from numpy.typing import NDArray

from models.animation.clip import SAMPLE_RATE_HZ

Samples = Float[np.ndarray, " N"]

FULL_SCALE = 0.999
"""From here a sample counts as clipped; 16 bits end at 0.99997, coded sound a little earlier."""
QUIET_DB = -60.0
"""Nobody speaks in a frame that is quieter."""
BELOW_LOUDEST_DB = 30.0
"""… or quieter by this than the loudest frame."""
MAX_GAIN_DB = 40.0
LEVEL_FRAME_S = 0.02


class AudioError(ValueError):
    """Sound that cannot be used: `reason` is a short code, the message says what was found and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class AudioLimits:
    """What is refused."""

    min_seconds: float = 0.5
    max_seconds: float = 900.0
    max_file_bytes: int = 2**30
    min_sample_rate_hz: int = 8000
    max_sample_rate_hz: int = 192_000
    silence_db: float = -55.0
    max_clipped_share: float = 0.01


@dataclass(frozen=True)
class AudioFacts:
    """What a file was before it was converted."""

    sample_rate_hz: int
    channels: int
    seconds: float
    level_db: float
    """Of the speech, before it was normalised."""
    clipped_share: float


def read_audio(path: Path, limits: AudioLimits | None = None) -> tuple[Samples, AudioFacts]:
    """The sound of a sound file or of a film as mono at 16 kHz, at its own level.

    Any number of channels is averaged; any rate within the limits is resampled. The file is decoded in pieces, so that
    a file that is too long costs no more memory than one that is not.
    Raises: AudioError with a one-line message, also for files that are no sound; FileNotFoundError.
    """
    limits = limits or AudioLimits()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a sound file")
    size = path.stat().st_size
    if not size:
        raise AudioError("empty", f"{path.name}: the file is empty, expected sound")
    if size > limits.max_file_bytes:
        raise AudioError(
            "file_too_large",
            f"{path.name}: {size / 2**20:.0f} MiB, expected at most {limits.max_file_bytes / 2**20:.0f}; cut it",
        )
    pieces: list[NDArray[np.float32]] = []
    clipped = heard = 0
    with _decoding(path), av.open(str(path), metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise AudioError("no_sound", f"{path.name}: holds no sound; give a file with a sound track")
        stream = container.streams.audio[0]
        rate, channels = int(stream.rate or 0), int(stream.channels or 0)
        if not limits.min_sample_rate_hz <= rate <= limits.max_sample_rate_hz:
            raise AudioError(
                "sample_rate",
                f"{path.name}: {rate} Hz, expected {limits.min_sample_rate_hz} to {limits.max_sample_rate_hz} Hz",
            )
        announced = _announced_seconds(container, stream)
        if announced > limits.max_seconds:
            raise _too_long(path, announced, limits)
        converter = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32")
        for block in _blocks(container, stream):
            clipped += int((np.abs(block) >= FULL_SCALE).any(0).sum())
            heard += block.shape[1]
            if heard > limits.max_seconds * rate:
                raise _too_long(path, heard / rate, limits)
            if not np.isfinite(block).all():
                raise AudioError("not_finite", f"{path.name}: holds samples that are no numbers; export it again")
            pieces.append(converter.resample_chunk(block.mean(0)))
        pieces.append(converter.resample_chunk(np.zeros(0, np.float32), last=True))
    audio = np.concatenate(pieces).astype(np.float32)
    seconds = heard / rate
    facts = AudioFacts(rate, channels, seconds, speech_level_db(audio), clipped / max(heard, 1))
    check_audio(audio, facts, limits, name=path.name)
    return audio, facts


def check_audio(audio: Samples, facts: AudioFacts, limits: AudioLimits, *, name: str) -> None:
    """Raises: AudioError if a sound is empty, too short, silent or clipped."""
    if not len(audio):
        raise AudioError("empty", f"{name}: no sound in it, expected speech")
    if facts.seconds < limits.min_seconds:
        raise AudioError("too_short", f"{name}: {facts.seconds:.2f} s, expected at least {limits.min_seconds:g} s")
    if facts.level_db < limits.silence_db:
        found = "digital silence" if math.isinf(facts.level_db) else f"{facts.level_db:.0f} dB"
        raise AudioError("silent", f"{name}: {found}, expected speech above {limits.silence_db:g} dB; record it louder")
    if facts.clipped_share > limits.max_clipped_share:
        raise AudioError(
            "clipped",
            f"{name}: {facts.clipped_share:.1%} of the samples at full scale, expected at most "
            f"{limits.max_clipped_share:.1%}; record it quieter",
        )


def speech_level_db(audio: Samples, *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """Level over the frames in which somebody speaks; minus infinity where there is none.

    A frame of 20 ms counts if it is above -60 dB and at most 30 dB below the loudest.
    """
    length = round(LEVEL_FRAME_S * sample_rate_hz)
    whole = len(audio) // length * length
    frames = audio[:whole].reshape(-1, length) if whole else audio[None]
    power = np.square(frames, dtype=np.float64).mean(1) if frames.size else np.zeros(0)
    if not power.size or not power.max():
        return -math.inf
    floor = max(10.0 ** (QUIET_DB / 10.0), power.max() * 10.0 ** (-BELOW_LOUDEST_DB / 10.0))
    spoken = power[power >= floor]
    return float(10.0 * np.log10(spoken.mean())) if spoken.size else float(10.0 * np.log10(power.max()))


def normalised(audio: Samples, *, level_db: float) -> Samples:
    """The same sound with its speech at a level, as far as no peak is cut; amplified by 40 dB at most."""
    found = speech_level_db(audio)
    if math.isinf(found):
        return audio
    gain = 10.0 ** (min(level_db - found, MAX_GAIN_DB) / 20.0)
    peak = float(np.abs(audio).max())
    return (audio * min(gain, 0.99 / peak)).astype(np.float32)


def resampled(audio: Samples, rate_hz: int) -> Float[np.ndarray, " M"]:
    """Mono sound of any rate at 16 kHz."""
    if rate_hz == SAMPLE_RATE_HZ:
        return audio.astype(np.float32)
    return np.asarray(soxr.resample(audio.astype(np.float32), rate_hz, SAMPLE_RATE_HZ), np.float32)


def _blocks(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[NDArray[np.float32]]:
    """Decoded sound as (channels, samples)."""
    planar = av.AudioResampler(format="fltp")
    for frame in container.decode(stream):
        for converted in planar.resample(frame):
            yield np.asarray(converted.to_ndarray(), np.float32)
    for converted in planar.resample(None):
        yield np.asarray(converted.to_ndarray(), np.float32)


def _announced_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _too_long(path: Path, seconds: float, limits: AudioLimits) -> AudioError:
    return AudioError(
        "too_long", f"{path.name}: {seconds:.0f} s or more, expected at most {limits.max_seconds:g} s; cut it"
    )


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Give the decoder's complaints our words."""
    try:
        yield
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise AudioError(
            "not_audio", f"{path.name}: cannot be decoded ({type(error).__name__}); give WAV, FLAC, MP3 or a film"
        ) from error
