"""The photos that users bring: folders of images, and tables of photos with meshes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.face.morphable import MorphableModel
from tasks.annotations import (
    AnnotationError,
    Annotations,
    read_landmark_table,
    read_person_table,
    read_pts,
    read_rows,
    safe_name,
)
from tasks.images import ImageError, decode, encode, read_file, reduce
from tasks.meshes import MILLIMETRES, LabelGeometry, Vertices, read_mesh
from tasks.source_params import IngestParams, PhotosSource, ScansSource

Entry = TypeVar("Entry")

SCAN_COLUMNS = ("photo", "mesh", "person")

MESHES_AT_HAND = 64
"""So many meshes are kept while a table of scans is read, for rows that name them again."""


@dataclass(frozen=True)
class Mesh:
    """A label mesh on its way into the store."""

    mesh_id: str
    vertices: Vertices
    neutral: Vertices | None
    fit_error_mm: float = 0.0
    coverage: float = 1.0


@dataclass(frozen=True)
class Candidate:
    """A photo that could be read, with what is known about it."""

    source: str
    path: str
    person: str
    """Unique over all sources: source/person."""
    content: bytes
    """As it is stored."""
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


@dataclass(frozen=True)
class Refusal:
    """A photo that cannot be used."""

    source: str
    path: str
    reason: str
    detail: str


def read_photos(source: PhotosSource, folder: Path, params: IngestParams) -> Iterator[Candidate | Refusal]:
    """Every file of a folder and every file that its tables name, as candidate or refusal.

    Convention: a `.pts` file beside a photo goes before `landmarks.csv`.
    Raises: FileNotFoundError or ValueError naming the folder or the table and the remedy, if it cannot be used at all.
    """
    _check_folder(source.name, folder)
    annotations = Annotations()
    tables = [_table(folder, source.landmarks, "landmarks.csv"), _table(folder, source.persons, "persons.csv")]
    for table, read in zip(tables, (read_landmark_table, read_person_table), strict=True):
        if table is not None:
            read(table, annotations)
    known = {table.absolute() for table in tables if table is not None}
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and path.absolute() not in known]
    points = {_stem(path, folder): path for path in files if path.suffix.lower() == ".pts"}
    photos = {path.relative_to(folder).as_posix(): path for path in files if path.suffix.lower() != ".pts"}
    if not photos:
        raise ValueError(
            f"source {source.name}: no photos in {folder}, expected images; put some there or correct ingest.sources"
        )
    for name, path in photos.items():
        yield _photo(source.name, name, path, annotations, points.get(_stem(path, folder)), params)
    taken = {_stem(path, folder) for path in photos.values()}
    for stem, path in points.items():
        if stem not in taken:
            yield Refusal(source.name, path.relative_to(folder).as_posix(), "missing_file", "landmarks without a photo")
    for name in annotations.names():
        if name not in photos:
            yield Refusal(source.name, name, "missing_file", "a table names it, but there is no such file")
    for name, origin in annotations.unsafe:
        yield Refusal(source.name, name, "unsafe_path", f"in {origin}, expected a path inside the folder")


def read_scans(
    source: ScansSource, folder: Path, params: IngestParams, *, face_model: MorphableModel
) -> Iterator[Candidate | Refusal]:
    """Every row of the table of scans, as candidate or refusal.

    Optional columns: `unit`, `landmarks` (the file of the mesh's 68 points), `neutral` (a mesh without expression) and
    `neutral_landmarks`; `fit_error_mm` (default 0) and `coverage` (default 1) are those of the mesh itself, to which
    its registration adds its own.
    Raises: FileNotFoundError or ValueError naming the table and the remedy, if it cannot be used at all.
    """
    _check_folder(source.name, folder)
    table = folder / safe_name(source.table)
    rows = read_rows(table, SCAN_COLUMNS, remedy=f"expected a CSV with columns {', '.join(SCAN_COLUMNS)}")
    if not rows:
        raise ValueError(f"{table}: no rows, expected one per photo; list the scans or correct ingest.sources")
    annotations = Annotations()
    landmarks = _table(folder, None, "landmarks.csv")
    if landmarks is not None:
        read_landmark_table(landmarks, annotations)
    meshes = _Meshes(source, folder, face_model)
    for row in rows:
        try:
            name = safe_name(row["photo"])
            if not row["person"]:
                raise AnnotationError("missing_person", f"{source.table}: no person, expected a name")
            path = folder / name
            candidate = _photo(source.name, name, path, annotations, _existing(path.with_suffix(".pts")), params)
            if isinstance(candidate, Candidate):
                mesh = meshes.of(row)
                person = f"{source.name}/{row['person']}"
                candidate = replace(candidate, person=person, labelled=True, mesh=mesh, mesh_id=mesh.mesh_id)
            yield candidate
        except AnnotationError as error:
            yield Refusal(source.name, row["photo"], error.reason, error.detail)


def _photo(
    source: str, name: str, path: Path, annotations: Annotations, points: Path | None, params: IngestParams
) -> Candidate | Refusal:
    try:
        if not path.exists():
            raise ImageError("missing_file", "no such file")
        image = decode(
            read_file(path, max_bytes=params.max_image_bytes),
            max_bytes=params.max_image_bytes,
            max_pixels=params.max_image_pixels,
            min_side_px=params.min_image_side_px,
        )
        stored = reduce(image, max_side_px=params.max_side_px)
        if min(stored.shape[:2]) < params.min_image_side_px:
            raise ImageError("too_small", f"{stored.shape[1]} x {stored.shape[0]} after reduction")
        landmarks = read_pts(points) if points is not None else _known(annotations.landmarks.get(name))
        if landmarks is not None:
            # Pixels end at whole numbers in this convention, so that scaling needs no shift.
            scale = np.array(stored.shape[1::-1], np.float32) / np.array(image.shape[1::-1], np.float32)
            landmarks = np.asarray(landmarks * scale, np.float32)
        person = _known(annotations.persons.get(name))
    except (ImageError, AnnotationError) as error:
        return Refusal(source, name, error.reason, error.detail)
    return Candidate(source, name, f"{source}/{person or f'photo:{name}'}", encode(stored), landmarks=landmarks)


class _Meshes:
    """The meshes that a table names; each is read, and registered if it must be, once."""

    def __init__(self, source: ScansSource, folder: Path, face_model: MorphableModel) -> None:
        self._source = source
        self._folder = folder
        self._face_model = face_model
        self._known: dict[tuple[str, str, str], LabelGeometry | AnnotationError] = {}

    def of(self, row: dict[str, str]) -> Mesh:
        """The mesh of a row.

        Raises: AnnotationError if it, or what the row says of it, cannot be used.
        """
        fit_error, coverage = _number(row, "fit_error_mm", 0.0, 1000.0), _number(row, "coverage", 0.0, 1.0)
        mesh = self._read(row, "mesh", "landmarks")
        neutral = self._read(row, "neutral", "neutral_landmarks") if row.get("neutral") else None
        return Mesh(
            mesh_id=f"{self._source.name}/{safe_name(row['mesh'])}",
            vertices=mesh.vertices,
            neutral=None if neutral is None else neutral.vertices,
            fit_error_mm=float(np.hypot(fit_error or 0.0, mesh.fit_error_mm)),
            coverage=(1.0 if coverage is None else coverage) * mesh.coverage,
        )

    def _read(self, row: dict[str, str], column: str, landmarks_column: str) -> LabelGeometry:
        name, landmarks = safe_name(row[column]), row.get(landmarks_column) or ""
        unit = row.get("unit") or self._source.unit
        if unit not in MILLIMETRES:
            raise AnnotationError("bad_unit", f"unit = {unit!r}, expected one of {', '.join(MILLIMETRES)}")
        key = (name, landmarks, unit)
        if key not in self._known:
            try:
                self._known[key] = read_mesh(
                    self._folder / name,
                    model=self._face_model,
                    unit=unit,
                    landmarks=self._folder / safe_name(landmarks) if landmarks else None,
                )
            except AnnotationError as error:
                self._known[key] = error
            if len(self._known) > MESHES_AT_HAND:
                del self._known[next(iter(self._known))]
        return _known(self._known[key])


def _number(row: dict[str, str], key: str, low: float, high: float) -> float | None:
    if not row.get(key):
        return None
    try:
        number = float(row[key])
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise AnnotationError("bad_number", f"{key} = {row[key]!r}, expected {low:g} to {high:g}")
    return number


def _known(value: Entry | AnnotationError) -> Entry:
    if isinstance(value, AnnotationError):
        raise value
    return value


def _check_folder(source: str, folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"source {source}: no folder {folder}; correct its path in ingest.sources")


def _table(folder: Path, named: Path | None, default: str) -> Path | None:
    return folder / named if named is not None else _existing(folder / default)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()
