"""Pieces that statistical models share: flat vectors to vertices, modes to one σ, the winding of a face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Num

UNIT_LENGTH_LIMIT = 1.01
"""A principal direction has length 1; where the model was cropped it may be shorter, but never longer."""

LARGEST = 1e12
"""No model has such numbers, in whatever unit; a damaged file may, and they would overflow."""


def vertices_from_vector(vector: Num[np.ndarray, "..."], *, key: str, path: Path) -> Float[np.ndarray, "V 3"]:
    """Vertices from x y z x y z …, stored as a row, a column or flat.

    Raises: ValueError in one line, if it is something else.
    """
    if max(vector.shape, default=0) != vector.size or vector.size == 0 or vector.size % 3:
        raise ValueError(f"{path}: {key} has shape {vector.shape}, expected one row or column of 3 V numbers")
    return finite_numbers(vector, key=key, path=path).reshape(-1, 3)


def modes_from_columns(
    basis: Num[np.ndarray, "..."],
    *,
    vertex_count: int,
    key: str,
    path: Path,
    count: int | None = None,
    sigma: Num[np.ndarray, "..."] | None = None,
) -> Float[np.ndarray, "N V 3"]:
    """Modes from the columns of a matrix (3 V, N), the first `count` of them, each times its σ.

    Convention: without `sigma` the columns are displacements already. With it they are principal directions, of
    length 1 at most; a longer one says that σ is folded in already, and is refused.
    Raises: ValueError in one line, naming the shapes found and expected.
    """
    rows = 3 * vertex_count
    if basis.ndim != 2 or basis.shape[0] != rows:
        raise ValueError(f"{path}: {key} has shape {basis.shape}, expected ({rows}, any)")
    found = finite_numbers(basis[:, :count], key=key, path=path)
    if sigma is not None:
        deviations = finite_numbers(sigma.reshape(-1), key=f"{key}'s σ", path=path)
        if len(deviations) != basis.shape[1]:
            raise ValueError(f"{path}: {key} has {basis.shape[1]} modes, but {len(deviations)} deviations")
        longest = float(np.linalg.norm(found, axis=0).max(initial=0.0))
        if longest > UNIT_LENGTH_LIMIT:
            raise ValueError(f"{path}: a direction in {key} has length {longest:.4g}, expected at most 1 before σ")
        found = found * deviations[: found.shape[1]]
    return np.ascontiguousarray(found.T.astype(np.float32)).reshape(-1, vertex_count, 3)


def triangles_from_rows(
    rows: Num[np.ndarray, "..."], *, vertex_count: int, first: int, key: str, path: Path
) -> Int[np.ndarray, "F 3"]:
    """Triangles counted from 0, of rows (F, 3) counted from `first`.

    Raises: ValueError in one line, if the shape or an index is impossible.
    """
    if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        raise ValueError(f"{path}: {key} has shape {rows.shape}, expected (any, 3)")
    rows, last = finite_numbers(rows, key=key, path=path), first + vertex_count - 1
    if rows.min() < first or rows.max() > last:
        raise ValueError(f"{path}: {key} holds {rows.min():g} to {rows.max():g}, expected vertices {first} to {last}")
    return rows.astype(np.int64) - first


def face_outwards(triangles: Int[np.ndarray, "F 3"], mean: Float[np.ndarray, "V 3"]) -> Int[np.ndarray, "F 3"]:
    """The triangles, all turned round where they are clockwise seen from outside.

    Seen from the middle of its bounding box, a face patch as well as a whole head bulges outwards on the whole.
    """
    inside = (mean.min(0) + mean.max(0)).astype(np.float64) / 2
    a, b, c = (mean[triangles[:, corner]].astype(np.float64) - inside for corner in range(3))
    volume = float(np.einsum("fc,fc->", a, np.cross(b, c)))
    return np.ascontiguousarray(triangles[:, ::-1]) if volume < 0.0 else triangles


def albedo_from_vector(
    vector: Num[np.ndarray, "..."], *, vertex_count: int, white: float, key: str, path: Path
) -> Float[np.ndarray, "V 3"]:
    """Colours in [0, 1] from r g b r g b …, counted up to `white` in the file.

    Raises: ValueError in one line, if there is not one colour for each vertex, or they were not counted to `white`.
    """
    colours = vertices_from_vector(vector, key=key, path=path)
    if len(colours) != vertex_count:
        raise ValueError(f"{path}: {key} has {len(colours)} colours, expected {vertex_count}, one for each vertex")
    low, high = float(colours.min()), float(colours.max())
    if low < -0.1 * white or high > 1.1 * white or (white > 1.0 and high <= 1.0):
        raise ValueError(f"{path}: {key} holds {low:.4g} to {high:.4g}, expected colours from 0 to {white:g}")
    return (colours / white).astype(np.float32)


def finite_numbers(values: Num[np.ndarray, "..."], *, key: str, path: Path) -> Float[np.ndarray, "..."]:
    """The values in single precision, or in double precision where the file has it or whole numbers.

    Raises: ValueError in one line, if they are no finite numbers of a likely size.
    """
    if values.dtype.kind not in "iuf" or not (np.abs(values) < LARGEST).all():
        raise ValueError(f"{path}: {key} holds something else than finite numbers")
    # Single precision cannot count all vertices of a scan, and units should be converted before rounding.
    return values.astype(np.float32 if values.dtype.kind == "f" and values.dtype.itemsize <= 4 else np.float64)
