"""A person's film as files: animated GLB, ARKit weights per frame, everything as JSON, the face drawn over the film."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from av.error import FFmpegError

from models.animation.gltf import Animation
from models.animation.morphs import has_arkit_shapes, morph_targets, morph_weights
from models.export import camera_document, overlay
from models.face.camera import angles_from_rotation, to_camera_space
from models.face.procedural_expressions import ARKIT_NAMES
from models.reconstruction.face_meshes import write_face_glb
from models.reconstruction.video import FilmFace
from models.rendering.texture import Texture
from tasks.animation_files import ROTATIONS, VIDEO_CODECS, live_link_names
from tasks.artifacts import write_json
from tasks.face_record import FaceRecord
from tasks.images import Pixels


@dataclass(frozen=True)
class FilmRecord:
    """A person of a film and all that the files say."""

    best: FaceRecord
    """The frame that shows the person best, with the person's identity: it stands for all outputs about one photo."""
    film: FilmFace
    """At all times of the film."""
    seen: np.ndarray
    """(N,) whether the person was seen, or is somewhere between two frames that show the person."""
    texture: Texture
    rate_hz: float

    @property
    def weights(self) -> np.ndarray:
        """(N, shapes) of `morph_targets`."""
        return morph_weights(self.best.model, self.film.coefficients.expression.numpy())


def head_motion(record: FilmRecord) -> tuple[np.ndarray, np.ndarray]:
    """Quaternions (N, 4) x, y, z, w and places (N, 3) in mm of the head in model axes, the middle place at the origin.

    The camera looks at the face from +z.
    """
    from scipy.spatial.transform import Rotation

    found = record.film.coefficients
    turns = Rotation.from_rotvec(found.rotation.double().numpy()).as_quat()
    # Neighbours on one side of the sphere, or a player that blends numbers would turn the long way round.
    signs = np.where((turns[1:] * turns[:-1]).sum(1) < 0.0, -1.0, 1.0)
    turns[1:] *= np.cumprod(signs)[:, None]
    places = found.translation.double().numpy() * np.array([1.0, -1.0, -1.0])
    return turns, places - np.median(places, axis=0)


def write_film_glb(record: FilmRecord, path: Path) -> None:
    """The person with morph targets, skin, and the film as animation."""
    turns, places = head_motion(record)
    animation = Animation(
        times_s=record.film.times_s - record.film.times_s[0],
        weights=record.weights,
        rotations=turns,
        translations=places,
    )
    write_face_glb(
        path,
        record.best.face.coefficients,
        record.best.model,
        painter=record.best.palette.painter,
        texture=record.texture,
        animation=animation,
        openings=record.best.palette.openings,
        iris=record.best.iris.colour,
        extras={
            "comment": f"{record.best.title}; metres, x to the subject's left, y up, z out of the face",
            "model": record.best.origin,
        },
    )


def write_film_weights(record: FilmRecord, path: Path) -> None:
    """Weights per frame: as Live Link Face writes them where the shapes are ARKit's, else a column per shape.

    Turns of the head are in radians. The last two columns name the face model and its licence.
    """
    model, weights = record.best.model, record.weights
    angles = angles_from_rotation(record.film.coefficients.rotation).numpy()
    licence = [model.name, " ".join(model.licence.split())]
    fps = max(1, round(record.rate_hz))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if has_arkit_shapes(model):
            names = live_link_names()
            order = [ARKIT_NAMES.index(name[0].lower() + name[1:]) for name in names]
            writer.writerow(["Timecode", "BlendshapeCount", *names, *ROTATIONS, "FaceModel", "FaceModelLicence"])
            for frame, (row, turn) in enumerate(zip(weights, angles, strict=True)):
                values = [*row[order], *turn, *[0.0] * (len(ROTATIONS) - 3)]
                cells = [f"{value:.5f}" for value in values]
                writer.writerow([time_code(frame, fps), len(names) + len(ROTATIONS), *cells, *licence])
            return
        shapes, _ = morph_targets(model)
        writer.writerow(["time_s", *shapes, "yaw", "pitch", "roll", "FaceModel", "FaceModelLicence"])
        for time_s, row, turn in zip(record.film.times_s, weights, angles, strict=True):
            writer.writerow([f"{time_s:.5f}", *(f"{value:.5f}" for value in (*row, *turn)), *licence])


def time_code(frame: int, fps: int) -> str:
    """HH:MM:SS:FF.mmm of a frame."""
    seconds, rest = divmod(frame, fps)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}.000"


def write_film_document(record: FilmRecord, path: Path) -> None:
    """Everything as numbers: identity and albedo once, expression and pose per frame; fit for `mien animate --face`."""
    best, found = record.best, record.film.coefficients
    camera = record.film.camera
    intrinsics = film_intrinsics(record.film)
    shown = camera_document(intrinsics, size=camera.size, rotation=found.rotation[0], translation=found.translation[0])
    kept = {key: shown[key] for key in ("convention", "width_px", "height_px", "K")}
    write_json(
        path,
        {
            "film": best.face.name,
            "face": best.number,
            "model": best.origin,
            "face_model": best.model.stamp(),
            "fps": round(record.rate_hz, 4),
            "frames": len(record.film.times_s),
            "coefficients": {
                "identity": _numbers(found.identity[0]),
                "albedo": _numbers(found.albedo[0]),
            },
            "iris": best.iris_document,
            "camera": {**kept, "pose": "R and t per frame, R = diag(1, -1, -1) exp(rotation)"},
            "expression_names": list(best.model.expression_names),
            "times_s": np.round(record.film.times_s, 5).tolist(),
            "seen": record.seen.tolist(),
            "expression": _numbers(found.expression),
            "rotation_axis_angle_rad": _numbers(found.rotation),
            "translation_mm": _numbers(found.translation),
        },
    )


def film_intrinsics(film: FilmFace) -> torch.Tensor:
    """(3, 3) camera space to pixels of a frame."""
    focal, (x, y) = float(film.camera.focal_px[0]), film.camera.principal_px[0].tolist()
    return torch.tensor([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]])


def write_film_overlay(
    records: Sequence[FilmRecord], frames: Iterable[Pixels], path: Path, *, rate_hz: float, size: tuple[int, int]
) -> None:
    """The film with the faces of all persons drawn over it, as MP4 without sound.

    Raises: ValueError if this build of FFmpeg can write no film.
    """
    codec = next((name for name in VIDEO_CODECS if name in av.codecs_available), None)
    if codec is None:
        raise ValueError(f"FFmpeg has none of the codecs {', '.join(VIDEO_CODECS)}; leave overlay out of --outputs")
    # Colours are stored for pairs of pixels.
    height, width = size[0] // 2 * 2, size[1] // 2 * 2
    try:
        with av.open(str(path), "w", format="mp4") as container:
            if records:
                container.metadata["copyright"] = _licence(records[0])
                container.metadata["comment"] = records[0].best.title
            video = cast(av.VideoStream, container.add_stream(codec, rate=Fraction(rate_hz).limit_denominator(1001)))
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.bit_rate = max(1_000_000, 4 * width * height)
            for picture in _drawn(records, frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
    except FFmpegError as error:
        raise ValueError(f"{path.name}: the film cannot be written ({error}); leave overlay out") from error


def _drawn(records: Sequence[FilmRecord], frames: Iterable[Pixels]) -> Iterator[Pixels]:
    for number, frame in enumerate(frames):
        picture = frame
        for record in records:
            if number < len(record.seen) and record.seen[number]:
                picture = _over(record, picture, number)
        yield picture


@torch.no_grad()
def _over(record: FilmRecord, picture: Pixels, number: int) -> Pixels:
    model, found = record.best.model, record.film.coefficients
    one = slice(number, number + 1)
    vertices = model.vertices(found.identity[one], found.expression[one])
    seen = to_camera_space(vertices, rotation=found.rotation[one], translation=found.translation[one])
    return overlay(
        picture,
        vertices=seen[0],
        triangles=model.triangles,
        albedo=record.best.albedo,
        lighting=found.lighting[number],
        intrinsics=film_intrinsics(record.film),
    )


def _licence(record: FilmRecord) -> str:
    return f"face model {record.best.model.name}: {' '.join(record.best.model.licence.split())}"


def _numbers(values: torch.Tensor) -> Any:
    return np.round(values.double().numpy(), 6).tolist()
