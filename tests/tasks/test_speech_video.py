"""Films with a stand-in for detector and reconstructor, which have tests of their own."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import nn

from models.face.procedural import procedural_face
from models.face.procedural_expressions import ARKIT_NAMES
from models.landmarks.detector import Detection
from models.types import FaceCoefficients
from tasks import speech_video
from tasks.artifacts import Workspace
from tasks.params import Params, load_params
from tasks.speech_candidates import SpeechCandidate, SpeechRefusal
from tasks.speech_params import VideoSource
from tasks.speech_video import FaceTracker, VideoError, read_videos, track_face
from tests.wav_files import hum

JAW = ARKIT_NAMES.index("jawOpen")
DARK = 60
"""Frames whose mean is darker show no face to the stand-in."""


class Detector:
    """Finds the same points in every frame that is bright enough."""

    points = np.random.default_rng(0).uniform(8.0, 56.0, (68, 2)).astype(np.float32)

    def detect(self, images: Sequence[np.ndarray], *, annotations: Any = None) -> list[Detection | None]:
        sure = np.full(68, 0.9, np.float32)
        box = np.array([8, 8, 56, 56], np.float32)
        return [Detection(self.points, sure, box, 1.0) if image.mean() > DARK else None for image in images]


class Reader(nn.Module):
    """Reads the jaw off the brightness of the crop."""

    def __init__(self) -> None:
        super().__init__()
        self.model = procedural_face(identity_modes=2)
        self.settings = type("Settings", (), {"crop_size_px": 32, "crop_scale": 1.0})()

    def forward(self, image: torch.Tensor, landmarks: torch.Tensor, confidence: torch.Tensor) -> FaceCoefficients:
        count = len(image)
        expression = torch.zeros(count, 52)
        expression[:, JAW] = 2.0 * (image.mean((1, 2, 3)) - 0.5)
        return FaceCoefficients(
            identity=torch.zeros(count, 2),
            expression=expression,
            albedo=torch.zeros(count, 1),
            lighting=torch.zeros(count, 9, 3),
            rotation=torch.zeros(count, 3),
            translation=torch.zeros(count, 3),
        )


@pytest.fixture(scope="module")
def tracker() -> FaceTracker:
    return FaceTracker(Detector(), Reader(), 64)  # type: ignore[arg-type]


def film(path: Path, brightness: np.ndarray, *, rate: int = 30, sound: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=rate)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=16_000) if sound else None
        for number, level in enumerate(brightness):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), round(255 * level), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            samples = (hum(len(brightness) / rate) * 32767).astype(np.int16)[None]
            for begin in range(0, samples.shape[1], 1024):
                piece = av.AudioFrame.from_ndarray(samples[:, begin : begin + 1024].copy(), format="s16", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 16_000, begin, Fraction(1, 16_000)
                container.mux(audio.encode(piece))
            container.mux(audio.encode())
    return path


def swell(frames: int) -> np.ndarray:
    return 0.75 - 0.2 * np.cos(2 * np.pi * np.arange(frames) / 30)


def test_coefficients_follow_the_picture(tmp_path: Path, tracker: FaceTracker) -> None:
    track = track_face(tracker, film(tmp_path / "a.mp4", swell(60)), max_seconds=10.0)
    assert track.rate_hz == pytest.approx(30.0, rel=0.01)
    assert track.face_share == 1.0
    assert np.corrcoef(track.coefficients[:, JAW], swell(60))[0, 1] > 0.99
    assert track.coefficients[:, JAW].max() == pytest.approx(0.9, abs=0.05)


def test_frames_without_a_face_are_bridged(tmp_path: Path, tracker: FaceTracker) -> None:
    brightness = np.full(40, 0.75)
    brightness[10:14] = 0.05
    track = track_face(tracker, film(tmp_path / "a.mp4", brightness), max_seconds=10.0)
    assert track.face_share == pytest.approx(0.9)
    assert track.coefficients[:, JAW].min() > 0.4


@pytest.mark.parametrize(
    ("brightness", "rate", "reason"),
    [(np.full(30, 0.05), 30, "no_face"), (swell(20), 5, "frame_rate"), (swell(1), 30, "no_picture")],
)
def test_films_that_cannot_be_used(
    tmp_path: Path, tracker: FaceTracker, brightness: np.ndarray, rate: int, reason: str
) -> None:
    with pytest.raises(VideoError) as caught:
        track_face(tracker, film(tmp_path / "a.mp4", brightness, rate=rate), max_seconds=10.0)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_a_folder_of_films(
    tmp_path: Path, tracker: FaceTracker, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "films"
    film(folder / "good.mp4", swell(90))
    film(folder / "mute.mp4", swell(90), sound=False)
    film(folder / "faceless.mp4", np.where(np.arange(90) < 40, 0.05, 0.75))
    (folder / "broken.mp4").write_bytes(b"not a film")
    (folder / "clips.csv").write_text("file,speaker,emotion\ngood.mp4,ann,joy\n", encoding="utf-8")
    monkeypatch.setattr(speech_video, "open_tracker", lambda *_: tracker)
    source = VideoSource(kind="video", name="films", path=folder)
    found = list(read_videos(source, folder, load_params(repository / "params.yaml"), Workspace(tmp_path)))
    refused = {item.path: item.reason for item in found if isinstance(item, SpeechRefusal)}
    assert refused == {"mute.mp4": "no_sound", "faceless.mp4": "no_face", "broken.mp4": "not_audio"}
    (clip,) = (item for item in found if isinstance(item, SpeechCandidate))
    assert (clip.path, clip.speaker, clip.emotion) == ("good.mp4", "films/ann", "joy")
    assert clip.known.all()
    assert abs(len(clip.audio) / 16_000 - len(clip.coefficients) / 50) < 0.1
    jaw = clip.coefficients[:, JAW]
    expected = np.interp((np.arange(len(jaw)) + 0.5) / 50, np.arange(90) / 30, swell(90))
    assert np.corrcoef(jaw[5:-5], expected[5:-5])[0, 1] > 0.98


def test_a_missing_checkpoint_is_named(tmp_path: Path, repository: Path) -> None:
    film(tmp_path / "films" / "a.mp4", swell(30))
    params: Params = load_params(repository / "params.yaml")
    source = VideoSource(kind="video", name="films", path=Path("films"))
    with pytest.raises(FileNotFoundError, match=r"artifacts/refusion/checkpoint.pt: missing; run the stage refusion"):
        list(read_videos(source, tmp_path / "films", params, Workspace(tmp_path)))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no films in"):
        list(read_videos(source, tmp_path / "none", params, Workspace(tmp_path)))
