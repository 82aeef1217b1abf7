"""Tables of photos with meshes, row by row, in pieces that any process can do."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.face import registration, surface, surface_tree
from tasks import mesh_files, meshes, scan_landmarks, scan_surface
from tasks.annotations import AnnotationError, Annotations, read_landmark_table, read_rows, safe_name
from tasks.artifacts import Workspace, replace_file
from tasks.face_model import shared_face_model
from tasks.fan_out import Spread, serial
from tasks.mesh_files import MAX_MESH_BYTES
from tasks.meshes import MILLIMETRES, LabelGeometry, read_mesh
from tasks.prepared_photos import prepare_photo
from tasks.scan_landmarks import find_scan_landmarks
from tasks.source_params import FaceModelParams, IngestParams, ScansSource, ScanUnit
from tasks.sources import Candidate, Mesh, Refusal, candidate, check_folder, existing, known_value, table_of

SCAN_COLUMNS = ("photo", "mesh", "person")

CHUNK = 8
"""Rows that are read together, and those after them that show the same mesh."""

MESHES_AT_HAND = 64
"""So many meshes are kept while a chunk of rows is read, for rows that name them again."""


@dataclass(frozen=True)
class ScanChunk:
    """Rows for one call of `read_chunk`."""

    source: ScansSource
    folder: Path
    rows: tuple[dict[str, str], ...]
    annotations: Annotations
    """Of the photos of these rows."""
    params: IngestParams
    face_model: FaceModelParams
    workspace: Workspace


def read_scans(
    source: ScansSource,
    params: IngestParams,
    *,
    face_model: FaceModelParams,
    workspace: Workspace,
    spread: Spread = serial,
) -> Iterator[Candidate | Refusal]:
    """Every row of the table of scans, as candidate or refusal.

    Optional columns: `unit`, `landmarks` (the file of the mesh's 68 points), `neutral` (a mesh without expression) and
    `neutral_landmarks`; `fit_error_mm` (default 0) and `coverage` (default 1) are those of the mesh itself, to which
    its registration adds its own.
    Raises: FileNotFoundError or ValueError naming the table and the remedy, if it cannot be used at all.
    """
    folder = workspace.resolve(source.path)
    check_folder(source.name, folder)
    table = folder / safe_name(source.table)
    rows = read_rows(table, SCAN_COLUMNS, remedy=f"expected a CSV with columns {', '.join(SCAN_COLUMNS)}")
    if not rows:
        raise ValueError(f"{table}: no rows, expected one per photo; list the scans or correct ingest.sources")
    annotations = Annotations()
    landmarks = table_of(folder, None, "landmarks.csv")
    if landmarks is not None:
        read_landmark_table(landmarks, annotations)

    def chunks() -> Iterator[ScanChunk]:
        for group in _grouped(rows):
            yield ScanChunk(
                source=source,
                folder=folder,
                rows=group,
                annotations=annotations.of([row["photo"] for row in group]),
                params=params,
                face_model=face_model,
                workspace=workspace,
            )

    for items in spread(read_chunk, chunks()):
        yield from items


def read_chunk(chunk: ScanChunk) -> list[Candidate | Refusal]:
    """The rows of a chunk, as candidates or refusals."""
    source, folder = chunk.source, chunk.folder
    meshes_of = _Meshes(source, folder, chunk.face_model, chunk.workspace)
    found: list[Candidate | Refusal] = []
    for row in chunk.rows:
        try:
            name = safe_name(row["photo"])
            if not row["person"]:
                raise AnnotationError("missing_person", f"{source.table}: no person, expected a name")
            photo = prepare_photo(folder, name, chunk.params)
            item = candidate(source.name, name, photo, chunk.annotations, existing((folder / name).with_suffix(".pts")))
            if isinstance(item, Candidate):
                mesh = meshes_of.of(row)
                person = f"{source.name}/{row['person']}"
                item = replace(item, person=person, labelled=True, mesh=mesh, mesh_id=mesh.mesh_id)
            found.append(item)
        except AnnotationError as error:
            found.append(Refusal(source.name, row["photo"], error.reason, error.detail))
    return found


def kept_meshes(workspace: Workspace) -> Path:
    """Folder of registrations, by what they follow from; a scan that is there already is not registered again."""
    return workspace.root / ".mien" / "kept" / "ingest" / "meshes"


def forget_meshes(workspace: Workspace, *, before_ns: int) -> None:
    """Remove registrations that nobody has asked for since."""
    folder = kept_meshes(workspace)
    for path in folder.glob("*.npz") if folder.is_dir() else ():
        if path.stat().st_mtime_ns < before_ns:
            path.unlink(missing_ok=True)


def _grouped(rows: Sequence[dict[str, str]]) -> Iterator[tuple[dict[str, str], ...]]:
    group: list[dict[str, str]] = []
    for _, same in itertools.groupby(rows, key=lambda row: row["mesh"]):
        group += same
        if len(group) >= CHUNK:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


class _Meshes:
    """The meshes that a table names; each is read, and registered if it must be, once."""

    def __init__(self, source: ScansSource, folder: Path, face_model: FaceModelParams, workspace: Workspace) -> None:
        self._source = source
        self._folder = folder
        self._face_model = shared_face_model(face_model, workspace)
        self._model_hash = self._face_model.content_hash()
        self._kept = kept_meshes(workspace)
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
                points = self._folder / safe_name(landmarks) if landmarks else None
                self._known[key] = self._registered(self._folder / name, unit, points)
            except AnnotationError as error:
                self._known[key] = error
            if len(self._known) > MESHES_AT_HAND:
                del self._known[next(iter(self._known))]
        return known_value(self._known[key])

    def _registered(self, path: Path, unit: ScanUnit, landmarks: Path | None) -> LabelGeometry:
        kept = self._kept / f"{_digest(self._model_hash, path, unit, landmarks)}.npz"
        if kept.is_file():
            os.utime(kept)
            with np.load(kept, allow_pickle=False) as found:
                return LabelGeometry(found["vertices"], float(found["fit_error_mm"]), float(found["coverage"]), True)
        geometry = read_mesh(path, model=self._face_model, unit=unit, landmarks=landmarks)
        # What has the model's vertices already costs no more to read again.
        if geometry.registered:
            with replace_file(kept) as temporary:
                np.savez(
                    temporary,
                    vertices=geometry.vertices,
                    fit_error_mm=np.float64(geometry.fit_error_mm),
                    coverage=np.float64(geometry.coverage),
                )
        return geometry


def _digest(model_hash: str, path: Path, unit: ScanUnit, landmarks: Path | None) -> str:
    """Stands for all that a registration follows from: files, face model and code."""
    digest = hashlib.sha256(repr((model_hash, unit, path.suffix.lower())).encode())
    code = (registration, surface, surface_tree, mesh_files, meshes, scan_landmarks, scan_surface)
    points = landmarks
    if points is None:
        with suppress(AnnotationError):
            points = find_scan_landmarks(path)
    for file in (*(Path(str(module.__file__)) for module in code), path, points):
        if file is not None and file.is_file() and file.stat().st_size <= MAX_MESH_BYTES:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            digest.update(b"nothing")
    return digest.hexdigest()[:32]


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
