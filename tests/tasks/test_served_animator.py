from __future__ import annotations

import base64
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from models.animation.log_mel import log_mel, mel_weights
from tests.wav_files import hum, write_wav


@pytest.fixture(scope="module")
def served(repository: Path) -> ModuleType:
    """The file as MLflow runs it, without our packages."""
    spec = importlib.util.spec_from_file_location("served_animator_alone", repository / "tasks" / "served_animator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_imports_nothing_of_ours(repository: Path) -> None:
    text = (repository / "tasks" / "served_animator.py").read_text()
    assert not [line for line in text.splitlines() if line.startswith(("from tasks", "from models", "import torch"))]


@pytest.mark.parametrize("samples", [16_000, 12_345, 320])
def test_features_are_those_of_training(served: ModuleType, samples: int) -> None:
    sound = np.concatenate([np.zeros(4_000, np.float32), hum(2.0, level=0.02)])[:samples]
    found = served.log_mel(sound, mel_weights().numpy())
    expected = log_mel(torch.from_numpy(sound)).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-3


def test_speech_in_many_shapes(served: ModuleType, tmp_path: Path) -> None:
    sound = hum(1.0)
    content = write_wav(tmp_path / "a.wav", np.stack([sound, sound], 1)).read_bytes()
    limits = {"rate_hz": 16_000, "max_seconds": 10.0}
    for value in (content, base64.b64encode(content).decode(), sound.tolist()):
        assert np.allclose(served.decode_speech(value, **limits), sound, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no base64!", "neither bytes"),
        (b"RIFFxxxx", "not a WAV file"),
        ([], "expected one row"),
        ([0.0, float("nan")] * 400, "outside"),
        ([0.1] * 100, "at least 320"),
        ([0.1] * 200_000, "at most 10 s"),
        (7, "int, expected bytes"),
    ],
)
def test_what_cannot_be_used(served: ModuleType, value: object, message: str) -> None:
    with pytest.raises(served.SpeechError, match=message):
        served.decode_speech(value, rate_hz=16_000, max_seconds=10.0)


def test_another_rate_is_refused(served: ModuleType, tmp_path: Path) -> None:
    content = write_wav(tmp_path / "a.wav", hum(1.0, rate=8_000), rate=8_000).read_bytes()
    with pytest.raises(served.SpeechError, match="16 bits at 8000 Hz, expected 16 bits at 16000 Hz"):
        served.decode_speech(content, rate_hz=16_000, max_seconds=10.0)
