"""Writes clips: sound and curves in shards, and a table of facts on which the verdict is passed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.animation.clip import FRAME_RATE_HZ, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, frame_count
from models.animation.phonemes import SILENCE
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.artifacts import write_table
from tasks.speech_candidates import SpeechCandidate, SpeechRefusal
from tasks.speech_clips import FRAMES

MOUTH = tuple(place for place, name in enumerate(ARKIT_NAMES) if name.startswith(("jaw", "mouth")))


class SpeechStore:
    """Collects what sources offer; nothing but the shard that is being filled stays in memory."""

    def __init__(self, folder: Path, *, shard_clips: int) -> None:
        self._frames = folder / "frames"
        self._frames.mkdir()
        self._shard_clips = shard_clips
        self._shard: list[dict[str, Any]] = []
        self._shards = 0
        self.rows: list[dict[str, Any]] = []
        """One per candidate: the columns of CLIPS and the facts that expectations look at."""
        self.refusals: list[SpeechRefusal] = []

    def refuse(self, refusal: SpeechRefusal) -> None:
        """Count a file that cannot be used."""
        self.refusals.append(refusal)

    def accept(self, clip: SpeechCandidate, split_of: Callable[[SpeechCandidate], tuple[str, str | None]]) -> None:
        """Store a clip: sound and curves are cut to whole frames of both.

        The verdict comes later: a clip that fails stays in its shard, where nothing points to it.
        """
        frames = min(frame_count(len(clip.audio)), len(clip.coefficients))
        audio = _int16(clip.audio[: frames * SAMPLES_PER_FRAME])
        curves = clip.coefficients[:frames]
        stored = np.clip(np.nan_to_num(curves), 0.0, 1.0).astype("<f2")
        stored[:, ~clip.known] = 0.0
        labels = np.full(frames, SILENCE, np.int16) if clip.phonemes is None else clip.phonemes[:frames]
        content = b"".join((clip.source.encode(), b"\0", audio.tobytes(), stored.tobytes()))
        clip_id = hashlib.sha256(content).hexdigest()[:16]
        split, held_out = split_of(clip)
        self.rows.append(
            {
                "row": len(self.rows),
                "sample_id": clip_id,
                "clip_id": clip_id,
                "source": clip.source,
                "path": clip.path,
                "speaker": clip.speaker,
                "emotion": clip.emotion,
                "style": clip.style,
                "text": clip.text,
                "split": split,
                "held_out": held_out,
                "seconds": len(clip.audio) / SAMPLE_RATE_HZ,
                "frames": frames,
                "known_channels": int(clip.known.sum()),
                "has_phonemes": clip.phonemes is not None,
                "level_db": clip.level_db,
                "clipped_share": clip.clipped_share,
                "sha256": clip.sha256,
                "shard": f"clips-{self._shards:05d}.parquet",
                **_facts(clip, curves),
            }
        )
        self._shard.append(
            {
                "clip_id": clip_id,
                "audio": audio.tobytes(),
                "coefficients": stored.tobytes(),
                "known": clip.known.tolist(),
                "phonemes": labels.astype(np.int16).tolist(),
            }
        )
        if len(self._shard) == self._shard_clips:
            self._flush()

    def close(self) -> None:
        """Write the last shard."""
        if self._shard:
            self._flush()

    def _flush(self) -> None:
        write_table(self._frames / f"clips-{self._shards:05d}.parquet", self._shard, FRAMES)
        self._shard = []
        self._shards += 1


def _int16(audio: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.clip(np.round(np.nan_to_num(audio) * 32767.0), -32768, 32767).astype("<i2")


def _facts(clip: SpeechCandidate, curves: NDArray[np.float32]) -> dict[str, float]:
    """What the expectations of `tasks/speech_expectations.py` look at."""
    finite = np.isfinite(clip.coefficients)
    known = np.nan_to_num(curves[:, clip.known], posinf=0.0, neginf=0.0)
    mouth = [place for place in MOUTH if clip.known[place]]
    moving = np.nan_to_num(curves[:, mouth]).std(0).max() if mouth and len(curves) else 0.0
    return {
        "length_difference_s": abs(len(clip.audio) / SAMPLE_RATE_HZ - len(clip.coefficients) / FRAME_RATE_HZ),
        "not_finite": float((~finite[:, clip.known]).sum()),
        "lowest": float(known.min()) if known.size else 0.0,
        "highest": float(known.max()) if known.size else 0.0,
        "mouth_motion": float(moving),
        "known_mouth_channels": float(len(mouth)),
    }
