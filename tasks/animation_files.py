"""Animations as files: Live Link Face CSV, JSON, and a film of the face with its sound."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from av.error import FFmpegError

from models.animation.clip import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from models.animation.gltf import MorphFace
from models.animation.portrait import Framing, draw_faces
from models.animation.rig import resample_curves
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.artifacts import write_json

LIVE_LINK_FPS = 60
ROTATIONS = tuple(f"{part}{angle}" for part in ("Head", "LeftEye", "RightEye") for angle in ("Yaw", "Pitch", "Roll"))
"""Columns that Live Link Face adds to the 52; speech says nothing about them."""

SWAPPED = (("JawLeft", "JawRight"), ("MouthLeft", "MouthRight"))
"""Live Link Face writes the right one first."""

FILM_FPS = 30
FILM_PX = 480
FRAMES_AT_ONCE = 16
VIDEO_CODECS = ("libx264", "libopenh264", "mpeg4")
"""The first that this build of FFmpeg has is taken."""


def live_link_names() -> list[str]:
    """The columns of the 52 shapes, as Live Link Face names and orders them."""
    names = [name[0].upper() + name[1:] for name in ARKIT_NAMES]
    for left, right in SWAPPED:
        first, second = sorted((names.index(left), names.index(right)))
        names[first], names[second] = right, left
    return names


def write_live_link(path: Path, curves: np.ndarray) -> None:
    """Write curves (T, 52) at 50 Hz as a CSV at 60 frames per second, from time code 00:00:00:00 on."""
    rows = resample_curves(curves, rate=FRAME_RATE_HZ, new_rate=LIVE_LINK_FPS)
    names = live_link_names()
    order = [ARKIT_NAMES.index(name[0].lower() + name[1:]) for name in names]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Timecode", "BlendshapeCount", *names, *ROTATIONS])
        for frame, values in enumerate(rows):
            cells = [f"{value:.5f}" for value in values[order]] + ["0.00000"] * len(ROTATIONS)
            writer.writerow([time_code(frame), len(names) + len(ROTATIONS), *cells])


def time_code(frame: int) -> str:
    """HH:MM:SS:FF.mmm of a frame at 60 per second."""
    seconds, rest = divmod(frame, LIVE_LINK_FPS)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}.000"


def write_curves(path: Path, curves: np.ndarray, origin: dict[str, Any]) -> None:
    """Write curves (T, 52) at 50 Hz as JSON, with where they come from."""
    write_json(
        path,
        {
            "convention": "frame t stands for (t + 0.5) / fps seconds; weights in [0, 1], a column per name",
            "fps": FRAME_RATE_HZ,
            "frames": len(curves),
            "names": list(ARKIT_NAMES),
            **origin,
            "weights": np.round(curves.astype(np.float64), 5).tolist(),
        },
    )


def write_film(path: Path, face: MorphFace, curves: np.ndarray, sound: np.ndarray) -> None:
    """Write a film of a face that wears curves (T, 52) at 50 Hz, with the sound (N,) at 16 kHz.

    Raises: ValueError if this build of FFmpeg can write no film.
    """
    codec = next((name for name in VIDEO_CODECS if name in av.codecs_available), None)
    if codec is None:
        raise ValueError(f"FFmpeg has none of the codecs {', '.join(VIDEO_CODECS)}; use --no-preview")
    try:
        with av.open(str(path), "w", format="mp4") as container:
            video = cast(av.VideoStream, container.add_stream(codec, rate=FILM_FPS))
            video.width = video.height = FILM_PX
            video.pix_fmt = "yuv420p"
            video.bit_rate = 1_500_000
            audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ)
            audio.layout = "mono"
            for picture in film_frames(face, curves):
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode(None))
            for piece in _sound_frames(sound):
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    except FFmpegError as error:
        raise ValueError(f"{path.name}: the film cannot be written ({error}); use --no-preview") from error


def film_frames(face: MorphFace, curves: np.ndarray) -> Iterator[np.ndarray]:
    """Pictures (480, 480, 3) of the face at 30 frames per second."""
    weights = torch.from_numpy(resample_curves(curves, rate=FRAME_RATE_HZ, new_rate=FILM_FPS))
    vertices, targets = torch.from_numpy(face.vertices), torch.from_numpy(face.targets)
    triangles, colours = torch.from_numpy(face.triangles), torch.from_numpy(face.colours)
    framing = Framing.around(vertices)
    if face.inner is not None:
        triangles = torch.cat([triangles, torch.from_numpy(face.inner.triangles).to(triangles) + len(vertices)])
        vertices = torch.cat([vertices, torch.from_numpy(face.inner.vertices)])
        targets = torch.cat([targets, torch.from_numpy(face.inner.targets)], 1)
        colours = torch.cat([colours, torch.from_numpy(face.inner.colours)])
    for some in torch.split(weights, FRAMES_AT_ONCE):
        worn = vertices + torch.einsum("tc,cvx->tvx", some, targets)
        yield from draw_faces(worn, triangles, colours, framing=framing, size_px=FILM_PX)


def _sound_frames(sound: np.ndarray) -> Iterator[av.AudioFrame]:
    size = 1024
    for start in range(0, len(sound), size):
        piece = np.ascontiguousarray(sound[start : start + size], np.float32)[None]
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts, frame.time_base = start, Fraction(1, SAMPLE_RATE_HZ)
        yield frame
