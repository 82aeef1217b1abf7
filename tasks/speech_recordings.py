"""Sound files with their labels, which become clips once their curves are known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.animation.audio import AudioFacts, normalised, read_audio
from tasks.speech_candidates import SpeechCandidate, audio_limits
from tasks.speech_labels import ClipLabels
from tasks.speech_params import IngestSpeechParams


@dataclass(frozen=True)
class Recording:
    """The sound of a file with its labels, before its curves are known."""

    sound: Path
    labels: ClipLabels
    audio: NDArray[np.float32]
    """Mono, 16 kHz, at its own level."""
    facts: AudioFacts
    params: IngestSpeechParams

    @classmethod
    def read(cls, sound: Path, labels: ClipLabels, params: IngestSpeechParams) -> Recording:
        """Raises: AudioError if the sound cannot be used."""
        return cls(sound, labels, *read_audio(sound, audio_limits(params)), params)

    def candidate(
        self, source: str, name: str, *, coefficients: NDArray[np.float32], known: NDArray[np.bool_]
    ) -> SpeechCandidate:
        """The clip, once its curves are there."""
        with self.sound.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return SpeechCandidate(
            source=source,
            path=name,
            speaker=self.labels.speaker,
            emotion=self.labels.emotion,
            style=self.labels.style,
            text=None,
            split=self.labels.split,
            held_out=None,
            audio=normalised(self.audio, level_db=self.params.loudness_db),
            coefficients=coefficients,
            known=known,
            phonemes=None,
            level_db=self.facts.level_db,
            clipped_share=self.facts.clipped_share,
            sha256=digest,
        )
