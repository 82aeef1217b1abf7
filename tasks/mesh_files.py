"""Vertices and triangles of mesh files, in the order of the file."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from tasks.annotations import AnnotationError

MAX_MESH_BYTES = 512 * 2**20

Geometry = tuple[NDArray[np.float64], NDArray[np.int64] | None]


def read_geometry(path: Path) -> Geometry:
    """Vertices (N, 3) and triangles (F, 3) of an OBJ or PLY file, or the vertices alone of an NPY file.

    Raises: AnnotationError if there is no such file or it cannot be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise AnnotationError("mesh_unreadable", f"{path.name}: expected a file of kind {', '.join(READERS)}")
    if not path.is_file():
        raise AnnotationError("missing_mesh", f"{path.name}: no such file")
    if path.stat().st_size > MAX_MESH_BYTES:
        raise AnnotationError("mesh_unreadable", f"{path.name}: more than {MAX_MESH_BYTES} bytes")
    try:
        vertices, triangles = reader(path)
    except AnnotationError:
        raise
    except Exception as error:  # noqa: BLE001 - parsers raise errors of many kinds for malformed files
        raise AnnotationError("mesh_unreadable", f"{path.name}: {type(error).__name__}: {error}"[:200]) from None
    if triangles is not None and triangles.size and not 0 <= triangles.min() <= triangles.max() < len(vertices):
        found = f"triangles of vertices {triangles.min()} to {triangles.max()}"
        raise AnnotationError("mesh_unreadable", f"{path.name}: {found}, expected 0 to {len(vertices) - 1}")
    return vertices, triangles


def _read_obj(path: Path) -> Geometry:
    # Only the lines of vertices and faces count. A general reader would split vertices along seams and open the
    # materials' files.
    rows: list[list[bytes]] = []
    triangles: list[tuple[int, int, int]] = []
    with path.open("rb") as file:
        for line in file:
            kind = line[:2]
            if kind in (b"v ", b"v\t"):
                rows.append(line.split()[1:4])
            elif kind in (b"f ", b"f\t"):
                corners = [int(corner.partition(b"/")[0]) for corner in line.split()[1:]]
                # Counted from 1, or backwards from the vertex before this line.
                corners = [corner - 1 if corner > 0 else len(rows) + corner for corner in corners]
                triangles += [(corners[0], *pair) for pair in itertools.pairwise(corners[1:])]
    if any(len(row) != 3 for row in rows):
        raise AnnotationError("mesh_unreadable", f"{path.name}: a vertex without three coordinates")
    return np.array(rows, np.float64).reshape(-1, 3), np.array(triangles, np.int64).reshape(-1, 3)


def _read_ply(path: Path) -> Geometry:
    with path.open("rb") as file:
        mesh = trimesh.load(file, file_type="ply", process=False, maintain_order=True)
    triangles = np.asarray(getattr(mesh, "faces", ()), np.int64).reshape(-1, 3)
    return np.asarray(mesh.vertices, np.float64), triangles


def _read_npy(path: Path) -> Geometry:
    # Mapped, so that a header that promises more than the file holds fails before memory is asked for.
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.number):
        raise AnnotationError("mesh_unreadable", f"{path.name}: not an array of numbers")
    if values.ndim == 1 and values.size % 3 == 0:
        values = values.reshape(-1, 3)
    return np.array(values, np.float64), None


READERS: dict[str, Callable[[Path], Geometry]] = {".obj": _read_obj, ".ply": _read_ply, ".npy": _read_npy}
