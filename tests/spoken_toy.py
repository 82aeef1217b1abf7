"""Speech that a small network learns in seconds: buzzes for open mouths, with silent closures between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.animation.phonemes import PHONEMES
from models.face.formats import save_face_model
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.artifacts import Workspace, write_table
from tasks.params import Params, parse_params
from tasks.speech_clips import CLIPS, FRAMES
from tests.speaking_face import speaking_face
from tests.wav_files import hum

SYLLABLE, CLOSED = 14, 5
"""Frames of an open mouth, and of the closure after it."""
SPLITS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 3


def toy_params(**training: Any) -> Params:
    """A small network and the face of tests/speaking_face.py."""
    stage = {
        "init": "train_geometry",
        "steps": 1,
        "sources": [{"source": "photos", "share": 1.0, "losses": {"photo": 1.0}}],
    }
    small = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 32, "condition_width": 4, "dropout": 0.0}
    loop = {
        "steps": 60,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "validate_every": 30,
        "window_s": 1.0,
    }
    return parse_params(
        {
            "project": {"precision": "32-true", "device": "cpu"},
            "face_model": {"kind": "npz", "path": "face.npz"},
            "ingest": {"sources": [{"kind": "synthetic", "name": "photos", "persons": 3}]},
            "train_animator": {**small, **loop, **training},
            "evaluate_animator": {"pictures": 1},
            **{f"train_{name}": stage for name in ("self_supervised", "supervised", "fused")},
        }
    )


def toy_workspace(root: Path) -> Workspace:
    """Face model and clips, by turns joyful and neutral."""
    workspace = Workspace(root)
    save_face_model(speaking_face(), root / "face.npz")
    rows, frames = [], []
    for number, split in enumerate(SPLITS):
        audio, coefficients, phonemes = toy_clip(number)
        rows.append(
            {
                "clip_id": f"clip{number:02d}",
                "source": "toy",
                "path": "",
                "speaker": f"toy/{number % 3}",
                "emotion": "joy" if number % 2 else "neutral",
                "style": "plain",
                "text": "ba ba",
                "split": split,
                "held_out": "sentences" if split == "test" else None,
                "seconds": len(audio) / 16_000,
                "frames": len(coefficients),
                "known_channels": 52,
                "has_phonemes": True,
                "level_db": -23.0,
                "clipped_share": 0.0,
                "sha256": "",
                "shard": "clips-00000.parquet",
            }
        )
        frames.append(
            {
                "clip_id": f"clip{number:02d}",
                "audio": np.round(audio * 32767).astype("<i2").tobytes(),
                "coefficients": coefficients.astype("<f2").tobytes(),
                "known": [True] * 52,
                "phonemes": phonemes.tolist(),
            }
        )
    folder = workspace.folder("ingest_speech")
    write_table(folder / "clips.parquet", rows, CLIPS)
    (folder / "frames").mkdir()
    pq.write_table(pa.Table.from_pylist(frames, schema=FRAMES), folder / "frames" / "clips-00000.parquet")
    return workspace


def toy_clip(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sound, coefficients (T, 52) and sounds (T,) of a clip of about two seconds."""
    generator = np.random.default_rng(number)
    coefficients = np.zeros((5 * (SYLLABLE + CLOSED) + CLOSED, 52), np.float32)
    audio = 0.001 * generator.standard_normal(320 * len(coefficients)).astype(np.float32)
    phonemes = np.full(len(coefficients), PHONEMES.index("b"))
    jaw, close, smile = (ARKIT_NAMES.index(name) for name in ("jawOpen", "mouthClose", "mouthSmileLeft"))
    coefficients[:, jaw], coefficients[:, close] = 0.08, 0.1
    for syllable in range(5):
        first = CLOSED + syllable * (SYLLABLE + CLOSED)
        opened = slice(first, first + SYLLABLE)
        width = generator.uniform(0.5, 1.0)
        coefficients[opened, jaw] = 0.08 + 0.5 * width * np.sin(np.linspace(0.0, np.pi, SYLLABLE)) ** 0.5
        coefficients[opened, close] = 0.0
        phonemes[opened] = PHONEMES.index("aa")
        voice = hum(SYLLABLE / 50, pitch=110 + 20 * (number % 3), level=0.3 * width)
        audio[320 * first : 320 * (first + SYLLABLE)] += voice[: 320 * SYLLABLE]
    coefficients[:, smile] = 0.6 if number % 2 else 0.0
    return audio.clip(-1, 1), coefficients, phonemes
