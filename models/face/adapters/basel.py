"""Basel Face Models: 2009 in both of its MATLAB layouts here, 2017 and 2019 in models/face/adapters/basel_h5.py.

What the keys mean (V vertices, F triangles; vectors are x y z x y z … or r g b r g b …):

`01_MorphableModel.mat`, as the University of Basel hands it out (V = 53490, 199 modes):
- `shapeMU` (3V, 1) mean, micrometres; `shapePC` (3V, N) orthonormal directions; `shapeEV` (N, 1) their standard
  deviations, in spite of the name, micrometres;
- `texMU`, `texPC`, `texEV`: the same for colours, RGB from 0 to 255;
- `tl` (F, 3) vertices counted from 1, clockwise seen from outside;
- `segbin` (V, 4) membership in nose, eyes, mouth and rest: whole regions with their skin, hence no part labels, unread.
There are no expressions: they are borrowed from the procedural face, and name and licence say so.

`BFM_model_front.mat`, as Deep3DFaceRecon prepares it from the former (V = 35709, 80 + 64 + 80 modes):
- `meanshape` (1, 3V) decimetres, i.e. one unit is 100 mm; `idBase` (3V, 80), `exBase` (3V, 64) displacements per σ,
  decimetres; the expressions are those of Guo et al. (CNN-based real-time face reconstruction) after FaceWarehouse;
- `meantex` (1, 3V), `texBase` (3V, 80) colours per σ, RGB from 0 to 255;
- `tri` (F, 3) and `keypoints` (1, 68) vertices counted from 1, the latter in iBUG order;
- `skinmask` (1, V) 1 on cheeks, nose and forehead: certainly skin; `point_buf`, `tri_mask2` and `frontmask2_idx`
  (triangles around a vertex, the region compared with photos) are not needed.

Axes of both are ours: +x the subject's left, +y up, +z out of the face. A file whose x axis was mirrored is refused
where the landmarks tell; a mirrored mesh without any table looks like another face, and cannot be told from one.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Int

from models.face.adapters.assemble import FaceModelArrays, landmark_positions
from models.face.adapters.borrowed_expressions import BORROWED, borrow_expressions
from models.face.adapters.feature_parts import feature_parts
from models.face.adapters.landmarks import Places, read_landmarks
from models.face.adapters.matlab_file import UNREADABLE, matlab_names, read_matlab
from models.face.adapters.partial_landmarks import complete_landmarks
from models.face.adapters.principal_modes import (
    albedo_from_vector,
    face_outwards,
    finite_numbers,
    modes_from_columns,
    triangles_from_rows,
    vertices_from_vector,
)
from models.face.adapters.source import file_sha256, named_in_short, require_file, require_keys
from models.types import LANDMARK_COUNT, PART_NAMES

LICENCE = "Basel Face Model licence of the University of Basel: by registration, non-commercial, not to be passed on"

FULL_KEYS = ("shapeMU", "shapePC", "shapeEV", "texMU", "texPC", "texEV", "tl")
FRONT_KEYS = ("meanshape", "idBase", "exBase", "meantex", "texBase", "tri", "keypoints")

MICROMETRE, DECIMETRE = 1e-3, 100.0
WHITE = 255.0

ALBEDO_MODES = 80
"""Of 199 at most these are read, as Deep3DFaceRecon does: the rest is below what a photo shows, and memory counts."""

KNOWN_VERTICES = {
    **{17: 38792, 19: 40087, 21: 40514, 22: 41091, 24: 41511, 26: 42825},
    **{30: 8319, 33: 8334, 36: 2088, 39: 5959, 42: 10603, 45: 14472},
    **{48: 5006, 51: 8344, 54: 11714, 57: 8374, 62: 8354, 66: 8366},
}
"""Vertices of some iBUG points, counted from 0, on the model with all vertices; source: eos, `ibug_to_bfm2009.txt`."""

KNOWN_VERTEX_COUNT = 53490


def read_basel(path: Path, *, landmarks: Path | None = None, identity_modes: int | None = None) -> FaceModelArrays:
    """Any Basel Face Model, told apart by what the file holds.

    Convention: `landmarks` counts vertices from 0, or gives points in the file's own units and axes.
    Raises: ValueError or FileNotFoundError in one line.
    """
    require_file(path, expected="a Basel Face Model (.mat of 2009, .h5 of 2017 or 2019)")
    if _is_statismo(path):
        from models.face.adapters.basel_h5 import read_basel_h5

        return read_basel_h5(path, landmarks=landmarks, identity_modes=identity_modes)
    names = matlab_names(path)
    if "shapeMU" in names:
        return _read_full(path, landmarks, identity_modes)
    if "meanshape" in names:
        return _read_front(path, landmarks, identity_modes)
    raise ValueError(
        f"{path}: no Basel Face Model, found keys {named_in_short(names) or 'none'}, expected shapeMU, … "
        "(01_MorphableModel.mat), meanshape, … (BFM_model_front.mat) or the group shape (.h5)"
    )


def _is_statismo(path: Path) -> bool:
    try:
        if not h5py.is_hdf5(path):
            return False
        with h5py.File(path, "r") as file:
            return isinstance(file.get("shape"), h5py.Group)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(f"{path}: not a readable HDF5 file ({reason}); copy it again") from None


def _read_full(path: Path, landmarks: Path | None, identity_modes: int | None) -> FaceModelArrays:
    data = read_matlab(path, FULL_KEYS)
    require_keys(data, FULL_KEYS, path)
    raw = vertices_from_vector(data["shapeMU"], key="shapeMU", path=path)
    count = len(raw)
    rows = triangles_from_rows(data["tl"], vertex_count=count, first=1, key="tl", path=path)
    mean = (raw * MICROMETRE).astype(np.float32)
    triangles = face_outwards(rows, mean)
    known = KNOWN_VERTICES if count == KNOWN_VERTEX_COUNT else {}
    if landmarks is None:
        places: Places = (complete_landmarks(known, mean=mean, triangles=triangles), None)
    else:
        places = read_landmarks(landmarks, mean=raw, triangles=rows)
    points = landmark_positions(mean, *places)
    parts = feature_parts(mean, points)
    expressions, names = borrow_expressions(mean, triangles, points, parts)
    identity = modes_from_columns(
        data["shapePC"], sigma=data["shapeEV"], vertex_count=count, key="shapePC", path=path, count=identity_modes
    )
    shades = modes_from_columns(
        data["texPC"], sigma=data["texEV"], vertex_count=count, key="texPC", path=path, count=ALBEDO_MODES
    )
    return FaceModelArrays(
        name=f"basel-2009, {BORROWED}",
        licence=f"{LICENCE}; {BORROWED} from the procedural face (Apache-2.0)",
        source_sha256=file_sha256(path),
        mean=mean,
        identity_basis=identity * np.float32(MICROMETRE),
        expression_basis=expressions,
        expression_names=names,
        triangles=triangles,
        landmark_vertices=places[0],
        landmark_weights=places[1],
        parts=parts,
        albedo_mean=albedo_from_vector(data["texMU"], vertex_count=count, white=WHITE, key="texMU", path=path),
        albedo_basis=shades / np.float32(WHITE),
    )


def _read_front(path: Path, landmarks: Path | None, identity_modes: int | None) -> FaceModelArrays:
    data = read_matlab(path, (*FRONT_KEYS, "skinmask"))
    require_keys(data, FRONT_KEYS, path)
    raw = vertices_from_vector(data["meanshape"], key="meanshape", path=path)
    count = len(raw)
    rows = triangles_from_rows(data["tri"], vertex_count=count, first=1, key="tri", path=path)
    mean = (raw * DECIMETRE).astype(np.float32)
    if landmarks is None:
        places: Places = (_keypoints(data["keypoints"], count, path), None)
    else:
        places = read_landmarks(landmarks, mean=raw, triangles=rows)
    parts = feature_parts(mean, landmark_positions(mean, *places))
    if "skinmask" in data:
        parts[_skin(data["skinmask"], count, path)] = PART_NAMES.index("skin")
    modes = {
        key: modes_from_columns(data[key], vertex_count=count, key=key, path=path, count=limit)
        for key, limit in (("idBase", identity_modes), ("exBase", None), ("texBase", ALBEDO_MODES))
    }
    return FaceModelArrays(
        name="basel-2009-front",
        licence=LICENCE,
        source_sha256=file_sha256(path),
        mean=mean,
        identity_basis=modes["idBase"] * np.float32(DECIMETRE),
        expression_basis=modes["exBase"] * np.float32(DECIMETRE),
        expression_names=mode_names(len(modes["exBase"])),
        triangles=face_outwards(rows, mean),
        landmark_vertices=places[0],
        landmark_weights=places[1],
        parts=parts,
        albedo_mean=albedo_from_vector(data["meantex"], vertex_count=count, white=WHITE, key="meantex", path=path),
        albedo_basis=modes["texBase"] / np.float32(WHITE),
    )


def mode_names(count: int) -> tuple[str, ...]:
    """Names of expressions that are statistical modes, from `expression_01` on."""
    return tuple(f"expression_{place:02d}" for place in range(1, count + 1))


def _keypoints(stored: np.ndarray, count: int, path: Path) -> Int[np.ndarray, "68"]:
    vertices = finite_numbers(stored.reshape(-1), key="keypoints", path=path)
    if len(vertices) != LANDMARK_COUNT:
        raise ValueError(f"{path}: keypoints has shape {stored.shape}, expected (1, {LANDMARK_COUNT})")
    if vertices.min() < 1 or vertices.max() > count:
        raise ValueError(
            f"{path}: keypoints holds {vertices.min():g} to {vertices.max():g}, expected vertices 1 to {count}"
        )
    return np.asarray(vertices.astype(np.int64) - 1)


def _skin(stored: np.ndarray, count: int, path: Path) -> np.ndarray:
    if stored.size != count:
        raise ValueError(f"{path}: skinmask has shape {stored.shape}, expected (1, {count})")
    return np.asarray(stored.reshape(-1) > 0.5)
