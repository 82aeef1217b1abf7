"""Reading of label meshes in the topology of the face model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from tasks.annotations import AnnotationError

MAX_MESH_BYTES = 512 * 2**20

SIZE_RANGE = (0.4, 2.5)
"""Size of a mesh relative to the mean face; beyond it the unit is wrong, not the person."""

Vertices = NDArray[np.float32]


def read_mesh(path: Path, *, mean: Vertices) -> Vertices:
    """Vertices (V, 3) in millimetres of an OBJ, PLY or NPY file, in the order of the file.

    Raises: AnnotationError if the file cannot be read, or does not fit the mean face (V, 3).
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise AnnotationError("mesh_unreadable", f"{path.name}: expected a file of kind {', '.join(READERS)}")
    if not path.is_file():
        raise AnnotationError("missing_mesh", f"{path.name}: no such file")
    if path.stat().st_size > MAX_MESH_BYTES:
        raise AnnotationError("mesh_unreadable", f"{path.name}: more than {MAX_MESH_BYTES} bytes")
    try:
        vertices = reader(path)
    except AnnotationError:
        raise
    except Exception as error:  # noqa: BLE001 - parsers raise errors of many kinds for malformed files
        raise AnnotationError("mesh_unreadable", f"{path.name}: {type(error).__name__}: {error}"[:200]) from None
    if vertices.shape != mean.shape:
        found = " x ".join(str(length) for length in vertices.shape)
        raise AnnotationError(
            "mesh_wrong_size", f"{path.name}: vertices {found}, expected {mean.shape[0]} x 3 as in the face model"
        )
    if not np.isfinite(vertices).all():
        raise AnnotationError("mesh_not_finite", f"{path.name}: coordinates that are not finite, expected numbers")
    ratio = _radius(vertices) / _radius(mean)
    if not SIZE_RANGE[0] < ratio < SIZE_RANGE[1]:
        raise AnnotationError(
            "mesh_wrong_scale", f"{path.name}: {ratio:.3g} times the size of the mean face, expected millimetres"
        )
    return vertices.astype(np.float32)


def _radius(vertices: NDArray[np.floating]) -> float:
    return float(np.sqrt(((vertices - vertices.mean(0)) ** 2).sum(1).mean()))


def _read_obj(path: Path) -> NDArray[np.float64]:
    # Only the vertex lines count. A general reader would split vertices along seams and open the materials' files.
    with path.open("rb") as file:
        rows = [line.split()[1:4] for line in file if line[:2] in (b"v ", b"v\t")]
    if any(len(row) != 3 for row in rows):
        raise AnnotationError("mesh_unreadable", f"{path.name}: a vertex without three coordinates")
    return np.array(rows, np.float64).reshape(-1, 3)


def _read_ply(path: Path) -> NDArray[np.float64]:
    with path.open("rb") as file:
        mesh = trimesh.load(file, file_type="ply", process=False, maintain_order=True)
    return np.asarray(mesh.vertices, np.float64)


def _read_npy(path: Path) -> NDArray[np.float64]:
    # Mapped, so that a header that promises more than the file holds fails before memory is asked for.
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.number):
        raise AnnotationError("mesh_unreadable", f"{path.name}: not an array of numbers")
    if values.ndim == 1 and values.size % 3 == 0:
        values = values.reshape(-1, 3)
    return np.array(values, np.float64)


READERS: dict[str, Callable[[Path], NDArray[np.float64]]] = {".obj": _read_obj, ".ply": _read_ply, ".npy": _read_npy}
