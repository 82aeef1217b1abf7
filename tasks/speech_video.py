"""Face-capture videos as labelled speech: the workspace's reconstructor reads the coefficients off the frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.animation.audio import AudioError
from models.animation.one_identity import filled, smoothed, with_one_identity
from models.face.crop import apply_affine, crop_affine, warp_crop
from models.face.procedural_expressions import ARKIT_NAMES
from models.landmarks.detector import Detection, LandmarkDetector, ProvidedDetector
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor
from tasks.artifacts import Workspace, load_checkpoint
from tasks.detect import open_detector
from tasks.face_model import load_face_model
from tasks.images import Pixels, reduce
from tasks.params import Params
from tasks.speech_candidates import SpeechCandidate, SpeechRefusal
from tasks.speech_curves import at_frames
from tasks.speech_labels import ClipTable, LabelError
from tasks.speech_params import VideoSource
from tasks.speech_recordings import Recording
from tasks.video_frames import FILM_SUFFIXES, VideoError, read_frames

BATCH = 32
MIN_RATE_HZ = 12.0
"""Slower films miss most closures of the lips."""


@dataclass(frozen=True)
class FaceTracker:
    """What turns frames into coefficients."""

    detector: LandmarkDetector
    reconstructor: Reconstructor
    max_side_px: int

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which of ARKit's coefficients the face model has."""
        return np.array([name in self.reconstructor.model.expression_names for name in ARKIT_NAMES])


@dataclass(frozen=True)
class Track:
    """What a film shows."""

    times: NDArray[np.float64]
    """(K,) seconds since the sound began."""
    coefficients: NDArray[np.float64]
    """(K, 52)"""
    rate_hz: float
    face_share: float


def read_videos(
    source: VideoSource, folder: Path, params: Params, workspace: Workspace
) -> Iterator[SpeechCandidate | SpeechRefusal]:
    """Every film of a folder as candidate or refusal.

    Raises: FileNotFoundError or ValueError naming folder, table or checkpoint and the remedy.
    """
    table = ClipTable(source, folder)
    films = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in FILM_SUFFIXES and path.is_file()]
    if not films:
        raise ValueError(
            f"source {source.name}: no films in {folder}, expected {', '.join(FILM_SUFFIXES)}; "
            "correct ingest_speech.sources"
        )
    tracker = open_tracker(source, params, workspace)
    for path in films:
        name = path.relative_to(folder).as_posix()
        try:
            yield _candidate(source, name, path, params, table, tracker)
        except (AudioError, VideoError, LabelError) as error:
            yield SpeechRefusal(source.name, name, error.reason, str(error))
    yield from table.leftovers({path.relative_to(folder).as_posix() for path in films})


def open_tracker(source: VideoSource, params: Params, workspace: Workspace) -> FaceTracker:
    """Detector and reconstructor of the workspace.

    Raises: FileNotFoundError or ValueError naming the checkpoint and the remedy.
    """
    model = load_face_model(params, workspace)
    if not any(name in model.expression_names for name in ARKIT_NAMES):
        raise ValueError(
            f"source {source.name}: face model {model.name} has none of ARKit's expressions; use procedural or ict"
        )
    reconstructor = load_reconstructor(load_checkpoint(workspace.resolve(source.checkpoint)), model)
    detector = open_detector(params, workspace)
    if isinstance(detector, ProvidedDetector):
        raise ValueError(
            f"source {source.name}: detect_landmarks.detector is provided, but films come without landmarks; "
            "set hierarchical or face_alignment"
        )
    return FaceTracker(detector, reconstructor, params.ingest.max_side_px)


def _candidate(
    source: VideoSource, name: str, path: Path, params: Params, table: ClipTable, tracker: FaceTracker
) -> SpeechCandidate:
    section = params.ingest_speech
    recording = Recording.read(path, table.labels(name), section)
    track = track_face(tracker, path, max_seconds=section.max_seconds)
    if track.face_share < source.min_face_share:
        raise VideoError(
            "no_face",
            f"{name}: a face in {track.face_share:.0%} of the frames, expected {source.min_face_share:.0%}; "
            "film closer",
        )
    curves = smoothed(track.coefficients, rate_hz=track.rate_hz, cutoff_hz=source.smoothing_hz)
    seconds = float(track.times[-1]) + 1.0 / track.rate_hz
    return recording.candidate(
        source.name,
        name,
        coefficients=at_frames(track.times, np.clip(curves, 0.0, 1.0), seconds),
        known=tracker.known,
    )


@torch.inference_mode()
def track_face(tracker: FaceTracker, path: Path, *, max_seconds: float) -> Track:
    """Coefficients of every frame, with one identity for the whole film.

    Raises: VideoError if there is no picture, too few frames, or no face in any of them.
    """
    times: list[float] = []
    found: list[tuple[torch.Tensor, torch.Tensor, float] | None] = []
    batch: list[Pixels] = []
    for time, image in read_frames(path, max_seconds=max_seconds):
        times.append(time)
        batch.append(reduce(image, max_side_px=tracker.max_side_px))
        if len(batch) == BATCH:
            found += _faces(tracker, batch)
            batch = []
    if batch:
        found += _faces(tracker, batch)
    if len(times) < 2 or times[-1] <= times[0]:
        raise VideoError("no_picture", f"{path.name}: {len(times)} frames, expected a film")
    rate = (len(times) - 1) / (times[-1] - times[0])
    if rate < MIN_RATE_HZ:
        raise VideoError(
            "frame_rate", f"{path.name}: {rate:.1f} frames per second, expected {MIN_RATE_HZ:g}; film faster"
        )
    seen = np.array([face is not None for face in found])
    if not seen.any():
        raise VideoError("no_face", f"{path.name}: no face in any of {len(found)} frames; film closer")
    faces = [face for face in found if face is not None]
    model = tracker.reconstructor.model
    _, expression = with_one_identity(
        model,
        torch.stack([identity for identity, _, _ in faces]),
        torch.stack([expression for _, expression, _ in faces]),
        confidence=torch.tensor([confidence for _, _, confidence in faces]),
    )
    coefficients = np.zeros((len(found), len(ARKIT_NAMES)))
    for place, name in enumerate(ARKIT_NAMES):
        if name in model.expression_names:
            coefficients[seen, place] = expression[:, model.expression_names.index(name)].numpy()
    return Track(np.array(times), filled(coefficients, seen), rate, float(seen.mean()))


def _faces(tracker: FaceTracker, images: list[Pixels]) -> list[tuple[torch.Tensor, torch.Tensor, float] | None]:
    """Identity, expression and confidence of each frame's face, None where there is none."""
    detections: list[Detection | None] = tracker.detector.detect(images)
    places = [
        place
        for place, one in enumerate(detections)
        if one is not None and np.isfinite(one.landmarks).all() and np.ptp(one.landmarks, axis=0).min() > 0
    ]
    faces: list[tuple[torch.Tensor, torch.Tensor, float] | None] = [None] * len(images)
    if not places:
        return faces
    chosen = [one for one in (detections[place] for place in places) if one is not None]
    settings = tracker.reconstructor.settings
    points = torch.from_numpy(np.stack([one.landmarks for one in chosen]).astype(np.float32))
    confidence = torch.from_numpy(np.stack([one.confidence for one in chosen]).astype(np.float32))
    affine = crop_affine(points, size_px=settings.crop_size_px, scale=settings.crop_scale)
    crops = np.stack(
        [
            warp_crop(images[place], affine[row].double().numpy(), settings.crop_size_px)
            for row, place in enumerate(places)
        ]
    )
    coefficients = tracker.reconstructor(
        torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255.0,
        apply_affine(torch.linalg.inv(affine), points),
        confidence,
    )
    for row, place in enumerate(places):
        faces[place] = (
            coefficients.identity[row], coefficients.expression[row], float(confidence[row].mean())
        )  # fmt: skip
    return faces
