"""Photos to 3D faces in files, by the registry's champion or by a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.face.crop import crop_affine
from models.landmarks.detector import ProvidedDetector
from models.reconstruction.face_meshes import TEXTURE_PX
from models.reconstruction.iris_colour import iris_colour
from models.reconstruction.photo_fit import ANCHOR, LANDMARK_STEPS, PHOTO_STEPS, refine_coefficients
from models.reconstruction.photos import PhotoFace, Which, join_batches
from models.types import FaceCoefficients, map_tensors, to_device
from tasks.annotations import AnnotationError, Annotations, read_landmark_table
from tasks.artifacts import Workspace
from tasks.chosen_face_model import open_with_face_model
from tasks.ensembles import open_reader
from tasks.face_reader import FaceReader, chosen_device
from tasks.face_record import FaceRecord, Palette
from tasks.images import ImageError, Pixels, decode, read_file
from tasks.outputs import DEFAULT_OUTPUTS, OutputWriter, chosen_outputs
from tasks.params import load_params
from tasks.person_files import fuse_found, write_certainty
from tasks.photo_files import PHOTO_SUFFIXES, UNREADABLE_REMEDY, photo_paths
from tasks.video_frames import FILM_SUFFIXES, VideoError

TOGETHER = 16
"""Photos that go through detector and network as one batch …"""

PIXELS_TOGETHER = 40_000_000
"""… unless they are large: so many pixels are held in memory at once, or one photo."""

REFINED_TOGETHER = 4
"""Faces of different persons that are refined as one batch: more hardly save time."""

Progress = Callable[[int, int, int], None]
"""Called with the photos done, all photos, and the faces found so far."""


class ReconstructionError(ValueError):
    """Some photos could not be reconstructed; each was reported when its turn came. `report` holds the others."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class PhotoError(ValueError):
    """A photo that cannot be reconstructed; the message says why and what to do."""


@dataclass(frozen=True)
class Refinement:
    """How photos are to be refined after the network has seen them."""

    photo_steps: int = PHOTO_STEPS
    landmark_steps: int = LANDMARK_STEPS
    same_person: bool = False
    """Whether all photos show one person, whose identity and albedo they then share."""


@dataclass
class Report:
    """What came of a call."""

    files: list[Path] = field(default_factory=list)
    faces: list[dict[str, Any]] = field(default_factory=list)
    """Photo, number, score and files of each."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reasons by photo."""


@dataclass(frozen=True)
class FoundFace:
    """A face of one photo file."""

    path: Path
    number: int
    """Among the faces of the photo, the largest first."""
    face: PhotoFace
    refinement: dict[str, Any] | None = None

    @property
    def stem(self) -> str:
        """Of the names of its files: that of the photo, with the number of a further face."""
        return self.path.stem if self.number == 1 else f"{self.path.stem}-{self.number}"


def reconstruct_photos(
    photos: Sequence[Path],
    out: Path,
    *,
    workspace: Workspace,
    checkpoint: Path | Sequence[Path] | None = None,
    landmarks: Path | None = None,
    refinement: Refinement | None = None,
    aggregate: str | None = None,
    face_model: Path | None = None,
    reader: FaceReader | None = None,
    outputs: str | Iterable[str] = DEFAULT_OUTPUTS,
    which: Which = "all",
    device: str = "cpu",
    texture_px: int = TEXTURE_PX,
    smooth: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Write the chosen outputs of every face of every photo and film.

    A folder stands for the photos in it, a pattern for those it matches. The largest face of a photo is called like the
    photo, the next `<photo>-2` and so on. Faults of single photos go to stderr, one line each, and the others go on.
    `smooth` and what a film yields: see tasks/reconstruct_video.py. `aggregate`: all photos show one person, whose
    identity is put together so, see models/reconstruction/aggregate.py; files about the person come on top. Several
    checkpoints answer together. `face_model`: a file, see tasks/chosen_face_model.py. `reader`: what they would open,
    where it is open already.
    Raises: ReconstructionError at the end if there were any; ValueError or FileNotFoundError if nothing can be done.
    """
    chosen = chosen_outputs(outputs)
    params = load_params(workspace.params)
    given = Annotations()
    if landmarks is not None:
        read_landmark_table(landmarks, given)
    everything = list(photo_paths(photos, suffixes=(*PHOTO_SUFFIXES, *FILM_SUFFIXES)))
    films = [path for path in everything if path.suffix.lower() in FILM_SUFFIXES]
    found = [path for path in everything if path not in films]
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder; name another one with --out")
    if reader is None and face_model is not None:
        reader = open_with_face_model(face_model, params, workspace, checkpoint, device=chosen_device(device))
    elif reader is None:
        reader = open_reader(params, workspace, checkpoint, device=chosen_device(device))
    palette = Palette(reader.reconstructor.model, texture_px=texture_px)
    writer, report = OutputWriter(out, chosen), Report()
    for film in films:
        _add_film(film, out, reader, palette, chosen, report, which=which, smooth=smooth, progress=progress)
    done = 0
    same_person = aggregate is not None or (refinement is not None and refinement.same_person)
    for group in _groups(reader, found, given, report, which="best" if same_person else which, together=same_person):
        for some in _portions(group.faces, refinement):
            person = None
            if aggregate is not None and some:
                some, person = fuse_found(reader.reconstructor, some, method=aggregate)
            faces = some if refinement is None else refine_faces(reader, some, refinement)
            iris = iris_colour([one.face for one in faces]) if same_person and faces else None
            report.files += write_certainty(reader.reconstructor, faces, out, person=person)
            for one in faces:
                record = FaceRecord(
                    face=one.face,
                    stem=one.stem,
                    palette=palette,
                    origin=reader.origin,
                    number=one.number,
                    refinement=one.refinement,
                    person_iris=iris,
                )
                files = writer.add(record)
                report.faces.append(_said(one, files))
        done += group.photos
        if progress is not None:
            progress(done, len(found), len(report.faces))
    report.files += writer.finish()
    if report.failed:
        failed, things = len(report.failed), "photos and films" if films else "photos"
        others = f"; the others are in {out}" if failed < len(everything) else ""
        photos_failed = f"{failed} of {len(everything)} {things}" if len(everything) > 1 else "the photo"
        raise ReconstructionError(f"{photos_failed} could not be reconstructed, see above{others}", report)
    return report


def _add_film(
    film: Path,
    out: Path,
    reader: FaceReader,
    palette: Palette,
    outputs: tuple[str, ...],
    report: Report,
    *,
    which: Which,
    smooth: bool,
    progress: Progress | None,
) -> None:
    from tasks.reconstruct_video import reconstruct_video

    try:
        found = reconstruct_video(
            film, out, reader, palette=palette, outputs=outputs, which=which, smooth=smooth, progress=progress
        )
    except (VideoError, OSError) as error:
        reason = str(error).removeprefix(f"{film.name}: ")
        report.failed[str(film)] = reason
        sys.stderr.write(f"{film}: {reason}\n")
        return
    report.files += found.files
    report.faces += [{"photo": str(film), **person} for person in found.persons]


def read_face(reader: FaceReader, path: Path, points: np.ndarray | None = None) -> PhotoFace:
    """Reconstruct the best face of one photo; its 68 points are detected where they are not given.

    Raises: ImageError or PhotoError.
    """
    photo = _decoded(reader, path)
    (faces,) = reader.photos.read([photo], names=[path.name], points=[_checked(points)], which="best")
    if not faces:
        raise PhotoError(_NO_FACE)
    return faces[0]


def refine_faces(reader: FaceReader, faces: Sequence[FoundFace], refinement: Refinement) -> list[FoundFace]:
    """The same faces after per-photo optimisation from the network's coefficients."""
    network, device = reader.photos.network, reader.photos.device
    count = len(faces)
    batch = replace(
        join_batches([one.face.batch for one in faces]),
        person=torch.zeros(count, dtype=torch.int64) if refinement.same_person else torch.arange(count),
    )
    start = FaceCoefficients(
        **{
            name.name: torch.cat([getattr(one.face.coefficients, name.name) for one in faces])
            for name in fields(FaceCoefficients)
        }
    )
    batch = to_device(batch, device)
    refined = refine_coefficients(
        network.model,
        batch,
        to_device(start, device),
        anchor=ANCHOR,
        person=batch.person,
        landmark_steps=refinement.landmark_steps,
        photo_steps=refinement.photo_steps,
    )
    refined = to_device(refined, "cpu")
    done = []
    for place, one in enumerate(faces):
        own = map_tensors(refined, lambda values, place=place: values[place : place + 1])
        record = {
            "landmark_steps": refinement.landmark_steps,
            "photo_steps": refinement.photo_steps,
            "same_person_as": [other.path.name for other in faces if refinement.same_person and other is not one],
        }
        with torch.no_grad():
            face = replace(one.face, reconstruction=reader.reconstructor.reconstruct(own, one.face.batch.camera))
        done.append(replace(one, face=face, refinement=record))
    return done


@dataclass(frozen=True)
class _Group:
    """Faces of some photos."""

    faces: list[FoundFace]
    photos: int
    """How many photos were looked at, also those without a face."""


_NO_FACE = "no face was found; cut the photo closer to the face or give its points with --landmarks"


def _groups(
    reader: FaceReader, photos: Sequence[Path], given: Annotations, report: Report, *, which: Which, together: bool
) -> Iterator[_Group]:
    """The faces of photos, batch by batch, or all `together`; what fails is reported and left out."""
    taken: dict[str, Path] = {}
    waiting: list[tuple[Path, Pixels, np.ndarray | None]] = []
    kept: list[FoundFace] = []
    seen = 0

    def fail(photo: Path, error: Exception | str) -> None:
        remedy = f"; {UNREADABLE_REMEDY}" if isinstance(error, ImageError) else ""
        report.failed[str(photo)] = f"{error}{remedy}"
        sys.stderr.write(f"{photo}: {error}{remedy}\n")

    def look() -> list[FoundFace]:
        read = reader.photos.read(
            [pixels for _, pixels, _ in waiting],
            names=[path.name for path, _, _ in waiting],
            points=[points for _, _, points in waiting],
            which=which,
        )
        faces = []
        for (path, _, _), own in zip(waiting, read, strict=True):
            found = [FoundFace(path, number, face) for number, face in enumerate(own, 1)]
            first = next((taken[one.stem] for one in found if one.stem in taken), None)
            if first is not None:
                fail(path, f"its results would replace those of {first}; rename it or use another --out")
                continue
            if not found:
                fail(path, _NO_FACE)
            taken.update({one.stem: path for one in found})
            faces += found
        waiting.clear()
        return faces

    for photo in photos:
        seen += 1
        try:
            points = _checked(_given_points(given, photo))
            if points is None and isinstance(reader.detector, ProvidedDetector):
                raise PhotoError("the model has no detector of its own; give the photo's 68 points with --landmarks")
            waiting.append((photo, _decoded(reader, photo), points))
        except (PhotoError, AnnotationError, ImageError) as error:
            fail(photo, error)
        if len(waiting) >= TOGETHER or sum(one.shape[0] * one.shape[1] for _, one, _ in waiting) >= PIXELS_TOGETHER:
            kept += look()
            if not together:
                yield _Group(kept, seen)
                kept, seen = [], 0
    kept += look()
    if seen:
        yield _Group(kept, seen)


def _portions(faces: list[FoundFace], refinement: Refinement | None) -> Iterator[list[FoundFace]]:
    size = REFINED_TOGETHER if refinement is not None and not refinement.same_person else max(1, len(faces))
    for start in range(0, len(faces), size):
        yield faces[start : start + size]


def _decoded(reader: FaceReader, path: Path) -> Pixels:
    content = read_file(path, max_bytes=reader.max_image_bytes)
    return decode(content, max_bytes=reader.max_image_bytes, max_pixels=reader.max_image_pixels)


def _checked(points: np.ndarray | None) -> np.ndarray | None:
    if points is not None:
        try:
            crop_affine(torch.from_numpy(points.astype(np.float32))[None], size_px=1, scale=1.0)
        except ValueError as error:
            raise PhotoError(str(error)) from None
    return points


def _given_points(given: Annotations, photo: Path) -> np.ndarray | None:
    points = given.landmarks.get(photo.name, given.landmarks.get(photo.as_posix()))
    if isinstance(points, AnnotationError):
        raise points
    return points


def _said(one: FoundFace, files: Sequence[Path]) -> dict[str, Any]:
    return {
        "photo": str(one.path),
        "face": one.number,
        "score": round(one.face.detection.face_score, 4),
        "box_px": np.round(one.face.detection.box.astype(np.float64), 2).tolist(),
        "files": [str(path) for path in files],
    }
