"""ICT-FaceKit: the public folder of OBJ files, and the same model as one `.npz`.

Convention of the source: centimetres; +x the subject's left, +y up, +z out of the face; counter-clockwise; identity
shapes at one σ, expressions at full activation; every OBJ is a whole face, so a mode is its difference to the neutral.
Source: Li et al., Learning Formation of Physically-Based Face Attributes, CVPR 2020; its README for the vertex ranges.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from models.face.adapters.archive import read_npz
from models.face.adapters.assemble import UNKNOWN_PART, FaceModelArrays
from models.face.adapters.landmarks import Places, read_landmarks
from models.face.adapters.obj import ObjMesh, read_obj, read_obj_vertices
from models.face.adapters.source import file_sha256, files_sha256, require_keys
from models.types import LANDMARK_COUNT, PART_NAMES

CENTIMETRE = 10.0
"""Millimetres."""

NEUTRAL, INDEX = "generic_neutral_mesh.obj", "vertex_indices.json"

REGIONS = {"narrow_face": 6706, "face": 9409, "head": 11248, "full": 24591}
"""Leading vertices that a region keeps. `full` adds the insides of mouth and eyes, teeth, tongue and eyeballs; the
transparent shells before the eyes and the lashes, which come last, would hide the eyeballs."""

INNER_PARTS = (
    (11248, 13294, "mouth"),
    (13294, 14062, "eyes"),
    (14062, 21451, "mouth"),
    (21451, 24591, "eyes"),
)
"""Sockets of mouth and eyes, gums with tongue and teeth, eyeballs."""

LICENCE = "MIT License"

NPZ_KEYS = (
    "mean",
    "identity_basis",
    "expression_basis",
    "arkit52_names",
    "arkit52_to_expression",
    "triangles",
    "landmarks68",
    "uv_per_vertex",
    "n_narrow_face_vertices",
    "license",
)


def read_ict(
    path: Path, *, landmarks: Path | None = None, identity_modes: int | None = None, region: str = "narrow_face"
) -> FaceModelArrays:
    """Read the folder `FaceXModel`, or the `.npz` made from it; `region` is one of `REGIONS`.

    A user's landmark file holds indices, or points in the model's centimetres.
    Raises: ValueError or FileNotFoundError in one line.
    """
    if region not in REGIONS:
        raise ValueError(f"face model region {region!r} is unknown, expected one of {', '.join(REGIONS)}")
    if path.suffix.lower() == ".npz" and not path.is_dir():
        data = read_npz(path)
        require_keys(data, NPZ_KEYS, path)
        return ict_from_npz(data, path, landmarks=landmarks, identity_modes=identity_modes, region=region)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder, expected ICT-FaceKit's FaceXModel or an .npz file made of it")
    return _from_folder(path, landmarks=landmarks, identity_modes=identity_modes, region=region)


def ict_from_npz(
    data: dict[str, np.ndarray],
    path: Path,
    *,
    landmarks: Path | None = None,
    identity_modes: int | None = None,
    region: str = "narrow_face",
) -> FaceModelArrays:
    """The arrays of the `.npz` layout, which the reader has opened."""
    total = len(data["mean"])
    count = int(data["n_narrow_face_vertices"]) if region == "narrow_face" else min(REGIONS[region], total)
    triangles = data["triangles"].astype(np.int64)
    triangles = triangles[(triangles < count).all(1)]
    expressions = np.einsum("ae,evc->avc", data["arkit52_to_expression"], data["expression_basis"][:, :count])
    vertices, weights = _landmarks(landmarks, data["landmarks68"], data["mean"][:count], triangles)
    return FaceModelArrays(
        name="ict",
        licence=str(data["license"]).splitlines()[0],
        source_sha256=file_sha256(path),
        mean=data["mean"][:count].astype(np.float32) * CENTIMETRE,
        identity_basis=data["identity_basis"][:identity_modes, :count].astype(np.float32) * CENTIMETRE,
        expression_basis=expressions * CENTIMETRE,
        expression_names=tuple(str(name) for name in data["arkit52_names"]),
        triangles=triangles,
        landmark_vertices=vertices,
        landmark_weights=weights,
        uv=data["uv_per_vertex"][:count],
        parts=_inner_parts(count, total),
    )


def _from_folder(folder: Path, *, landmarks: Path | None, identity_modes: int | None, region: str) -> FaceModelArrays:
    index = _read_index(folder / INDEX)
    identities = _identity_files(folder)[:identity_modes]
    shapes = [folder / f"{name}.obj" for name in index["expressions"]]
    neutral = read_obj(folder / NEUTRAL)
    total = len(neutral.vertices)
    count = min(REGIONS[region], total)
    triangles = neutral.triangles[(neutral.triangles < count).all(1)]
    table = np.asarray(index["idx_to_landmark_verts"], dtype=np.int64)
    vertices, weights = _landmarks(landmarks, table, neutral.vertices[:count], triangles)
    names, mixture = _arkit_mixture(index["expressions"])
    expression_basis = np.zeros((len(names), count, 3), np.float32)
    for column, path in enumerate(shapes):
        if mixture[:, column].any():
            mode = _mode(path, neutral, count)
            for row in np.flatnonzero(mixture[:, column]):
                expression_basis[row] += mode
    identity_basis = np.empty((len(identities), count, 3), np.float32)
    for place, path in enumerate(identities):
        identity_basis[place] = _mode(path, neutral, count)
    return FaceModelArrays(
        name="ict",
        licence=LICENCE,
        source_sha256=files_sha256([folder / NEUTRAL, folder / INDEX, *identities, *shapes]),
        mean=(neutral.vertices[:count] * CENTIMETRE).astype(np.float32),
        identity_basis=identity_basis,
        expression_basis=expression_basis,
        expression_names=names,
        triangles=triangles,
        landmark_vertices=vertices,
        landmark_weights=weights,
        uv=None if neutral.uv is None else neutral.uv[:count].astype(np.float32),
        parts=_inner_parts(count, total),
    )


def _mode(path: Path, neutral: ObjMesh, count: int) -> Float[np.ndarray, "V 3"]:
    """Displacement in millimetres of one shape's leading vertices."""
    vertices = read_obj_vertices(path)
    if len(vertices) != len(neutral.vertices):
        raise ValueError(
            f"{path}: {len(vertices)} vertices, {NEUTRAL} has {len(neutral.vertices)}; copy the folder again"
        )
    return ((vertices[:count] - neutral.vertices[:count]) * CENTIMETRE).astype(np.float32)


def _read_index(path: Path) -> dict[str, Any]:
    """The names of the expressions and the 68 points."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected ICT-FaceKit's folder FaceXModel as it is published")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); copy the folder again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, expected keys expressions and idx_to_landmark_verts")
    require_keys(data, ("expressions", "idx_to_landmark_verts"), path)
    names, points = data["expressions"], data["idx_to_landmark_verts"]
    # A name becomes the name of a file, so it must be nothing else.
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise ValueError(f"{path}: expressions is not a list of names like browDown_L")
    if not isinstance(points, list) or len(points) != LANDMARK_COUNT or not all(type(item) is int for item in points):
        raise ValueError(f"{path}: idx_to_landmark_verts is not a list of {LANDMARK_COUNT} whole numbers")
    return data


def _identity_files(folder: Path) -> list[Path]:
    """`identity000.obj` and so on, without gaps."""
    found = sorted(folder.glob("identity[0-9][0-9][0-9].obj"))
    if not found:
        raise FileNotFoundError(f"{folder}: no identity000.obj, expected one OBJ file for each identity mode")
    for place, path in enumerate(found):
        if path.name != f"identity{place:03d}.obj":
            raise FileNotFoundError(f"{folder / f'identity{place:03d}.obj'}: no such file, but there is {path.name}")
    return found


def _arkit_mixture(shapes: Sequence[str]) -> tuple[tuple[str, ...], Float[np.ndarray, "E S"]]:
    """Names of the expressions, the 52 of ARKit first, and which of the folder's shapes add up to each.

    The folder says `_L` and `_R` for Left and Right, halves browInnerUp and cheekPuff, and has no tongueOut, which
    stays without effect. Shapes beyond ARKit's keep their names.
    """
    from models.face.procedural_expressions import ARKIT_NAMES

    sums: list[tuple[str, set[str]]] = []
    for name in ARKIT_NAMES:
        short = name.removesuffix("Left") + "_L" if name.endswith("Left") else name
        short = name.removesuffix("Right") + "_R" if name.endswith("Right") else short
        whole = {name, short} & set(shapes)
        sums.append((name, whole or {f"{name}_L", f"{name}_R"} & set(shapes)))
    used = set().union(*(parts for _, parts in sums))
    sums += [(shape, {shape}) for shape in shapes if shape not in used]
    mixture = np.array([[float(shape in parts) for shape in shapes] for _, parts in sums])
    return tuple(name for name, _ in sums), mixture


def _landmarks(
    path: Path | None,
    table: Int[np.ndarray, "_"],
    mean: Float[np.ndarray, "V 3"],
    triangles: Int[np.ndarray, "F 3"],
) -> Places:
    if path is None:
        return table.astype(np.int64), None
    return read_landmarks(path, mean=mean, triangles=triangles)


def _inner_parts(count: int, total: int) -> Int[np.ndarray, "V"] | None:
    """Labels of eyeballs, teeth and tongue, where the region holds them; the skin is left unknown."""
    if total < REGIONS["full"] or count <= REGIONS["head"]:
        return None
    parts = np.full(count, UNKNOWN_PART)
    for start, end, name in INNER_PARTS:
        parts[start:end] = PART_NAMES.index(name)
    return parts
