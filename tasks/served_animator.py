"""The registered animator: speech in, ARKit coefficients out. MLflow keeps this file with the model and runs it.

So it imports nothing of ours: numpy and onnxruntime do what torch does in training, and a test holds the two against
each other. A row of the answer belongs to one recording; see `SpeechAnimator.predict`.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import wave
from typing import Any

import numpy as np
import onnxruntime
import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

# As in models/animation/log_mel.py.
HOP, WINDOW, FFT, SAMPLES_PER_FRAME = 160, 400, 512, 320
CONTEXT = (WINDOW - HOP) // 2
FLOOR_DB, LEVEL_DB, HEARD_DB, MAX_GAIN_DB = -80.0, -23.0, -55.0, 30.0
START_ROWS, CENTRE_DB, SPREAD_DB = 100.0, -59.0, 13.0


class SpeechError(ValueError):
    """Speech that cannot be used; the message becomes the row's `error`."""


def decode_speech(value: Any, *, rate_hz: int, max_seconds: float) -> np.ndarray:
    """Mono samples in [-1, 1] of a WAV file (bytes, or the same in base64) or of a list of samples.

    Raises: SpeechError.
    """
    if isinstance(value, (list, np.ndarray)):
        samples = np.asarray(value, dtype=np.float32)
    else:
        samples = _decode_wave(value, rate_hz)
    if samples.ndim != 1 or not len(samples):
        raise SpeechError(f"speech: samples of shape {samples.shape}, expected one row of mono samples")
    if not np.isfinite(samples).all() or np.abs(samples).max() > 1.5:
        raise SpeechError("speech: samples outside [-1, 1], expected floats of full scale 1")
    if len(samples) > max_seconds * rate_hz:
        raise SpeechError(f"speech: {len(samples) / rate_hz:.0f} s, expected at most {max_seconds:g} s; cut it")
    if len(samples) < SAMPLES_PER_FRAME:
        raise SpeechError(f"speech: {len(samples)} samples, expected at least {SAMPLES_PER_FRAME}")
    return samples


def _decode_wave(value: Any, rate_hz: int) -> np.ndarray:
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise SpeechError("speech: neither bytes of a WAV file nor base64 of them") from None
    if not isinstance(value, (bytes, bytearray)):
        raise SpeechError(f"speech: {type(value).__name__}, expected bytes of a WAV file, base64 or samples")
    try:
        with wave.open(io.BytesIO(value)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError):
        raise SpeechError("speech: not a WAV file; convert it to 16-bit PCM") from None
    if rate != rate_hz or width != 2:
        raise SpeechError(f"speech: {8 * width} bits at {rate} Hz, expected 16 bits at {rate_hz} Hz; convert it")
    samples = np.frombuffer(content, "<i2").reshape(-1, channels).astype(np.float32)
    mono: np.ndarray = samples.mean(1) / np.float32(32768.0)
    return mono


def log_mel(samples: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Features (N, 80) of a whole recording, two rows per frame."""
    rows = 2 * (len(samples) // SAMPLES_PER_FRAME)
    padded = np.pad(samples, (CONTEXT, CONTEXT))[: rows * HOP + 2 * CONTEXT]
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(WINDOW) / WINDOW)
    spectrum = np.abs(np.fft.rfft(windows * hann, FFT)) ** 2
    mel_db = 10.0 * np.log10(np.maximum(spectrum @ filters, 1e-12))
    power = np.square(windows, dtype=np.float64).mean(1)
    heard = power > 10.0 ** (HEARD_DB / 10.0)
    total = START_ROWS * 10.0 ** (LEVEL_DB / 10.0) + np.cumsum(power * heard)
    gain = LEVEL_DB - 10.0 * np.log10(total / (START_ROWS + np.cumsum(heard)))
    levelled = np.maximum(mel_db + gain.clip(-MAX_GAIN_DB, MAX_GAIN_DB)[:, None], FLOOR_DB)
    features: np.ndarray = ((levelled - CENTRE_DB) / SPREAD_DB).astype(np.float32)
    return features


class SpeechAnimator(PythonModel):  # type: ignore[misc]
    """Speech to coefficients."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open graph, filters and settings."""
        with open(context.artifacts["settings_json"], encoding="utf-8") as file:  # noqa: PTH123
            self.settings = json.load(file)
        self.filters = np.load(context.artifacts["filters_npy"], allow_pickle=False)
        graph = context.artifacts.get("animator_onnx")
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]) if graph else None

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pandas.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pandas.DataFrame:
        """One row per recording: `names` (52), `weights` (T, 52) and `fps`, or an `error`.

        Columns: `speech` (a WAV file of 16 kHz as bytes or base64, or samples), `emotion` and `style` (optional names).
        """
        return pandas.DataFrame([self._answer(row) for row in model_input.to_dict("records")])

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        empty = {"error": None, "fps": float(self.settings["fps"]), "names": self.settings["names"], "weights": None}
        try:
            if self.session is None:
                raise SpeechError(f"this version hears through {self.settings['encoder']}; use mien animate")
            manner = [self._index(row.get(kind), kind) for kind in ("emotion", "style")]
            limits = {"rate_hz": self.settings["sample_rate_hz"], "max_seconds": self.settings["max_seconds"]}
            features = log_mel(decode_speech(row.get("speech"), **limits), self.filters)
        except SpeechError as error:
            return {**empty, "error": str(error)}
        names = np.tile(np.array(manner, np.float32), (1, len(features), 1))
        (found,) = self.session.run(["coefficients"], {"features": features[None], "manner": names})
        return {**empty, "weights": found[0].astype(np.float64).tolist()}

    def _index(self, name: Any, kind: str) -> int:
        known = self.settings[f"{kind}s"]
        if not isinstance(name, str) or not name:
            return 0
        if name not in known:
            raise SpeechError(f"{kind} {name!r} is unknown, expected one of {', '.join(known)}; or leave it out")
        return int(known.index(name)) + 1


set_model(SpeechAnimator())
