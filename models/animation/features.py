"""Features of speech by a pretrained encoder of `transformers`, kept per clip: wav2vec 2.0, HuBERT and their kin.

Convention: one row per frame of 20 ms, centred like the frame; the encoder stays frozen. Sound goes in with zero mean
and unit variance, in pieces that overlap, because the attention of these networks grows with the square of the length.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.animation.clip import SAMPLES_PER_FRAME, SpeechClip, frame_count

PIECE_FRAMES, MARGIN_FRAMES = 1000, 100
HASHED_BYTES = 2**20


class EncoderError(ValueError):
    """A speech encoder that cannot be used; the message says which and what to do."""


@dataclass(frozen=True)
class SpeechEncoder:
    """A frozen network with what it takes to line its output up with frames."""

    network: nn.Module
    receptive_field: int
    """Samples that one row sees through the convolutions."""
    width: int
    identity: str
    """Of name and weights, for the cache."""

    @torch.inference_mode()
    def __call__(self, audio: Float[Tensor, " N"]) -> Float[Tensor, "T F"]:
        """Rows for all N // 320 frames."""
        frames = frame_count(audio.shape[0])
        if not frames:
            return audio.new_zeros(0, self.width)
        spread = audio.std(correction=0).clamp(min=1e-5)
        levelled = (audio[: frames * SAMPLES_PER_FRAME] - audio.mean()) / spread
        rows = []
        for first in range(0, frames, PIECE_FRAMES):
            last = min(frames, first + PIECE_FRAMES)
            begin, end = max(0, first - MARGIN_FRAMES), min(frames, last + MARGIN_FRAMES)
            piece = self._rows(levelled[begin * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME])
            rows.append(piece[first - begin : last - begin])
        return torch.cat(rows)

    def _rows(self, audio: Float[Tensor, " N"]) -> Float[Tensor, "T F"]:
        beyond = self.receptive_field - SAMPLES_PER_FRAME
        padded = functional.pad(audio, (beyond // 2, beyond - beyond // 2))
        return torch.as_tensor(self.network(padded[None]).last_hidden_state[0])


@lru_cache(maxsize=1)
def open_encoder(name: str) -> SpeechEncoder:
    """A speech encoder by its name on the model hub or by its folder; nothing in it is executed.

    Raises: EncoderError if it cannot be had, is no speech encoder or has another rate than 50 rows a second.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        network = AutoModel.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise EncoderError(
            f"speech encoder {name!r} cannot be opened ({reason}); name a folder or a model of the hub, or log_mel"
        ) from None
    config = network.config
    strides, kernels = getattr(config, "conv_stride", None), getattr(config, "conv_kernel", None)
    if not strides or not kernels:
        raise EncoderError(
            f"speech encoder {name!r} is a {config.model_type}, expected one that reads samples such as wav2vec2"
        )
    if math.prod(strides) != SAMPLES_PER_FRAME:
        rate = 16000 / math.prod(strides)
        raise EncoderError(f"speech encoder {name!r} gives {rate:g} rows a second, expected 50; choose another one")
    reach, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        reach += (kernel - 1) * step
        step *= stride
    network.eval().requires_grad_(False)
    return SpeechEncoder(network, reach, int(config.hidden_size), f"{name}/{_weights_hash(network)}")


def encoded_speech(clip: SpeechClip, *, encoder: str, cache: Path) -> Float[Tensor, "T F"]:
    """Features of a clip, from the cache where it has them; a file there that is broken is made again.

    Raises: EncoderError.
    """
    opened = open_encoder(encoder)
    key = hashlib.sha256(f"{opened.identity}/{clip.clip_id}".encode()).hexdigest()[:24]
    path = cache / f"{key}.npy"
    shape = (frame_count(len(clip.audio)), opened.width)
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        kept = None
    if kept is not None and kept.shape == shape and kept.dtype == np.float16:
        return torch.from_numpy(kept.astype(np.float32))
    made = opened(torch.from_numpy(clip.audio)).numpy().astype(np.float16)
    cache.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(suffix=".npy", dir=cache)
    with os.fdopen(handle, "wb") as file:
        np.save(file, made)
    Path(scratch).replace(path)
    # As it will be read from the cache, so that a second training sees the same numbers.
    return torch.from_numpy(made.astype(np.float32))


def _weights_hash(network: nn.Module) -> str:
    """Of the beginning of every tensor; enough to tell two trainings of one architecture apart."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.flatten()[: HASHED_BYTES // 64].float().numpy().tobytes())
    return digest.hexdigest()[:16]
