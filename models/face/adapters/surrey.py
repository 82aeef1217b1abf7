"""The Surrey Face Model as eos stores it: `sfm_shape_3448.bin`, with `expression_blendshapes_3448.bin` beside it.

Both are binary archives of the library cereal: little-endian numbers one after the other, without names. A matrix is
its rows and columns (int32), then the numbers (float32) column by column; a list or a text is its length (uint64), then
its content. Version 1 of a model, the one of the public file, holds, after the version (uint32):
- the shape: mean (3V, 1), millimetres, x y z x y z …; orthonormal directions (3V, N); their variances (N, 1); a list of
  triangles (three int32 each, vertices counted from 0);
- the colours likewise, RGB from 0 to 1, all empty in the public file;
- a list of texture coordinates (two float64 each), v downwards, one per vertex or none.
The blendshapes are a list of a name and a displacement (3V, 1) at full activation, millimetres.

Axes are ours: +x the subject's left, +y up, +z out of the face; a mirrored file is refused by its landmarks.
Licence: free for non-commercial use, says eos; higher resolutions come from the University of Surrey.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from models.face.adapters.assemble import FaceModelArrays, landmark_positions
from models.face.adapters.borrowed_expressions import BORROWED, borrow_expressions
from models.face.adapters.feature_parts import feature_parts
from models.face.adapters.landmarks import Places, read_landmarks
from models.face.adapters.partial_landmarks import complete_landmarks
from models.face.adapters.principal_modes import (
    albedo_from_vector,
    face_outwards,
    modes_from_columns,
    triangles_from_rows,
    vertices_from_vector,
)
from models.face.adapters.source import file_sha256, files_sha256, require_file

LICENCE = "Surrey Face Model of the University of Surrey: free for non-commercial use"

VERSION = 1

KNOWN_VERTICES = {
    **{8: 33, 17: 225, 18: 229, 19: 233, 20: 2086, 21: 157, 22: 590, 23: 2091, 24: 666, 25: 662, 26: 658},
    **{27: 2842, 28: 379, 29: 272, 30: 114, 31: 100, 32: 2794, 33: 270, 34: 2797, 35: 537},
    **{36: 177, 37: 172, 38: 191, 39: 181, 40: 173, 41: 174, 42: 614, 43: 624, 44: 605, 45: 610, 46: 607, 47: 606},
    **{48: 398, 49: 315, 50: 413, 51: 329, 52: 825, 53: 736, 54: 812, 55: 841, 56: 693, 57: 411, 58: 264, 59: 431},
    **{61: 416, 62: 423, 63: 828, 65: 817, 66: 442, 67: 404},
}
"""Vertices of iBUG points, both counted from 0; the jaw and the inner corners of the mouth are missing.
Source: eos, `ibug_to_sfm.txt`."""

COARSE_VERTICES, PUBLIC_VERTICES = 846, 3448
"""Every resolution begins with the vertices of the coarsest; the known vertices beyond are those of the public one."""


def read_surrey(path: Path, *, landmarks: Path | None = None, identity_modes: int | None = None) -> FaceModelArrays:
    """The Surrey Face Model; expressions are borrowed if the file of blendshapes does not lie beside it.

    Convention: `landmarks` counts vertices from 0, or gives points in millimetres on the mean.
    Raises: ValueError or FileNotFoundError in one line.
    """
    require_file(path, expected="a Surrey Face Model as eos stores it (sfm_shape_3448.bin)")
    archive = _Archive(path)
    version = archive.whole("<u4")
    if version != VERSION:
        raise ValueError(
            f"{path}: version {version} of a model of eos, expected {VERSION}, as in the public sfm_shape_3448.bin"
        )
    flat, directions, variance, rows = archive.principal_model()
    mean = vertices_from_vector(flat, key="the shape's mean", path=path)
    count = len(mean)
    colours = archive.principal_model()
    coordinates = archive.rows("<f8", 2)
    archive.finish()
    triangles_read = triangles_from_rows(rows, vertex_count=count, first=0, key="the triangle list", path=path)
    triangles = face_outwards(triangles_read, mean)
    if landmarks is None:
        last = COARSE_VERTICES if count != PUBLIC_VERTICES else PUBLIC_VERTICES
        known = {point: vertex for point, vertex in KNOWN_VERTICES.items() if vertex < min(last, count)}
        places: Places = (complete_landmarks(known, mean=mean, triangles=triangles), None)
    else:
        places = read_landmarks(landmarks, mean=mean, triangles=triangles_read)
    points = landmark_positions(mean, *places)
    parts = feature_parts(mean, points)
    blendshapes = path.parent / f"expression_blendshapes_{count}.bin"
    if blendshapes.is_file():
        expressions, names = _blendshapes(blendshapes, count)
    else:
        expressions, names = borrow_expressions(mean, triangles, points, parts)
    albedo = colours[0].size > 0
    return FaceModelArrays(
        name="surrey" if blendshapes.is_file() else f"surrey, {BORROWED}",
        licence=LICENCE if blendshapes.is_file() else f"{LICENCE}; {BORROWED} from the procedural face (Apache-2.0)",
        source_sha256=files_sha256([path, blendshapes]) if blendshapes.is_file() else file_sha256(path),
        mean=mean,
        identity_basis=_modes(directions, variance, count, "the shape's basis", path)[:identity_modes],
        expression_basis=expressions,
        expression_names=names,
        triangles=triangles,
        landmark_vertices=places[0],
        landmark_weights=places[1],
        uv=_upwards(coordinates, count, path),
        parts=parts,
        albedo_mean=albedo_from_vector(colours[0], vertex_count=count, white=1.0, key="the colours' mean", path=path)
        if albedo
        else None,
        albedo_basis=_modes(colours[1], colours[2], count, "the colours' basis", path) if albedo else None,
    )


class _Archive:
    """A cereal binary archive, read from front to back; every length is checked against what is left."""

    def __init__(self, path: Path) -> None:
        self.path, self.content, self.place = path, path.read_bytes(), 0

    def numbers(self, kind: str, count: int) -> np.ndarray:
        size = count * np.dtype(kind).itemsize
        if count < 0 or size > len(self.content) - self.place:
            raise ValueError(
                f"{self.path}: {size} bytes announced at byte {self.place}, but {len(self.content) - self.place} are "
                "left; not a file of eos, or cut off"
            )
        values = np.frombuffer(self.content, kind, count, self.place)
        self.place += size
        return values

    def whole(self, kind: str) -> int:
        return int(self.numbers(kind, 1)[0])

    def matrix(self) -> np.ndarray:
        rows, columns = self.whole("<i4"), self.whole("<i4")
        if min(rows, columns) < 0:
            raise ValueError(f"{self.path}: a matrix of {rows} × {columns} at byte {self.place}; not a file of eos")
        return self.numbers("<f4", rows * columns).reshape(columns, rows).T

    def rows(self, kind: str, width: int) -> np.ndarray:
        return self.numbers(kind, self.whole("<u8") * width).reshape(-1, width)

    def text(self) -> str:
        return self.numbers("u1", self.whole("<u8")).tobytes().decode("utf-8", errors="replace")

    def principal_model(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.matrix(), self.matrix(), self.matrix(), self.rows("<i4", 3)

    def finish(self) -> None:
        if self.place != len(self.content):
            raise ValueError(f"{self.path}: {len(self.content) - self.place} bytes too many; not a file of eos")


def _modes(
    directions: np.ndarray, variance: np.ndarray, count: int, key: str, path: Path
) -> Float[np.ndarray, "N V 3"]:
    sigma = np.sqrt(np.maximum(variance, 0.0))
    return modes_from_columns(directions, sigma=sigma, vertex_count=count, key=key, path=path)


def _blendshapes(path: Path, count: int) -> tuple[Float[np.ndarray, "E V 3"], tuple[str, ...]]:
    archive = _Archive(path)
    shapes = [(archive.text(), archive.matrix()) for _ in range(archive.whole("<u8"))]
    archive.finish()
    for name, shape in shapes:
        if shape.shape != (3 * count, 1):
            raise ValueError(f"{path}: {name!r} has shape {shape.shape}, expected ({3 * count}, 1)")
    columns = np.concatenate([shape for _, shape in shapes], 1) if shapes else np.zeros((3 * count, 0), np.float32)
    return modes_from_columns(columns, vertex_count=count, key="blendshapes", path=path), tuple(n for n, _ in shapes)


def _upwards(coordinates: np.ndarray, count: int, path: Path) -> Float[np.ndarray, "V 2"] | None:
    """Texture coordinates with v upwards; None if the file has none."""
    if not len(coordinates):
        return None
    if len(coordinates) != count:
        raise ValueError(f"{path}: {len(coordinates)} texture coordinates, expected {count}, one for each vertex")
    return np.stack([coordinates[:, 0], 1.0 - coordinates[:, 1]], 1).astype(np.float32)
