"""Speech to coefficients, whole or while it is still being spoken.

Every row of features and every layer of the network depends on a bounded piece of sound, and the level of the speech on
what came before, so that chunks give what the whole recording gives, up to rounding.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.animation.animator import Animator
from models.animation.clip import SAMPLES_PER_FRAME
from models.animation.log_mel import CONTEXT, HOP, ROWS_PER_FRAME, LevelState, log_mel_piece

PIECE_FRAMES = 500
"""Frames that go through the network at once; attention costs the square."""


@torch.inference_mode()
def animate_features(
    animator: Animator, features: Float[Tensor, "N F"], *, emotion: int = 0, style: int = 0
) -> Float[Tensor, "T 52"]:
    """Coefficients of a whole recording of any length, in pieces that overlap by the network's reach."""
    step = animator.settings.features_per_frame
    frames = len(features) // step
    if not frames:
        return features.new_zeros(0, animator.output.out_features)
    found = [
        _window(animator, features, first, min(first + PIECE_FRAMES, frames), frames, emotion, style)
        for first in range(0, frames, PIECE_FRAMES)
    ]
    return torch.cat(found)


class AnimationStream:
    """Coefficients of sound that arrives in chunks of any size.

    A frame comes out once the sound has reached `delay_frames` beyond it; `finish` gives the rest.
    """

    def __init__(self, animator: Animator, *, emotion: int = 0, style: int = 0) -> None:
        if animator.settings.features_per_frame != ROWS_PER_FRAME:
            raise ValueError("the animator hears through a speech encoder, which needs whole recordings; use log_mel")
        self._animator, self._emotion, self._style = animator, emotion, style
        self._sound = torch.zeros(CONTEXT)
        self._level = LevelState()
        self._features = torch.zeros(0, animator.settings.feature_size)
        self._first = 0
        """Frame to which the first row that is kept belongs."""
        self._emitted = 0
        self._samples = 0

    @property
    def delay_frames(self) -> int:
        """How far beyond a frame the sound must have come; the features' window needs less than one more."""
        return self._animator.settings.context_frames[1] + 1

    @torch.inference_mode()
    def push(self, sound: Float[Tensor, " N"]) -> Float[Tensor, "T 52"]:
        """Take the next samples, mono at 16 kHz, and return the frames that are settled by now, perhaps none."""
        self._samples += len(sound)
        self._listen(sound)
        ready = self._first + len(self._features) // ROWS_PER_FRAME
        return self._emit(ready - self._animator.settings.context_frames[1], ready)

    @torch.inference_mode()
    def finish(self) -> Float[Tensor, "T 52"]:
        """Return the frames that are left; silence lies beyond the end, as for a whole recording."""
        self._listen(torch.zeros(CONTEXT))
        total = self._samples // SAMPLES_PER_FRAME
        return self._emit(total, total)

    def _listen(self, sound: Tensor) -> None:
        self._sound = torch.cat([self._sound, sound.float()])
        rows = max(0, (len(self._sound) - 2 * CONTEXT) // HOP)
        features, self._level = (
            log_mel_piece(self._sound[: rows * HOP + 2 * CONTEXT], self._level)
            if rows
            else (
                self._features[:0],
                self._level,
            )
        )
        self._sound = self._sound[rows * HOP :]
        self._features = torch.cat([self._features, features])

    def _emit(self, until: int, ready: int) -> Float[Tensor, "T 52"]:
        if until <= self._emitted:
            return self._features.new_zeros(0, self._animator.output.out_features)
        found = _window(
            self._animator,
            self._features,
            self._emitted - self._first,
            until - self._first,
            ready - self._first,
            self._emotion,
            self._style,
        )
        self._emitted = until
        stale = max(0, until - self._animator.settings.context_frames[0] - self._first)
        self._features = self._features[stale * ROWS_PER_FRAME :]
        self._first += stale
        return found


def _window(
    animator: Animator, features: Tensor, first: int, last: int, frames: int, emotion: int, style: int
) -> Float[Tensor, "T 52"]:
    """Frames `first` to `last` of `frames`, computed with the context that they depend on."""
    step, (past, future) = animator.settings.features_per_frame, animator.settings.context_frames
    low, high = max(0, first - past), min(frames, last + future)
    rows = features[low * step : high * step]
    names = torch.tensor([[emotion], [style]], device=features.device)
    return animator(rows[None], names[0], names[1])[0, first - low : last - low]
