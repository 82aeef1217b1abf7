"""Clips of speech as the animator's training and evaluation need them: features, curves, and which frames are which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from models.animation.animator import UNKNOWN, AnimatorSettings
from models.animation.clip import FRAME_RATE_HZ, SpeechClip
from models.animation.log_mel import MEL_BINS, ROWS_PER_FRAME, log_mel
from models.animation.phonemes import BILABIALS, SILENCE
from tasks.artifacts import Workspace
from tasks.speech_clips import read_clips

LOG_MEL = "log_mel"

MAX_SHIFT_BINS = 4
"""By which the spectrum of a training window is shifted, as longer and shorter vocal tracts do."""
MAX_TILT = 0.4
NOISE = 0.15
"""In units of the features, which are about normal."""


@dataclass(frozen=True)
class PreparedClip:
    """One clip, as tensors."""

    clip: SpeechClip
    features: Tensor
    """(T × rows per frame, F)."""
    coefficients: Tensor
    """(T, 52)."""
    known: Tensor
    """(52,) as 0 or 1."""
    bilabial: Tensor
    """(T,) whether p, b or m is spoken."""
    spoken: Tensor
    """(T,) whether anything is; all of them where no sounds are labelled."""

    @property
    def frames(self) -> int:
        """T."""
        return len(self.coefficients)


@dataclass(frozen=True)
class WindowBatch:
    """Windows of equal length for one training step."""

    features: Tensor
    coefficients: Tensor
    known: Tensor
    """(B, T, 52) as 0 or 1, with zeros behind the end of a clip."""
    bilabial: Tensor
    emotion: Tensor
    style: Tensor

    def to(self, device: torch.device | str) -> WindowBatch:
        """The same on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def prepare_clips(workspace: Workspace, *, splits: Sequence[str], encoder: str) -> list[PreparedClip]:
    """Read clips of some splits and compute their features.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    folder = workspace.folder("ingest_speech")
    found = []
    for clip in read_clips(folder, splits=splits):
        frames = len(clip.coefficients)
        features, step = clip_features(clip, encoder, workspace)
        if len(features) < frames * step:
            raise ValueError(f"clip {clip.clip_id}: sound for {len(features) // step} of {frames} frames; ingest again")
        phonemes = torch.from_numpy(clip.phonemes.astype(np.int64))
        silent = phonemes == SILENCE
        found.append(
            PreparedClip(
                clip=clip,
                features=features[: frames * step],
                coefficients=torch.from_numpy(clip.coefficients),
                known=torch.from_numpy(clip.known).float(),
                bilabial=torch.isin(phonemes, torch.tensor(BILABIALS)),
                spoken=torch.ones_like(silent) if bool(silent.all()) else ~silent,
            )
        )
    if not found:
        raise ValueError(f"{folder}: no clips of the split {' or '.join(splits)}; ingest more speech")
    return found


def clip_features(clip: SpeechClip, encoder: str, workspace: Workspace) -> tuple[Tensor, int]:
    """Features of a clip (N, F) and how many rows belong to one frame."""
    if encoder == LOG_MEL:
        return log_mel(torch.from_numpy(clip.audio)), ROWS_PER_FRAME
    from models.animation.features import encoded_speech

    return encoded_speech(clip, encoder=encoder, cache=workspace.root / ".mien" / "speech_features"), 1


def feature_shape(encoder: str, clips: Sequence[PreparedClip]) -> dict[str, int]:
    """What the network's settings say of its input."""
    if encoder == LOG_MEL:
        return {"feature_size": MEL_BINS, "features_per_frame": ROWS_PER_FRAME}
    return {"feature_size": clips[0].features.shape[1], "features_per_frame": 1}


def manner_index(clip: SpeechClip, settings: AnimatorSettings) -> tuple[int, int]:
    """Indices of a clip's emotion and style; those that the network does not know count as unknown."""
    emotion = settings.emotions.index(clip.emotion) + 1 if clip.emotion in settings.emotions else UNKNOWN
    style = settings.styles.index(clip.style) + 1 if clip.style in settings.styles else UNKNOWN
    return emotion, style


def draw_windows(
    clips: Sequence[PreparedClip],
    count: int,
    *,
    settings: AnimatorSettings,
    window_s: float,
    unknown_share: float,
    generator: Generator,
) -> WindowBatch:
    """Random windows, of long clips more, with spectra varied and some emotions and styles hidden."""
    length, step = round(window_s * FRAME_RATE_HZ), settings.features_per_frame
    chosen = torch.multinomial(
        torch.tensor([float(clip.frames) for clip in clips]), count, replacement=True, generator=generator
    )
    features = torch.zeros(count, length * step, settings.feature_size)
    coefficients, known = torch.zeros(count, length, 52), torch.zeros(count, length, 52)
    bilabial = torch.zeros(count, length, dtype=torch.bool)
    manner = torch.zeros(count, 2, dtype=torch.long)
    for row, place in enumerate(chosen.tolist()):
        clip = clips[place]
        first = int(torch.randint(max(1, clip.frames - length + 1), (1,), generator=generator))
        last = min(clip.frames, first + length)
        size = last - first
        sound = clip.features[first * step : last * step]
        features[row, : size * step] = _varied(sound, generator) if step == ROWS_PER_FRAME else sound
        coefficients[row, :size] = clip.coefficients[first:last]
        known[row, :size] = clip.known
        bilabial[row, :size] = clip.bilabial[first:last]
        manner[row] = torch.tensor(manner_index(clip.clip, settings))
    manner[torch.rand(count, 2, generator=generator) < unknown_share] = UNKNOWN
    return WindowBatch(features, coefficients, known, bilabial, manner[:, 0], manner[:, 1])


def _varied(features: Tensor, generator: Generator) -> Tensor:
    """The same speech from another throat and another room."""
    shift = int(torch.randint(-MAX_SHIFT_BINS, MAX_SHIFT_BINS + 1, (1,), generator=generator))
    bins = features.shape[1]
    moved = features[:, (torch.arange(bins) - shift).clamp(0, bins - 1)]
    tilt, offset = (2.0 * torch.rand(2, generator=generator) - 1.0).mul(MAX_TILT).tolist()
    noise = NOISE * torch.randn(moved.shape, generator=generator)
    varied: Tensor = moved + torch.linspace(-tilt, tilt, bins) + offset + noise
    return varied
