"""Films to animated 3D faces: one identity per person, steady expression and pose, a skin from the best frames.

`glb`, `json`, `csv` and `overlay` are about the film; the other outputs show its best frame of each person.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.face.camera import to_camera_space
from models.reconstruction.face_meshes import behind_openings
from models.reconstruction.film_tracker import FilmTracker, Person, View, without_shadows
from models.reconstruction.iris_colour import iris_colour
from models.reconstruction.photos import PhotoFace, Which
from models.reconstruction.video import FilmFace, filled_frames, film_camera, solve_track
from models.rendering.photo_texture import blend_looks
from models.rendering.texture import Texture
from models.types import FaceCoefficients, Mesh, map_tensors
from tasks.face_reader import FaceReader
from tasks.face_record import FaceRecord, Palette
from tasks.film_outputs import (
    FilmRecord,
    film_intrinsics,
    write_film_document,
    write_film_glb,
    write_film_overlay,
    write_film_weights,
)
from tasks.outputs import OutputWriter
from tasks.video_frames import VideoError, frame_count, read_frames

SHORTEST_S = 0.3
"""What looks like a face for less than this is none."""

MAX_SECONDS = 600.0

FILM_OUTPUTS: dict[str, tuple[str, Callable[[FilmRecord, Path], None]]] = {
    "glb": (".glb", write_film_glb),
    "json": (".json", write_film_document),
    "csv": (".csv", write_film_weights),
}
"""Suffix and writer of what is about a person's film."""


@dataclass(frozen=True)
class FilmReport:
    """What came of a film."""

    files: list[Path]
    persons: list[dict[str, Any]]
    """Number, frames and files of each."""
    faces: int
    """In all frames together."""


def reconstruct_video(
    path: Path,
    out: Path,
    reader: FaceReader,
    *,
    palette: Palette,
    outputs: Sequence[str],
    which: Which = "all",
    smooth: bool = True,
    max_seconds: float = MAX_SECONDS,
    progress: Callable[[int, int, int], None] | None = None,
) -> FilmReport:
    """Write the chosen outputs of every person of a film: all files or none.

    The person seen longest is called like the film, the next `<film>-2` and so on.
    Raises: VideoError if the film cannot be read or shows no face.
    """
    times: list[float] = []
    sizes: list[tuple[int, int]] = []

    def watched() -> Any:
        for time_s, frame in read_frames(path, max_seconds=max_seconds):
            times.append(time_s)
            sizes.append((frame.shape[0], frame.shape[1]))
            yield time_s, frame

    total = frame_count(path)
    tracker = FilmTracker(reader.photos, which=which, name=path.name)
    for done in tracker.run(watched()):
        if progress is not None:
            progress(done, max(total, done), tracker.faces)
    if not times:
        raise VideoError("no_picture", f"{path.name}: holds no frames; give a film of a face")
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0
    shortest = max(1.0, min(SHORTEST_S * rate, len(times) / 2))
    persons = [one for one in without_shadows(tracker.persons) if len(one.faces) >= shortest]
    if not persons:
        raise VideoError("no_face", f"{path.name}: no face in {len(times)} frames; film closer")
    records = [
        _record(
            person, reader, palette, np.array(times), sizes[0], number=number, stem=path.stem, smooth=smooth, rate=rate
        )
        for number, person in enumerate(persons, 1)
    ]
    files, said = _write(records, persons, path, out, outputs, rate=rate, max_seconds=max_seconds)
    return FilmReport(files, said, tracker.faces)


def _record(
    person: Person,
    reader: FaceReader,
    palette: Palette,
    times: np.ndarray,
    size: tuple[int, int],
    *,
    number: int,
    stem: str,
    smooth: bool,
    rate: float,
) -> FilmRecord:
    model = palette.model
    camera = film_camera(size, [face.focal_px for face in person.faces])
    film = solve_track(model, person.faces, camera, smooth=smooth)
    shown = [_in_film(view.face, film, view.frame, reader) for view in _good_views(person, film)]
    best = FaceRecord(
        face=shown[0],
        stem=stem if number == 1 else f"{stem}-{number}",
        palette=palette,
        origin=reader.origin,
        number=number,
        refinement={"film_frames": len(film.frames), "smoothed": smooth},
        person_iris=iris_colour(shown),
    )
    looks = [
        palette.painter.look(
            face.photo,
            face.reconstruction.mesh.vertices[0],
            intrinsics=face.intrinsics,
            without=behind_openings(face, palette.openings),
        )
        for face in shown
    ]
    texture: Texture = palette.painter.fill(
        blend_looks(looks),
        shown[0].reconstruction.mesh.vertices[0],
        albedo=best.albedo,
        lighting=shown[0].coefficients.lighting[0],
    )
    # Outputs about the best frame wear the same skin.
    best.__dict__["texture"] = texture
    filled, _ = filled_frames(film, times)
    between = (np.arange(len(times)) >= film.frames[0]) & (np.arange(len(times)) <= film.frames[-1])
    return FilmRecord(best=best, film=filled, seen=between, texture=texture, rate_hz=rate)


def _good_views(person: Person, film: FilmFace) -> list[View]:
    """Frames for the texture, the best first, of those in which the person was well seen."""
    good = [[view for view in side if view.frame in film.frames] for side in person.views.values()]
    best = [side[0] for side in good if side]
    # Where none is good, a doubtful picture is better than none.
    return sorted(best or [side[0] for side in person.views.values()], key=lambda view: -view.score)


def _in_film(face: PhotoFace, film: FilmFace, frame: int, reader: FaceReader) -> PhotoFace:
    """A face of a single frame with the person's identity, in the film's camera."""
    row = int(np.abs(film.frames - frame).argmin())
    own: FaceCoefficients = map_tensors(film.coefficients, lambda values: values[row : row + 1])
    model = reader.reconstructor.model
    with torch.no_grad():
        vertices = model.vertices(own.identity, own.expression)
        seen = to_camera_space(vertices, rotation=own.rotation, translation=own.translation)
        found = replace(
            face.reconstruction,
            coefficients=own,
            mesh=Mesh(vertices=seen, triangles=model.triangles),
            neutral=model.vertices(own.identity),
        )
    return replace(face, intrinsics=film_intrinsics(film), reconstruction=found)


def _write(
    records: Sequence[FilmRecord],
    persons: Sequence[Person],
    path: Path,
    out: Path,
    outputs: Sequence[str],
    *,
    rate: float,
    max_seconds: float,
) -> tuple[list[Path], list[dict[str, Any]]]:
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".reconstruct-", dir=out))
    about_best = [name for name in outputs if name not in FILM_OUTPUTS and name != "overlay"]
    try:
        writer = OutputWriter(scratch, about_best)
        said: list[dict[str, Any]] = []
        names: list[str] = []
        for record, person in zip(records, persons, strict=True):
            own = []
            for name in outputs:
                if name in FILM_OUTPUTS:
                    suffix, write = FILM_OUTPUTS[name]
                    write(record, scratch / f"{record.best.stem}{suffix}")
                    own.append(f"{record.best.stem}{suffix}")
            if about_best:
                own += [one.name for one in writer.add(record.best)]
            names += own
            said.append({"face": record.best.number, "frames": len(person.faces), "files": [str(out / n) for n in own]})
        finished = [one.name for one in writer.finish()] if about_best else []
        names += [name for name in finished if name not in names]
        if "overlay" in outputs:
            name = f"{path.stem}_overlay.mp4"
            frames = (frame for _, frame in read_frames(path, max_seconds=max_seconds))
            height, width = records[0].film.camera.size
            write_film_overlay(records, frames, scratch / name, rate_hz=rate, size=(height, width))
            names.append(name)
        for name in names:
            (scratch / name).replace(out / name)
    finally:
        shutil.rmtree(scratch)
    return [out / name for name in names], said
