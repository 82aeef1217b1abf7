"""Small sound files for tests."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np

RATE = 16_000


def hum(seconds: float, *, rate: int = RATE, level: float = 0.2, pitch: float = 150.0) -> np.ndarray:
    """A voice-like buzz that swells and fades three times a second."""
    times = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * pitch * harmonic * times) / harmonic for harmonic in range(1, 8))
    return (level * buzz * (0.55 - 0.45 * np.cos(2 * np.pi * 3 * times)) / 2.0).astype(np.float32)


def write_wav(path: Path, audio: np.ndarray, *, rate: int = RATE) -> Path:
    """16 bits; (N,) is mono, (N, C) has C channels."""
    samples = np.clip(np.round(audio * 32767.0), -32768, 32767).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def write_float_wav(path: Path, audio: np.ndarray, *, rate: int = RATE) -> Path:
    """32-bit floats, which can hold what is no number."""
    data = audio.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def write_long_wav(path: Path, hours: float) -> Path:
    """A file of so many hours at 8 kHz that takes no space on disk."""
    size = round(hours * 3600 * 8000) * 2
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", size)  # fmt: skip  # noqa: E501
    with path.open("wb") as file:
        file.write(head)
        file.truncate(44 + size)
    return path
