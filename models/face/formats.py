"""Face models by kind, and reading them from `.npz` files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from models.face.morphable import MorphableModel
from models.types import PART_NAMES

OWN_KEYS = (
    "name",
    "licence",
    "mean",
    "identity_basis",
    "expression_basis",
    "expression_names",
    "albedo_mean",
    "albedo_basis",
    "triangles",
    "landmark_vertices",
    "uv",
    "parts",
)

OPTIONAL_KEYS = ("landmark_weights",)
"""Barycentric weights (68, 3), where `landmark_vertices` are the corners (68, 3) of the triangles that hold them."""

ICT_KEYS = (
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

CENTIMETRE = 10.0
"""Millimetres; the unit of the ICT file."""


def build_face_model(kind: str, *, path: Path | None = None, identity_modes: int = 40) -> MorphableModel:
    """The face model of a kind of `FACE_MODELS`, with at most `identity_modes` identity modes.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    if kind not in FACE_MODELS:
        raise ValueError(f"face model kind {kind!r} is unknown, expected one of {', '.join(FACE_MODELS)}")
    return FACE_MODELS[kind](path, identity_modes)


def save_face_model(model: MorphableModel, path: Path) -> None:
    """Write a face model as `.npz` that `build_face_model("npz", path=…)` reads."""
    arrays: dict[str, Any] = {name: buffer.cpu().numpy() for name, buffer in model.named_buffers()}
    arrays["landmark_vertices"] = arrays.pop("landmark_corners")
    names = np.array(model.expression_names, dtype=np.str_)
    np.savez_compressed(path, name=model.name, licence=model.licence, expression_names=names, **arrays)


def _procedural(_: Path | None, identity_modes: int) -> MorphableModel:
    from models.face.procedural import procedural_face

    return procedural_face(identity_modes=identity_modes)


def _npz(path: Path | None, identity_modes: int) -> MorphableModel:
    if path is None:
        raise ValueError("face model kind npz needs a path; set face_model.path")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such face model; set face_model.path to an .npz file, or face_model.kind to procedural"
        )
    try:
        # Opened here, because numpy leaves a file that is no archive open.
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
    # A plain array has no members, hence the TypeError.
    except (zipfile.BadZipFile, zlib.error, ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not an .npz file without pickles ({error}); convert the model again") from None
    keys, convert = (ICT_KEYS, _from_ict) if "arkit52_to_expression" in data else (OWN_KEYS, _from_own)
    _require(data, keys, path)
    try:
        return convert(data, identity_modes)
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: {error}; convert the model again") from None


def _from_own(data: dict[str, np.ndarray], identity_modes: int) -> MorphableModel:
    data["identity_basis"] = data["identity_basis"][:identity_modes]
    texts = ("name", "licence", "expression_names")
    keys = (*OWN_KEYS, *(key for key in OPTIONAL_KEYS if key in data))
    arrays: dict[str, Any] = {
        key: torch.from_numpy(np.ascontiguousarray(data[key])) for key in keys if key not in texts
    }
    return MorphableModel(
        name=str(data["name"]),
        licence=str(data["licence"]),
        expression_names=[str(name) for name in data["expression_names"]],
        **arrays,
    )


def _require(data: dict[str, np.ndarray], keys: tuple[str, ...], path: Path) -> None:
    missing = [key for key in keys if key not in data]
    if missing:
        raise ValueError(f"{path}: keys {', '.join(missing)} are missing, found {', '.join(sorted(data))}")


def _from_ict(data: dict[str, np.ndarray], identity_modes: int) -> MorphableModel:
    """ICT-FaceKit: centimetres to millimetres, its narrow face region, the 52 ARKit names; albedo borrowed."""
    count = int(data["n_narrow_face_vertices"])
    triangles = data["triangles"].astype(np.int64)
    triangles = triangles[(triangles < count).all(1)]
    mean = data["mean"][:count].astype(np.float32) * CENTIMETRE
    expressions = np.einsum("ae,evc->avc", data["arkit52_to_expression"], data["expression_basis"][:, :count])
    landmarks = data["landmarks68"].astype(np.int64)
    albedo_mean, albedo_basis, parts = _borrow_appearance(mean, landmarks)
    return MorphableModel(
        name="ict",
        licence=str(data["license"]).splitlines()[0],
        mean=torch.from_numpy(mean),
        identity_basis=torch.from_numpy(data["identity_basis"][:identity_modes, :count] * CENTIMETRE),
        expression_basis=torch.from_numpy(expressions * CENTIMETRE),
        expression_names=[str(name) for name in data["arkit52_names"]],
        albedo_mean=torch.from_numpy(albedo_mean),
        albedo_basis=torch.from_numpy(albedo_basis),
        triangles=torch.from_numpy(triangles),
        landmark_vertices=torch.from_numpy(landmarks),
        uv=torch.from_numpy(data["uv_per_vertex"][:count]),
        parts=torch.from_numpy(parts),
    )


def _borrow_appearance(mean: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Albedo modes and part labels of the procedural face, for a model that has none.

    The model is warped onto the procedural face by a thin-plate spline through the 68 landmarks; every vertex then
    takes the appearance around the nearest points of the skin there.
    """
    donor = build_face_model("procedural")
    donor_mean = donor.mean.numpy()
    targets = donor_mean[donor.landmark_vertices.numpy()]
    warp = RBFInterpolator(mean[landmarks], targets, kernel="thin_plate_spline", smoothing=1.0)
    outside = ~np.isin(donor.parts.numpy(), [PART_NAMES.index("eyes"), PART_NAMES.index("mouth")])
    distances, nearest = cKDTree(donor_mean[outside]).query(warp(mean), k=4)
    # Blending four neighbours hides the donor's mesh.
    weights = 1.0 / np.maximum(distances, 0.5) ** 2
    weights /= weights.sum(1, keepdims=True)
    albedo_mean = np.einsum("vk,vkc->vc", weights, donor.albedo_mean.numpy()[outside][nearest])
    albedo_basis = np.einsum("vk,tvkc->tvc", weights, donor.albedo_basis.numpy()[:, outside][:, nearest])
    return albedo_mean.astype(np.float32), albedo_basis.astype(np.float32), donor.parts.numpy()[outside][nearest[:, 0]]


FACE_MODELS: dict[str, Callable[[Path | None, int], MorphableModel]] = {"procedural": _procedural, "npz": _npz}
"""Kinds of face model; an entry takes the file's path, where there is one, and the number of identity modes."""
