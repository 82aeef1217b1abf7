"""Wavefront OBJ files as face models use them: vertices in the file's order, faces of any size, texture coordinates.

Own code because order is what makes meshes correspond, and general readers split vertices at seams of the texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

MAX_OBJ_BYTES = 512 * 2**20

POSITION_WIDTHS = (3, 4, 6, 7)
"""x y z, then perhaps w, perhaps a colour."""


@dataclass(frozen=True)
class ObjMesh:
    """One mesh, polygons cut into fans of triangles."""

    vertices: Float[np.ndarray, "V 3"]
    triangles: Int[np.ndarray, "F 3"]
    uv: Float[np.ndarray, "V 2"] | None
    """Of each vertex's first appearance in a face; none where no face names texture coordinates."""


def read_obj(path: Path) -> ObjMesh:
    """Read vertices, faces and texture coordinates.

    Raises: ValueError or FileNotFoundError in one line.
    """
    content = _content(path)
    vertices = _numbers(content, b"v", path, widths=POSITION_WIDTHS)[:, :3]
    polygons = [line.split()[1:] for line in content if line.startswith((b"f ", b"f\t"))]
    if not polygons:
        raise ValueError(f"{path}: no faces, expected a mesh of triangles or polygons")
    if min(map(len, polygons)) < 3:
        raise ValueError(f"{path}: a face of less than three corners")
    corners = [corner.split(b"/") for polygon in polygons for corner in polygon]
    try:
        places = np.array([int(corner[0]) for corner in corners], dtype=np.int64)
        with_uv = [len(corner) > 1 and corner[1] != b"" for corner in corners]
        textures = np.array([int(corner[1]) for corner in corners], dtype=np.int64) if all(with_uv) else None
    except ValueError:
        raise ValueError(
            f"{path}: a face is not made of whole numbers, expected corners like 1, 1/1 or 1/1/1"
        ) from None
    places = _from_zero(places, len(vertices), path, "vertex")
    uv = None
    if textures is not None:
        values = _numbers(content, b"vt", path, widths=(2, 3))[:, :2]
        textures = _from_zero(textures, len(values), path, "texture coordinate")
        uv = np.zeros((len(vertices), 2))
        # Backwards, because the last assignment wins and the first appearance shall.
        uv[places[::-1]] = values[textures[::-1]]
    return ObjMesh(vertices=vertices, triangles=_fans(places, [len(polygon) for polygon in polygons]), uv=uv)


def read_obj_vertices(path: Path) -> Float[np.ndarray, "V 3"]:
    """Read the vertices alone, in a tenth of the time.

    Raises: ValueError or FileNotFoundError in one line.
    """
    return _numbers(_content(path), b"v", path, widths=POSITION_WIDTHS)[:, :3]


def _content(path: Path) -> list[bytes]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the folder is incomplete, copy it again")
    if path.stat().st_size > MAX_OBJ_BYTES:
        raise ValueError(f"{path}: more than {MAX_OBJ_BYTES} bytes, expected a mesh of a face")
    return path.read_bytes().splitlines()


def _numbers(lines: list[bytes], key: bytes, path: Path, *, widths: tuple[int, ...]) -> Float[np.ndarray, "N K"]:
    rows = [line for line in lines if line.startswith((key + b" ", key + b"\t"))]
    if not rows:
        raise ValueError(f"{path}: no lines `{key.decode()} x y …`, expected a Wavefront OBJ mesh")
    tokens = b" ".join(rows).split()
    width, rest = divmod(len(tokens), len(rows))
    if rest or width - 1 not in widths:
        raise ValueError(f"{path}: lines `{key.decode()}` hold {len(tokens)} words in {len(rows)} lines")
    try:
        values = np.array([token for token in tokens if token != key]).astype(np.float64)
    except ValueError as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path}: lines `{key.decode()}` hold something else than numbers ({reason})") from None
    values = values.reshape(len(rows), width - 1)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise ValueError(f"{path}: line {row + 1} of `{key.decode()}` is not finite, expected numbers")
    return values


def _from_zero(indices: Int[np.ndarray, "N"], count: int, path: Path, what: str) -> Int[np.ndarray, "N"]:
    """Indices counted from 1, or backwards from the end where negative, as indices from 0."""
    found: Int[np.ndarray, "N"] = np.where(indices < 0, indices + count, indices - 1)
    if found.min() < 0 or found.max() >= count:
        wrong = indices[(found < 0) | (found >= count)][0]
        raise ValueError(f"{path}: a face names {what} {wrong}, expected 1 to {count}")
    return found


def _fans(places: Int[np.ndarray, "N"], sizes: list[int]) -> Int[np.ndarray, "F 3"]:
    starts = np.cumsum([0, *sizes[:-1]])
    count = np.array(sizes) - 2
    first = np.repeat(starts, count)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    triangles: Int[np.ndarray, "F 3"] = places[np.stack([first, first + step + 1, first + step + 2], 1)]
    return triangles
