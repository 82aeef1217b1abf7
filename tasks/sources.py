"""The photos that users bring as folders of images, and what any source hands to the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.annotations import AnnotationError, Annotations, read_landmark_table, read_person_table, read_pts
from tasks.fan_out import Spread, serial
from tasks.images import ImageError
from tasks.kept_photos import KeptPhotos
from tasks.meshes import Vertices
from tasks.prepared_photos import PreparedPhoto, prepare_photos
from tasks.source_params import IngestParams, PhotosSource

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Mesh:
    """A label mesh on its way into the store."""

    mesh_id: str
    vertices: Vertices
    neutral: Vertices | None
    fit_error_mm: float = 0.0
    coverage: float = 1.0


@dataclass(frozen=True)
class StoredPhoto:
    """Name, size in pixels and number of bytes of a photo as it is stored."""

    sample_id: str
    width: int
    height: int
    count: int


@dataclass(frozen=True)
class Candidate:
    """A photo that could be read, with what is known about it."""

    source: str
    path: str
    person: str
    """Unique over all sources: source/person."""
    content: bytes | None
    """As it is stored; None of a photo that lies in a shard of the former output."""
    labelled: bool = False
    landmarks: NDArray[np.float32] | None = None
    """(68, 2) in pixels of the stored photo."""
    rotation: NDArray[np.float32] | None = None
    mesh: Mesh | None = None
    mesh_id: str | None = None
    """Of a mesh that is stored already; `mesh` brings its own."""
    dense: NDArray[np.float32] | None = None
    """(D, 2) further vertices of the face model, in pixels of the stored photo."""
    outline: NDArray[np.float32] | None = None
    """(17, 2) the jaw points where people put them, in pixels of the stored photo."""
    stored: StoredPhoto | None = None
    """What the content would tell, where it is known without looking."""


@dataclass(frozen=True)
class Refusal:
    """A photo that cannot be used."""

    source: str
    path: str
    reason: str
    detail: str


def read_photos(
    source: PhotosSource, folder: Path, params: IngestParams, *, kept: KeptPhotos, spread: Spread = serial
) -> Iterator[Candidate | Refusal]:
    """Every file of a folder and every file that its tables name, as candidate or refusal.

    Convention: a `.pts` file beside a photo goes before `landmarks.csv`.
    Raises: FileNotFoundError or ValueError naming the folder or the table and the remedy, if it cannot be used at all.
    """
    check_folder(source.name, folder)
    annotations = Annotations()
    tables = [table_of(folder, source.landmarks, "landmarks.csv"), table_of(folder, source.persons, "persons.csv")]
    for table, read in zip(tables, (read_landmark_table, read_person_table), strict=True):
        if table is not None:
            read(table, annotations)
    known = {os.path.abspath(table) for table in tables if table is not None}  # noqa: PTH100 - follows no links
    files = [name for name in files_below(folder) if os.path.join(os.path.abspath(folder), name) not in known]  # noqa: PTH100, PTH118
    photos = [name for name in files if not name.lower().endswith(".pts")]
    points = {_stem(name): name for name in files if name.lower().endswith(".pts")}
    if not photos:
        raise ValueError(
            f"source {source.name}: no photos in {folder}, expected images; put some there or correct ingest.sources"
        )
    prepared = prepare_photos(folder, photos, kept.former(source.name), params, parts=kept.parts, spread=spread)
    for name, photo in zip(photos, kept.keep(source.name, prepared), strict=True):
        beside = points.get(_stem(name)) if points else None
        yield candidate(source.name, name, photo, annotations, None if beside is None else folder / beside)
    if points:
        for name in photos:
            points.pop(_stem(name), None)
    for name in points.values():
        yield Refusal(source.name, name, "missing_file", "landmarks without a photo")
    named = annotations.names()
    there = set(photos) if named else ()
    for name in named:
        if name not in there:
            yield Refusal(source.name, name, "missing_file", "a table names it, but there is no such file")
    for name, origin in annotations.unsafe:
        yield Refusal(source.name, name, "unsafe_path", f"in {origin}, expected a path inside the folder")


def files_below(folder: Path) -> Iterator[str]:
    """Every file below a folder, relative to it, in the order of the parts of their paths."""

    def below(place: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(place) as entries:
                found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        except OSError:
            # Stands for what is in it, and will be refused as unreadable.
            yield prefix.rstrip("/")
            return
        for name, is_folder in found:
            path = os.path.join(place, name)  # noqa: PTH118
            if is_folder:
                yield from below(path, f"{prefix}{name}/")
            elif not os.path.isdir(path):  # noqa: PTH112
                yield prefix + name

    yield from below(str(folder), "")


def candidate(
    source: str, name: str, photo: PreparedPhoto, annotations: Annotations, points: Path | None
) -> Candidate | Refusal:
    """A photo file with what its labels say, or why it cannot be used."""
    try:
        if photo.reason is not None:
            raise ImageError(photo.reason, photo.detail or "")
        landmarks = read_pts(points) if points is not None else known_value(annotations.landmarks.get(name))
        if landmarks is not None:
            # Pixels end at whole numbers in this convention, so that scaling needs no shift.
            stored, original = (photo.width, photo.height), (photo.original_width, photo.original_height)
            landmarks = np.asarray(
                landmarks * (np.array(stored, np.float32) / np.array(original, np.float32)), np.float32
            )
        person = known_value(annotations.persons.get(name))
    except (ImageError, AnnotationError) as error:
        return Refusal(source, name, error.reason, error.detail)
    assert photo.sample_id is not None, "a photo that is not refused has a name"
    stored_photo = StoredPhoto(photo.sample_id, photo.width, photo.height, photo.stored_bytes)
    person = f"{source}/{person or f'photo:{name}'}"
    return Candidate(source, name, person, photo.image, landmarks=landmarks, stored=stored_photo)


def known_value(value: Entry | AnnotationError) -> Entry:
    """The value itself.

    Raises: AnnotationError if that is what stands in for it.
    """
    if isinstance(value, AnnotationError):
        raise value
    return value


def check_folder(source: str, folder: Path) -> None:
    """Refuse a source without its folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"source {source}: no folder {folder}; correct its path in ingest.sources")


def table_of(folder: Path, named: Path | None, default: str) -> Path | None:
    """The table that is named, or the one of the usual name where there is one."""
    return folder / named if named is not None else existing(folder / default)


def existing(path: Path) -> Path | None:
    """The path of a file that is there."""
    return path if path.is_file() else None


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122
