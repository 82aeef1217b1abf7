"""The last step of every adapter: check what was read from a model's file, fill in what it lacks, build the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from models.face.morphable import MorphableModel
from models.types import LANDMARK_COUNT, PART_NAMES

CHIN, BROWS = 8, (21, 22)
NOSE_TIP, JAW_ENDS, OUTER_EYES = 30, (0, 16), (36, 45)

FACE_HEIGHT_MM = (70.0, 250.0)
"""Chin to brows: about 125 mm for an adult, so that metres, centimetres and micrometres all fall outside."""


UNKNOWN_PART = -1
"""In `FaceModelArrays.parts`: to be taken from the procedural face, as all of it where there are no parts."""

INSIDE = ("eyes", "mouth")


@dataclass(frozen=True, kw_only=True)
class FaceModelArrays:
    """A face model as its adapter leaves it: our units and axes, one σ per coefficient, what is unknown left out."""

    name: str
    licence: str
    source_sha256: str
    """Of the bytes that were read, see models/face/adapters/source.py."""
    mean: Float[np.ndarray, "V 3"]
    """Millimetres; +x the subject's left, +y up, +z out of the face."""
    identity_basis: Float[np.ndarray, "I V 3"]
    expression_basis: Float[np.ndarray, "E V 3"]
    expression_names: tuple[str, ...]
    triangles: Int[np.ndarray, "F 3"]
    """Counter-clockwise seen from outside."""
    landmark_vertices: Int[np.ndarray, "68"] | Int[np.ndarray, "68 3"]
    landmark_weights: Float[np.ndarray, "68 3"] | None = None
    uv: Float[np.ndarray, "V 2"] | None = None
    parts: Int[np.ndarray, "V"] | None = None
    """Indices into `models.types.PART_NAMES`, or `UNKNOWN_PART`."""
    albedo_mean: Float[np.ndarray, "V 3"] | None = None
    """RGB in [0, 1], display-referred."""
    albedo_basis: Float[np.ndarray, "T V 3"] | None = None
    skinning: Any = None
    """Joints and weights, see models/face/skinning.py."""


def assemble(arrays: FaceModelArrays) -> MorphableModel:
    """Check units, axes and winding, add albedo, parts and uv where the file had none, and build the model.

    Raises: ValueError in one line, without the file's name, which `build_face_model` puts in front.
    """
    _check_shapes(arrays)
    mean = np.asarray(arrays.mean, dtype=np.float32)
    landmarks = landmark_positions(mean, arrays.landmark_vertices, arrays.landmark_weights)
    _check_geometry(arrays, landmarks)
    albedo_mean, albedo_basis, parts = arrays.albedo_mean, arrays.albedo_basis, arrays.parts
    if albedo_mean is None or parts is None or (parts == UNKNOWN_PART).any():
        borrowed_mean, borrowed_basis, parts = borrow_appearance(mean, landmarks, parts=parts)
        if albedo_mean is None:
            albedo_mean, albedo_basis = borrowed_mean, borrowed_basis
    if albedo_basis is None:
        albedo_basis = np.zeros((0, len(mean), 3), np.float32)
    uv = cylindrical_uv(mean, landmarks) if arrays.uv is None else arrays.uv
    weights = None if arrays.landmark_weights is None else _tensor(arrays.landmark_weights)
    more: dict[str, Any] = {} if arrays.skinning is None else {"skinning": arrays.skinning}
    return MorphableModel(
        name=arrays.name,
        licence=arrays.licence,
        source_sha256=arrays.source_sha256,
        mean=_tensor(mean),
        identity_basis=_tensor(arrays.identity_basis),
        expression_basis=_tensor(arrays.expression_basis),
        expression_names=arrays.expression_names,
        albedo_mean=_tensor(albedo_mean),
        albedo_basis=_tensor(albedo_basis),
        triangles=_tensor(arrays.triangles),
        landmark_vertices=_tensor(arrays.landmark_vertices),
        landmark_weights=weights,
        uv=_tensor(uv),
        parts=_tensor(parts),
        **more,
    )


def landmark_positions(
    mean: Float[np.ndarray, "V 3"],
    vertices: Int[np.ndarray, "68"] | Int[np.ndarray, "68 3"],
    weights: Float[np.ndarray, "68 3"] | None = None,
) -> Float[np.ndarray, "68 3"]:
    """Where the 68 points lie, whether they are vertices or points within triangles."""
    if weights is None:
        return mean[vertices]
    return np.asarray((mean[vertices] * weights[..., None]).sum(1), dtype=mean.dtype)


def borrow_appearance(
    mean: Float[np.ndarray, "V 3"],
    landmarks: Float[np.ndarray, "68 3"],
    *,
    parts: Int[np.ndarray, "V"] | None = None,
) -> tuple[Float[np.ndarray, "V 3"], Float[np.ndarray, "T V 3"], Int[np.ndarray, "V"]]:
    """Albedo modes and part labels of the procedural face, for a model that has none.

    The model is warped onto the procedural face by a thin-plate spline through the 68 landmarks; every vertex then
    takes the appearance around the nearest points of the skin there, or of the eyes or the mouth's inside where `parts`
    says that it belongs to them. Labels given are kept, `UNKNOWN_PART` is replaced.
    """
    donor = procedural_donor()
    donor_mean, donor_parts = donor.mean.numpy(), donor.parts.numpy()
    targets = donor_mean[donor.landmark_vertices.numpy()]
    warped = RBFInterpolator(landmarks, targets, kernel="thin_plate_spline", smoothing=1.0)(mean)
    found = np.full(len(mean), UNKNOWN_PART) if parts is None else np.array(parts)
    inside = [PART_NAMES.index(name) for name in INSIDE]
    albedo_mean = np.empty((len(mean), 3), np.float32)
    albedo_basis = np.empty((donor.albedo_size, len(mean), 3), np.float32)
    groups = [(~np.isin(found, inside), ~np.isin(donor_parts, inside))]
    groups += [(found == part, donor_parts == part) for part in inside]
    for takes, gives in groups:
        if not takes.any():
            continue
        distances, nearest = cKDTree(donor_mean[gives]).query(warped[takes], k=4)
        # Blending four neighbours hides the donor's mesh.
        weights = 1.0 / np.maximum(distances, 0.5) ** 2
        weights /= weights.sum(1, keepdims=True)
        albedo_mean[takes] = np.einsum("vk,vkc->vc", weights, donor.albedo_mean.numpy()[gives][nearest])
        albedo_basis[:, takes] = np.einsum("vk,tvkc->tvc", weights, donor.albedo_basis.numpy()[:, gives][:, nearest])
        found[takes] = np.where(found[takes] == UNKNOWN_PART, donor_parts[gives][nearest[:, 0]], found[takes])
    return albedo_mean, albedo_basis, found


@cache
def procedural_donor() -> MorphableModel:
    """The procedural face, built once; read-only."""
    from models.face.procedural import procedural_face

    return procedural_face()


def cylindrical_uv(mean: Float[np.ndarray, "V 3"], landmarks: Float[np.ndarray, "68 3"]) -> Float[np.ndarray, "V 2"]:
    """Texture coordinates in [0, 1] of a model without: the angle about a vertical axis between the ears, the height.

    Convention: u grows to the subject's left, v upwards; the face's middle lies at u = 0.5, the seam at the back.
    """
    axis = landmarks[list(JAW_ENDS)].mean(0)
    angle = np.arctan2(mean[:, 0] - axis[0], mean[:, 2] - axis[2])
    height = mean[:, 1] - mean[:, 1].min()
    return np.stack([0.5 + angle / (2 * np.pi), height / max(float(height.max()), 1e-6)], 1).astype(np.float32)


def _check_shapes(arrays: FaceModelArrays) -> None:
    """The checks without which the geometry cannot be looked at; the model itself checks the rest."""
    mean, triangles, landmarks = arrays.mean, arrays.triangles, arrays.landmark_vertices
    for key, found, width in (("mean", mean, 3), ("triangles", triangles, 3)):
        if found.ndim != 2 or found.shape[1] != width or not len(found):
            raise ValueError(f"{key} has shape {found.shape}, expected (any, {width})")
    rows = (LANDMARK_COUNT,) if arrays.landmark_weights is None else (LANDMARK_COUNT, 3)
    if landmarks.shape != rows:
        raise ValueError(f"landmark_vertices has shape {landmarks.shape}, expected {rows}")
    if arrays.landmark_weights is not None and arrays.landmark_weights.shape != rows:
        raise ValueError(f"landmark_weights has shape {arrays.landmark_weights.shape}, expected {rows}")
    for key, indices in (("triangles", triangles), ("landmark_vertices", landmarks)):
        if indices.min() < 0 or indices.max() >= len(mean):
            raise ValueError(f"{key} holds {indices.min()} to {indices.max()}, expected 0 to {len(mean) - 1}")
    if not np.isfinite(mean).all():
        raise ValueError("mean has values that are not finite")


def _check_geometry(arrays: FaceModelArrays, landmarks: Float[np.ndarray, "68 3"]) -> None:
    brows = landmarks[list(BROWS)].mean(0)
    height = float(np.linalg.norm(brows - landmarks[CHIN]))
    if not FACE_HEIGHT_MM[0] <= height <= FACE_HEIGHT_MM[1]:
        raise ValueError(
            f"chin to brows measures {height:.4g} mm, expected {FACE_HEIGHT_MM[0]:g} to {FACE_HEIGHT_MM[1]:g}; "
            "check the unit of the file and the landmarks"
        )
    right, left = landmarks[list(OUTER_EYES)]
    forward = landmarks[NOSE_TIP] - landmarks[list(JAW_ENDS)].mean(0)
    for axis, rise, meaning in (
        ("x", float(left[0] - right[0]), "the subject's left"),
        ("y", float(brows[1] - landmarks[CHIN, 1]), "up"),
        ("z", float(forward[2]), "out of the face"),
    ):
        if rise <= 0.0:
            raise ValueError(f"the axis {axis} does not point {meaning}; check the axes of the file and the landmarks")
    if outward_share(arrays.mean, arrays.triangles, landmarks) < 0.0:
        raise ValueError("triangles are clockwise seen from outside, expected counter-clockwise; reverse their corners")


def outward_share(
    mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"], landmarks: Float[np.ndarray, "68 3"]
) -> float:
    """How far the triangles face away from a point within the head: 1 if all do, -1 if all face it."""
    corners = mean[triangles].astype(np.float64)
    # Halfway between the nose and the ears, which is inside whether or not the model has a back of the head.
    inside = (landmarks[NOSE_TIP] + landmarks[list(JAW_ENDS)].mean(0)) / 2
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flow = np.einsum("fc,fc->f", normals, corners.mean(1) - inside)
    return float(flow.sum() / max(float(np.abs(flow).sum()), 1e-12))


def vertex_normals(points: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 3"]:
    """Unit normals, weighted by area; zero where no triangle lies."""
    a, b, c = (points[triangles[:, corner]].astype(np.float64) for corner in range(3))
    normal = np.cross(b - a, c - a)
    total = np.zeros((len(points), 3))
    for corner in range(3):
        np.add.at(total, triangles[:, corner], normal)
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C"))
