from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models.animation.animator import Animator, AnimatorSettings, reach_of_layers
from models.animation.gltf import read_glb
from models.animation.lips import calibrate_lips
from models.face.formats import save_face_model
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.animate import animate_speech
from tasks.animator_checkpoint import checkpoint_content, open_animator
from tasks.artifacts import Workspace, save_checkpoint
from tests.browser_player import play_glb, validate_glb
from tests.speaking_face import speaking_face
from tests.spoken_toy import toy_params
from tests.wav_files import hum, write_wav


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A face model, parameters, and an animator whose weights are chance."""
    place = Workspace(tmp_path / "workspace")
    place.root.mkdir()
    save_face_model(speaking_face(), place.root / "face.npz")
    content = toy_params().model_dump(mode="json", by_alias=True)
    place.params.write_text(yaml.safe_dump(content), encoding="utf-8")
    torch.manual_seed(0)
    reach = reach_of_layers(layers=1, position_kernel=9, memory=20, lookahead=8)
    settings = AnimatorSettings(("joy",), ("plain",), width=16, layers=1, heads=2, feed_forward=16, **reach)
    animator = Animator(settings)
    torch.nn.init.normal_(animator.output.weight)
    path = place.folder("train_animator") / "checkpoint.pt"
    save_checkpoint(path, checkpoint_content(animator, calibrate_lips(speaking_face()), "log_mel"))
    return place


def checkpoint(workspace: Workspace) -> Path:
    return workspace.folder("train_animator")


def test_speech_becomes_four_files(workspace: Workspace, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "hello.wav", hum(1.5))
    out = tmp_path / "out"
    written = animate_speech(speech, out, workspace=workspace, checkpoint=checkpoint(workspace), emotion="joy")
    assert [path.name for path in written] == ["hello.glb", "hello.csv", "hello.json", "hello.mp4"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in written)
    curves = json.loads((out / "hello.json").read_text())
    assert (curves["frames"], curves["emotion"], curves["face_model"]["name"]) == (75, "joy", "speaking")
    face, animation = read_glb(out / "hello.glb")
    assert face.target_names == ARKIT_NAMES
    assert animation is not None
    assert np.allclose(animation.weights, curves["weights"], atol=1e-5)
    assert animation.times_s[:2].tolist() == pytest.approx([0.01, 0.03])
    assert (out / "hello.mp4").stat().st_size > 1000


def test_the_same_speech_at_another_rate_and_in_stereo(workspace: Workspace, tmp_path: Path) -> None:
    def weights(name: str, audio: np.ndarray, rate: int) -> np.ndarray:
        speech = write_wav(tmp_path / f"{name}.wav", audio, rate=rate)
        animate_speech(speech, tmp_path, workspace=workspace, checkpoint=checkpoint(workspace), preview=False)
        return np.array(json.loads((tmp_path / f"{name}.json").read_text())["weights"])

    mono = weights("mono", hum(1.0), 16_000)
    voice = hum(1.0, rate=96_000, level=0.1)
    stereo = weights("stereo", np.stack([voice, voice], 1), 96_000)
    assert stereo.shape == mono.shape
    assert np.abs(stereo - mono).mean() < 0.02
    assert not (tmp_path / "mono.mp4").exists()


def test_an_animated_face_can_speak_again(workspace: Workspace, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "a.wav", hum(0.6))
    options = {"workspace": workspace, "checkpoint": checkpoint(workspace), "preview": False}
    animate_speech(speech, tmp_path / "one", **options)
    animate_speech(speech, tmp_path / "two", face=tmp_path / "one" / "a.glb", **options)
    (first, _), (second, _) = read_glb(tmp_path / "one" / "a.glb"), read_glb(tmp_path / "two" / "a.glb")
    assert np.allclose(first.targets, second.targets, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no sound at all" * 50, "cannot be decoded"),
    ],
)
def test_files_without_sound(workspace: Workspace, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        animate_speech(tmp_path / "a.wav", tmp_path / "out", workspace=workspace, checkpoint=checkpoint(workspace))
    assert not (tmp_path / "out").exists()


def test_bad_requests_write_nothing(workspace: Workspace, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "a.wav", hum(0.6))
    options = {"workspace": workspace, "checkpoint": checkpoint(workspace)}
    with pytest.raises(ValueError, match="emotion 'glee' is unknown, expected one of joy"):
        animate_speech(speech, tmp_path / "out", emotion="glee", **options)
    with pytest.raises(ValueError, match="style 'royal' is unknown"):
        animate_speech(speech, tmp_path / "out", style="royal", **options)
    with pytest.raises(ValueError, match="expected a folder"):
        animate_speech(speech, speech, **options)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        animate_speech(speech, tmp_path / "out", workspace=workspace, checkpoint=tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="no champion of mien-animator"):
        animate_speech(speech, tmp_path / "out", workspace=workspace)
    silent = write_wav(tmp_path / "silent.wav", np.zeros(16_000))
    with pytest.raises(ValueError, match="silence"):
        animate_speech(silent, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert not (workspace.root / "mlruns").exists()


def test_foreign_checkpoints_are_named(workspace: Workspace, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.pt", {"kind": "detector"})
    with pytest.raises(ValueError, match=r"other\.pt: holds a detector, expected an animator"):
        open_animator(tmp_path / "other.pt")


@pytest.mark.slow
def test_what_is_written_passes_the_validator_and_moves_in_a_browser(workspace: Workspace, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "a.wav", hum(1.0))
    animate_speech(speech, tmp_path, workspace=workspace, checkpoint=checkpoint(workspace), preview=False)
    assert validate_glb(tmp_path / "a.glb")["numErrors"] == 0
    weights = np.array(json.loads((tmp_path / "a.json").read_text())["weights"])
    jaw = weights[:, ARKIT_NAMES.index("jawOpen")]
    times = [(float(place) + 0.5) / 50 for place in (jaw.argmin(), jaw.argmax())]
    _, (shut, opened) = play_glb(tmp_path / "a.glb", times, tmp_path)
    assert opened.weights["jawOpen"] == pytest.approx(jaw.max(), abs=0.01)
    assert (np.abs(shut.picture.astype(int) - opened.picture).max(2) > 16).mean() > 0.002
