"""FLAME 2020 and 2023 as their authors ship them: `generic_model.pkl`, `flame2023.pkl`, or `.npz` with the same keys.

Convention of the files: metres, +x the subject's left, +y up, +z out of the face, σ folded into the modes.
Source: Li et al. 2017, "Learning a model of facial shape and expression from 4D scans".

The pipeline's model is linear, so the jaw's and the eyes' rotations become expression modes, exact for the mean face at
the stated angle. What that costs, against `Skinning.pose`, on a file of this layout, its chin moved 37 mm by jawOpen:

| face | coefficients | largest error | over what moves, rms |
|---|---|---|---|
| mean | jawOpen 0.5, 1, 1.25 | 1.6, 0, 2.0 mm | 0.9, 0, 1.1 mm |
| mean | jawOpen and jawLeft 1 | 1.5 mm | 0.8 mm |
| mean | jawLeft 0.5; an eye's turn 0.5 | 0.1; 0.5 mm | 0.06; 0.2 mm |
| 50 random | jawOpen 1 | 6.1 mm | 1.6 mm |
| 50 random | jawLeft 1; eyeLookOut 1 | 1.4; 0.2 mm | 0.4; 0.04 mm |

Other faces have their joints elsewhere and other radii, which is why the error of random faces does not vanish at 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.face.adapters.assemble import UNKNOWN_PART, FaceModelArrays
from models.face.adapters.landmarks import (
    EMBEDDING_KEYS,
    INNER_COUNT,
    Places,
    embedded_landmarks,
    find_landmarks,
    landmarks_from_embedding,
    read_landmarks,
)
from models.face.adapters.obj import read_obj
from models.face.adapters.source import file_sha256, require_file, require_keys
from models.face.adapters.unpickle import read_mapping
from models.face.skinning import Skinning
from models.types import LANDMARK_COUNT, PART_NAMES

KEYS = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")

JOINT_NAMES = ("global", "neck", "jaw", "left_eye", "right_eye")
IDENTITY_MODES, EXPRESSION_MODES = 300, 100
"""Modes in `shapedirs`: identity first, then expression."""

MILLIMETRES_PER_METRE = 1000.0

JOINT_MODES: dict[str, tuple[str, tuple[float, float, float]]] = {
    "jawOpen": ("jaw", (0.35, 0.0, 0.0)),
    "jawLeft": ("jaw", (0.0, 0.10, 0.0)),
    "jawRight": ("jaw", (0.0, -0.10, 0.0)),
    "eyeLookUpLeft": ("left_eye", (-0.38, 0.0, 0.0)),
    "eyeLookDownLeft": ("left_eye", (0.42, 0.0, 0.0)),
    "eyeLookInLeft": ("left_eye", (0.0, -0.45, 0.0)),
    "eyeLookOutLeft": ("left_eye", (0.0, 0.45, 0.0)),
    "eyeLookUpRight": ("right_eye", (-0.38, 0.0, 0.0)),
    "eyeLookDownRight": ("right_eye", (0.42, 0.0, 0.0)),
    "eyeLookInRight": ("right_eye", (0.0, 0.45, 0.0)),
    "eyeLookOutRight": ("right_eye", (0.0, -0.45, 0.0)),
}
"""What an ARKit name means at full activation: a joint and its rotation in radians; the eyes as in the procedural face.

The neck has none: to the face its rotation is the head's pose, which is estimated beside the expression, and two names
for one motion would leave both undetermined. Skinning alone turns it."""

EMBEDDING = "landmark_embedding.npy"
STATIC_EMBEDDING, DYNAMIC_EMBEDDING = "flame_static_embedding.pkl", "flame_dynamic_embedding.npy"
MASKS = "FLAME_masks.pkl"
TEMPLATE = "head_template.obj"
"""Files that FLAME's authors ship with the model; each is used where it lies beside the model's file."""

MASK_KEYS = ("lips", "left_eyeball", "right_eyeball", "eye_region", "forehead")

LICENCE = "FLAME model licence of the Max Planck Society, in the version that came with the file"


def read_flame(
    path: Path, *, landmarks: Path | None = None, identity_modes: int | None = None, expression_modes: int = 50
) -> FaceModelArrays:
    """Read a FLAME model: shape, the first expressions, and its joints as expressions named as ARKit names them.

    The 68 points come from `landmarks`, else from an embedding beside the model, else they are searched for. Parts and
    texture coordinates come from `FLAME_masks.pkl` and `head_template.obj` beside it, else from the procedural face and
    a projection; albedo is always the procedural face's.
    Modes of `JOINT_MODES` are the exact skinned displacement of the mean face at the stated angle.
    Raises: ValueError or FileNotFoundError in one line; nothing in the files is executed.
    """
    require_file(path, expected="a FLAME .pkl or .npz file")
    data = read_mapping(path)
    require_keys(data, KEYS, path)
    try:
        arrays = _arrays(data)
        mean = np.asarray(arrays["v_template"] * MILLIMETRES_PER_METRE, dtype=np.float32)
        triangles = arrays["f"].astype(np.int64)
        basis = _modes_first(arrays["shapedirs"])
        identity_basis = basis[:IDENTITY_MODES][:identity_modes]
        statistical = basis[IDENTITY_MODES:][:expression_modes]
        skinning, joint_basis, joint_modes = _skinning(arrays, mean, len(statistical))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; is this a FLAME model?") from None
    corners, weights = _landmarks(path, landmarks, mean=mean, triangles=triangles)
    eyeballs = arrays["weights"][:, [JOINT_NAMES.index(name) for name in ("left_eye", "right_eye")]].max(1) > 0.5
    return FaceModelArrays(
        name="flame",
        licence=LICENCE,
        source_sha256=file_sha256(path),
        mean=mean,
        identity_basis=identity_basis,
        expression_basis=np.concatenate([statistical, joint_basis]),
        expression_names=(*(f"expression{place:02d}" for place in range(len(statistical))), *joint_modes),
        triangles=triangles,
        landmark_vertices=corners,
        landmark_weights=weights,
        uv=_uv(path.parent / TEMPLATE, len(mean)),
        parts=_parts(path.parent / MASKS, eyeballs=eyeballs),
        skinning=skinning,
    )


def _arrays(data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `KEYS`, as numbers and of the right shapes."""
    for key, expected in (("bs_style", "lbs"), ("bs_type", "lrotmin")):
        if key in data and str(data[key]) != expected:
            raise ValueError(f"{key} is {str(data[key])[:40]!r}, expected {expected!r}")
    arrays: dict[str, np.ndarray] = {}
    for key in KEYS:
        try:
            arrays[key] = np.asarray(data[key], dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{key} is no array of numbers but a {type(data[key]).__name__}") from None
    count, joints = len(np.atleast_1d(arrays["v_template"])), len(JOINT_NAMES)
    shapes: dict[str, tuple[int | None, ...]] = {
        "v_template": (count, 3),
        "f": (None, 3),
        "kintree_table": (2, joints),
        "shapedirs": (count, 3, IDENTITY_MODES + EXPRESSION_MODES),
        "posedirs": (count, 3, 9 * (joints - 1)),
        "J_regressor": (joints, count),
        "weights": (count, joints),
    }
    for key, shape in shapes.items():
        found = arrays[key].shape
        if len(found) != len(shape) or any(size not in (None, other) for size, other in zip(shape, found, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{key} has shape {found}, expected ({wanted})")
    for key in ("f", "kintree_table"):
        if not np.isfinite(arrays[key]).all() or (arrays[key] != np.round(arrays[key])).any():
            raise ValueError(f"{key} holds something else than whole numbers")
    if not (arrays["f"].min(initial=0) >= 0 and arrays["f"].max(initial=0) < count):
        raise ValueError(f"f holds {arrays['f'].min():g} to {arrays['f'].max():g}, expected 0 to {count - 1}")
    return arrays


def _modes_first(basis: Float[np.ndarray, "V 3 N"]) -> Float[np.ndarray, "N V 3"]:
    return np.ascontiguousarray(np.moveaxis(basis, 2, 0) * MILLIMETRES_PER_METRE, dtype=np.float32)


def _skinning(
    arrays: Mapping[str, np.ndarray], mean: Float[np.ndarray, "V 3"], statistical: int
) -> tuple[Skinning, Float[np.ndarray, "E V 3"], tuple[str, ...]]:
    """Joints, displacements of the joint modes and their names; a model without eyeballs has no modes for them."""
    movable = arrays["weights"].max(0) > 0.5
    modes = tuple(name for name, (joint, _) in JOINT_MODES.items() if movable[JOINT_NAMES.index(joint)])
    rotations = torch.zeros(len(modes), len(JOINT_NAMES), 3)
    for place, name in enumerate(modes):
        joint, rotation = JOINT_MODES[name]
        rotations[place, JOINT_NAMES.index(joint)] = torch.tensor(rotation)
    # The root's parent is -1, which the file holds as an unsigned number.
    parents = torch.from_numpy(arrays["kintree_table"][0].astype(np.int64))
    skinning = Skinning(
        joint_names=JOINT_NAMES,
        joint_regressor=torch.tensor(arrays["J_regressor"]),
        pose_basis=torch.from_numpy(_modes_first(arrays["posedirs"])),
        joint_weights=torch.tensor(arrays["weights"]),
        joint_parents=torch.cat([torch.tensor([-1]), parents[1:]]),
        mode_rotations=torch.cat([torch.zeros(statistical, len(JOINT_NAMES), 3), rotations]),
    )
    rest: Tensor = torch.from_numpy(mean)
    posed = skinning.skin(rest.expand(len(modes), -1, -1), rotations)
    return skinning, (posed - rest).numpy(), modes


def _landmarks(
    path: Path, given: Path | None, *, mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]
) -> Places:
    if given is not None and not _is_pickled(given):
        return read_landmarks(given, mean=mean / MILLIMETRES_PER_METRE, triangles=triangles)
    beside = [file for file in (path.parent / EMBEDDING, path.parent / STATIC_EMBEDDING) if file.is_file()]
    source = given if given is not None else beside[0] if beside else None
    if source is None:
        return find_landmarks(mean, triangles), None
    content = read_mapping(source)
    contour = source.parent / DYNAMIC_EMBEDDING
    if contour.is_file() and "dynamic_lmk_faces_idx" not in content:
        more = read_mapping(contour)
        require_keys(more, ("lmk_face_idx", "lmk_b_coords"), contour)
        content |= {"dynamic_lmk_faces_idx": more["lmk_face_idx"], "dynamic_lmk_bary_coords": more["lmk_b_coords"]}
    keys = next((keys for keys in EMBEDDING_KEYS if keys[0] in content and keys[1] in content), None)
    if keys is None:
        raise ValueError(f"{source}: found {', '.join(sorted(content))}, expected {EMBEDDING_KEYS[0][0]} and others")
    try:
        # The 68 points have a leading axis of one in some files, and none in others.
        content[keys[0]] = np.asarray(content[keys[0]]).reshape(-1).astype(np.int64)
        content[keys[1]] = np.asarray(content[keys[1]], dtype=np.float64).reshape(-1, 3)
        if len(content[keys[0]]) == INNER_COUNT and "dynamic_lmk_faces_idx" not in content:
            return _with_searched_contour(content[keys[0]], content[keys[1]], mean=mean, triangles=triangles)
        return embedded_landmarks(content, triangles=triangles)
    except (TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{source}: {error}; give the embedding that came with this model") from None


def _with_searched_contour(
    faces: Int[np.ndarray, "51"],
    coordinates: Float[np.ndarray, "51 3"],
    *,
    mean: Float[np.ndarray, "V 3"],
    triangles: Int[np.ndarray, "F 3"],
) -> Places:
    corners, weights = landmarks_from_embedding(faces, coordinates, triangles=triangles)
    contour = find_landmarks(mean, triangles)[: LANDMARK_COUNT - INNER_COUNT]
    vertex = np.array([[1.0, 0.0, 0.0]], dtype=np.float32)
    return (
        np.concatenate([np.repeat(contour[:, None], 3, 1), corners]),
        np.concatenate([np.repeat(vertex, len(contour), 0), weights]),
    )


def _is_pickled(path: Path) -> bool:
    """A pickle, or an array of objects, which is how FLAME's embedding is stored; numpy alone would refuse both."""
    if path.suffix == ".pkl":
        return True
    if path.suffix != ".npy" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b"|O" in file.read(256)


def _parts(path: Path, *, eyeballs: Bool[np.ndarray, "V"]) -> Int[np.ndarray, "V"]:
    """Eyes are the eyeballs, lips those of the mask where there is one; the brows are left to be borrowed."""
    parts = np.full(len(eyeballs), UNKNOWN_PART, dtype=np.int64)
    if path.is_file():
        masks = read_mapping(path)
        require_keys(masks, MASK_KEYS, path)
        lips, left, right, around_eyes, forehead = (
            _mask(masks[key], len(eyeballs), f"{path}: {key}") for key in MASK_KEYS
        )
        parts[~(around_eyes | forehead)] = PART_NAMES.index("skin")
        parts[lips] = PART_NAMES.index("lips")
        eyeballs = left | right
    parts[eyeballs] = PART_NAMES.index("eyes")
    return parts


def _mask(indices: Any, count: int, what: str) -> Bool[np.ndarray, "V"]:
    places = np.asarray(indices)
    if (
        places.dtype.kind not in "iu"
        or places.ndim != 1
        or (len(places) and not 0 <= places.min() <= places.max() < count)
    ):
        raise ValueError(f"{what} does not hold vertices 0 to {count - 1}; give the masks that came with this model")
    mask = np.zeros(count, dtype=bool)
    mask[places] = True
    return mask


def _uv(path: Path, count: int) -> Float[np.ndarray, "V 2"] | None:
    if not path.is_file():
        return None
    mesh = read_obj(path)
    if len(mesh.vertices) != count:
        raise ValueError(f"{path}: {len(mesh.vertices)} vertices, expected {count} as in the model beside it")
    return None if mesh.uv is None else mesh.uv.astype(np.float32)
