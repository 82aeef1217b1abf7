"""The 68 points of a scan, from a file beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.types import LANDMARK_COUNT
from tasks.annotations import AnnotationError

ENDINGS = (".landmarks.csv", ".landmarks.npz", ".landmarks.npy", ".landmarks.ljson", ".ljson")
"""Instead of the mesh's own ending; the first that exists counts."""

MAX_LANDMARK_BYTES = 2**20

ARRAY_NAMES = ("landmarks",)

Points = NDArray[np.float64]


def find_scan_landmarks(mesh: Path) -> Path:
    """The file of landmarks beside a mesh.

    Raises: AnnotationError if there is none.
    """
    for ending in ENDINGS:
        path = mesh.with_suffix(ending)
        if path.is_file():
            return path
    raise AnnotationError(
        "landmarks_missing",
        f"{mesh.name}: not in the topology of the face model, so it needs its 68 points; "
        f"put {mesh.with_suffix(ENDINGS[0]).name} beside it, or name a file in the column landmarks",
    )


def read_scan_landmarks(path: Path) -> Points:
    """Points (68, 3) in iBUG order and the unit of the mesh, from CSV, NPY, NPZ or LJSON; missing ones are NaN.

    CSV: 68 rows of x, y, z, a header is allowed, empty cells are missing. NPZ: the array `landmarks`. LJSON, as menpo
    writes it: labelled groups may come in any order; of two eyes, the one nearer to the first jaw point comes first.
    Raises: AnnotationError if there is no such file, it cannot be read, or does not hold 68 points.
    """
    if not path.is_file():
        raise AnnotationError("landmarks_missing", f"{path.name}: no such file")
    if path.stat().st_size > MAX_LANDMARK_BYTES:
        raise AnnotationError("landmarks_unreadable", f"{path.name}: more than {MAX_LANDMARK_BYTES} bytes")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise AnnotationError("landmarks_unreadable", f"{path.name}: expected a file of kind {', '.join(READERS)}")
    try:
        points = np.asarray(reader(path), np.float64)
    except AnnotationError:
        raise
    except Exception as error:  # noqa: BLE001 - parsers raise errors of many kinds for malformed files
        raise AnnotationError("landmarks_unreadable", f"{path.name}: {type(error).__name__}: {error}"[:200]) from None
    if points.shape != (LANDMARK_COUNT, 3):
        found = " x ".join(str(length) for length in points.shape)
        raise AnnotationError("landmarks_wrong_count", f"{path.name}: {found}, expected {LANDMARK_COUNT} x 3")
    # A point that is known by half is not known.
    return np.where(np.isfinite(points).all(1, keepdims=True), points, np.nan)


def _read_csv(path: Path) -> Points:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and any(cell.strip() and not _is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    return np.array([[float(cell) if cell.strip() else np.nan for cell in row] for row in rows], np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_array(path: Path) -> Points:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return np.asarray(loaded, np.float64)
    with loaded as archive:
        name = next((name for name in ARRAY_NAMES if name in archive.files), None)
        if name is None:
            found = ", ".join(archive.files[:8]) or "nothing"
            raise AnnotationError("landmarks_unreadable", f"{path.name}: holds {found}, expected the array landmarks")
        return np.asarray(archive[name], np.float64)


def _read_ljson(path: Path) -> Points:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # Version 3 has named groups, version 2 is a group itself.
    groups = list(content["groups"].values()) if "groups" in content else [content]
    if len(groups) != 1:
        raise AnnotationError("landmarks_unreadable", f"{path.name}: {len(groups)} groups of landmarks, expected one")
    rows = groups[0]["landmarks"]["points"]
    points = np.array([[np.nan if value is None else value for value in row] for row in rows], np.float64)
    parts = _parts(groups[0].get("labels", ()))
    if parts is None or points.shape != (LANDMARK_COUNT, 3):
        return points
    first = points[parts["jaw"][0][0]]
    order = list(parts["jaw"][0])
    for name in ("brow", "nose", "eye", "mouth"):
        pieces = parts[name]
        if np.isfinite(first).all():
            pieces = sorted(pieces, key=lambda piece: float(np.nanmean(np.linalg.norm(points[piece] - first, axis=1))))
        order += [index for piece in pieces for index in piece]
    return points[order]


SIZES = {"jaw": (17,), "brow": (5, 5), "nose": (9,), "eye": (6, 6), "mouth": (20,)}


def _parts(labels: Any) -> dict[str, list[list[int]]] | None:
    """Indices of the points of each part of the face; nothing if the labels are not those of the 68 points."""
    parts: dict[str, list[list[int]]] = {name: [] for name in SIZES}
    for label in labels:
        text = str(label["label"]).lower()
        name = next((name for name in ("brow", "eye", "nose", "mouth", "jaw", "chin") if name in text), "")
        if name:
            parts["jaw" if name == "chin" else name].append([int(index) for index in label["mask"]])
    whole = {name: tuple(len(piece) for piece in pieces) for name, pieces in parts.items()} == SIZES
    indices = sorted(index for pieces in parts.values() for piece in pieces for index in piece)
    return parts if whole and indices == list(range(LANDMARK_COUNT)) else None


READERS = {".csv": _read_csv, ".npy": _read_array, ".npz": _read_array, ".ljson": _read_ljson}
