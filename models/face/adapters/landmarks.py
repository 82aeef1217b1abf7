"""Where the 68 iBUG points lie on a face model: as the user's file says, or found on its surface."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, Shaped
from scipy.spatial import cKDTree

from models.face.adapters.landmark_finder import locate_landmarks
from models.types import LANDMARK_COUNT

INNER_COUNT = 51
"""The points without the contour of the jaw, iBUG 17 to 67; what FLAME's static embedding holds."""

Places = tuple[Int[np.ndarray, "68"] | Int[np.ndarray, "68 3"], Float[np.ndarray, "68 3"] | None]
"""Vertices (68,), or corners (68, 3) of triangles with barycentric weights (68, 3): as `FaceModelArrays` wants them."""

EMBEDDING_KEYS = (
    ("full_lmk_faces_idx", "full_lmk_bary_coords"),
    ("lmk_face_idx", "lmk_b_coords"),
    ("static_lmk_faces_idx", "static_lmk_bary_coords"),
)
CONTOUR_KEYS = ("dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords")
"""Contour points per degree of yaw, the frontal ones first."""

VERTEX_KEYS = ("landmark_vertices", "landmarks68", "keypoints", "landmarks", "vertices")

MAX_GAP_SHARE = 0.05
"""Picked points may lie off the surface by this share of the model's size."""

FOUND = (
    "the 68 points were found on the face model's surface, a few millimetres off; "
    "look at them with `mien model preview`, or give their table as face_model.landmarks"
)

EXPECTED = (
    "68 vertex indices, 68 points x y z, or an embedding of triangles and barycentric coordinates "
    "(.txt, .csv, .json, .npy, .npz, .pp)"
)


class LandmarksFoundWarning(UserWarning):
    """No table said where the 68 points are, so they were found on the surface and want a look."""


def find_landmarks(mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Int[np.ndarray, "68"]:
    """The vertices nearest to the 68 points of the procedural face laid over a model's mean.

    Convention: millimetres in our axes. Warns, because the points are some millimetres off.
    Raises: ValueError if no face was found.
    """
    warnings.warn(FOUND, LandmarksFoundWarning, stacklevel=2)
    return _nearest_vertices(locate_landmarks(mean, triangles), mean=mean, triangles=triangles)


def _nearest_vertices(
    points: Float[np.ndarray, "N 3"], *, mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]
) -> Int[np.ndarray, "N"]:
    used = np.unique(triangles)
    return np.asarray(used[cKDTree(mean[used]).query(points)[1]], dtype=np.int64)


def read_landmarks(path: Path, *, mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Places:
    """Read a file that says where the 68 points are on the model of this mean and these triangles.

    `.txt`, `.csv`, `.json`, `.npy`: 68 vertex indices counted from 0, or 68 points; `.npz`: the same under one of
    `VERTEX_KEYS`, or an embedding under FLAME's names; `.pp`: points picked in MeshLab, in iBUG order.
    Convention: `mean`, and with it the points, in the units and axes of the model's own file.
    Raises: ValueError or FileNotFoundError in one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of landmarks, expected {EXPECTED}; set face_model.landmarks")
    try:
        content = _content(path)
        if isinstance(content, dict):
            return _from_mapping(content, mean=mean, triangles=triangles)
        return _from_array(content, mean=mean, triangles=triangles)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not text, expected {EXPECTED}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON in line {error.lineno}, expected {EXPECTED}") from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: {error}; give {EXPECTED}") from None


def landmarks_from_embedding(
    faces: Num[np.ndarray, "..."],
    coordinates: Num[np.ndarray, "... 3"],
    *,
    triangles: Int[np.ndarray, "F 3"],
) -> tuple[Int[np.ndarray, "_ 3"], Float[np.ndarray, "_ 3"]]:
    """Corners and weights of points given as triangle and barycentric coordinates.

    Raises: ValueError if a triangle does not exist, or coordinates do not add up to one.
    """
    faces = np.asarray(faces).reshape(-1).astype(np.int64)
    weights = np.asarray(coordinates, dtype=np.float64).reshape(-1, 3)
    if len(faces) != len(weights):
        raise ValueError(f"{len(faces)} triangles with {len(weights)} barycentric coordinates, expected as many")
    if len(faces) and (faces.min() < 0 or faces.max() >= len(triangles)):
        raise ValueError(f"triangles {faces.min()} to {faces.max()} are named, expected 0 to {len(triangles) - 1}")
    if not np.isfinite(weights).all() or np.abs(weights.sum(1) - 1.0).max(initial=0.0) > 1e-2:
        raise ValueError("barycentric coordinates do not add up to 1")
    return triangles[faces].astype(np.int64), (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def nearest_on_surface(
    points: Float[np.ndarray, "N 3"], *, mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]
) -> tuple[Int[np.ndarray, "N 3"], Float[np.ndarray, "N 3"], Float[np.ndarray, "N"]]:
    """Corners and weights of the nearest point of the mesh to each point, and its distance."""
    corners = mean[triangles].astype(np.float64)
    first, edge, other = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    places = np.empty(len(points), np.int64)
    weights = np.empty((len(points), 3))
    distances = np.empty(len(points))
    for place, point in enumerate(np.asarray(points, dtype=np.float64)):
        v, w = _nearest_in_triangles(point - first, edge, other)
        gap = point - first - v[:, None] * edge - w[:, None] * other
        squares = np.einsum("fc,fc->f", gap, gap)
        best = int(squares.argmin())
        places[place], distances[place] = best, np.sqrt(squares[best])
        weights[place] = 1.0 - v[best] - w[best], v[best], w[best]
    return triangles[places].astype(np.int64), weights.astype(np.float32), distances


def _nearest_in_triangles(
    offset: Float[np.ndarray, "F 3"], edge: Float[np.ndarray, "F 3"], other: Float[np.ndarray, "F 3"]
) -> tuple[Float[np.ndarray, "F"], Float[np.ndarray, "F"]]:
    """Weights of the second and third corner of the point of each triangle that is nearest to one point."""

    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("fc,fc->f", a, b))

    tiny = 1e-30
    along_edge, along_other = dot(offset, edge), dot(offset, other)
    edge_square, other_square, mixed = dot(edge, edge), dot(other, other), dot(edge, other)
    determinant = np.maximum(edge_square * other_square - mixed * mixed, tiny)
    inner_v = (other_square * along_edge - mixed * along_other) / determinant
    inner_w = (edge_square * along_other - mixed * along_edge) / determinant
    inside = (inner_v >= 0) & (inner_w >= 0) & (inner_v + inner_w <= 1)
    on_edge = np.clip(along_edge / np.maximum(edge_square, tiny), 0.0, 1.0)
    on_other = np.clip(along_other / np.maximum(other_square, tiny), 0.0, 1.0)
    third_square = edge_square + other_square - 2 * mixed
    on_third = np.clip((edge_square + along_other - along_edge - mixed) / np.maximum(third_square, tiny), 0.0, 1.0)
    zero = np.zeros_like(inner_v)
    sides = np.stack([on_edge, zero, 1.0 - on_third]), np.stack([zero, on_other, on_third])
    gaps = offset - sides[0][..., None] * edge - sides[1][..., None] * other
    nearest = np.einsum("sfc,sfc->sf", gaps, gaps).argmin(0)[None]
    side_v, side_w = (np.take_along_axis(side, nearest, 0)[0] for side in sides)
    return np.where(inside, inner_v, side_v), np.where(inside, inner_w, side_w)


def _content(path: Path) -> dict[str, Any] | np.ndarray:
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        # Opened here, because numpy leaves a file that is no archive open.
        with path.open("rb") as stored:
            loaded = np.load(stored, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return {key: loaded[key] for key in loaded.files}
    text = path.read_text(encoding="utf-8")
    if suffix == ".pp":
        return _picked_points(text)
    if suffix == ".json":
        data = json.loads(text)
        if isinstance(data, dict):
            return {key: np.asarray(value) for key, value in data.items() if isinstance(value, list)}
        return np.asarray(data)
    return _table(text)


def _picked_points(text: str) -> Float[np.ndarray, "N 3"]:
    """Points of MeshLab's file; read by pattern, because an XML parser would expand entities."""
    points: list[list[float]] = []
    for tag in re.findall(r"<point\b[^>]*>", text):
        values = dict(re.findall(r"\b([xyz])\s*=\s*[\"']([^\"']*)[\"']", tag))
        if set(values) != {"x", "y", "z"}:
            raise ValueError(f"point {len(points) + 1} has no x, y and z")
        points.append([float(values[axis]) for axis in "xyz"])
    return np.array(points, dtype=np.float64).reshape(-1, 3)


def _table(text: str) -> Num[np.ndarray, "..."]:
    rows = [re.split(r"[\s,;]+", line.strip().strip(",;")) for line in text.splitlines()]
    rows = [row for row in rows if row != [""] and not row[0].startswith("#")]
    # One line of headings is allowed.
    if rows and not _is_number(rows[0][0]):
        rows = rows[1:]
    flat = [value for row in rows for value in row]
    wrong = next((value for value in flat if not _is_number(value)), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:40]!r} is no number")
    values = np.array([float(value) for value in flat])
    if len(flat) == 3 * LANDMARK_COUNT:
        return values.reshape(LANDMARK_COUNT, 3)
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _from_mapping(
    content: Mapping[str, np.ndarray], *, mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]
) -> Places:
    for faces_key, weights_key in EMBEDDING_KEYS:
        if faces_key in content and weights_key in content:
            return embedded_landmarks(content, triangles=triangles)
    for key in VERTEX_KEYS:
        if key in content:
            weights = content.get("landmark_weights")
            if weights is None:
                return _from_array(content[key], mean=mean, triangles=triangles)
            return np.asarray(content[key]).astype(np.int64), np.asarray(weights).astype(np.float32)
    raise ValueError(f"no known key among {', '.join(sorted(content)) or 'none'}")


def embedded_landmarks(content: Mapping[str, np.ndarray], *, triangles: Int[np.ndarray, "F 3"]) -> Places:
    """The 68 points of an embedding under FLAME's names; 51 points take the jaw's contour from the frontal view's.

    Raises: ValueError if there are neither 68 points nor 51 with a contour of 17.
    """
    faces_key, weights_key = next(keys for keys in EMBEDDING_KEYS if keys[0] in content and keys[1] in content)
    corners, weights = landmarks_from_embedding(content[faces_key], content[weights_key], triangles=triangles)
    if len(corners) == INNER_COUNT and all(key in content for key in CONTOUR_KEYS):
        frontal = [np.asarray(content[key])[0] for key in CONTOUR_KEYS]
        contour, contour_weights = landmarks_from_embedding(frontal[0], frontal[1], triangles=triangles)
        corners, weights = np.concatenate([contour, corners]), np.concatenate([contour_weights, weights])
    if len(corners) != LANDMARK_COUNT:
        raise ValueError(f"{faces_key} holds {len(corners)} points, expected {LANDMARK_COUNT}")
    return corners, weights


def _from_array(
    content: Shaped[np.ndarray, "..."], *, mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]
) -> Places:
    values = np.asarray(content)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ValueError("holds something else than finite numbers")
    if values.shape == (LANDMARK_COUNT, 3):
        corners, weights, distances = nearest_on_surface(values, mean=mean, triangles=triangles)
        limit = MAX_GAP_SHARE * float(np.linalg.norm(mean.max(0) - mean.min(0)))
        if distances.max() > limit:
            raise ValueError(
                f"point {int(distances.argmax())} lies {distances.max():.4g} off the surface, expected at most "
                f"{limit:.4g}, in the units and axes of the model's file"
            )
        return corners, weights
    indices = values.reshape(-1)
    if len(indices) != LANDMARK_COUNT:
        raise ValueError(f"holds an array of shape {values.shape}, expected 68 indices or 68 points")
    if (indices != np.round(indices)).any() or indices.min() < 0 or indices.max() >= len(mean):
        raise ValueError(
            f"vertex indices run from {indices.min():g} to {indices.max():g}, expected whole numbers from 0 to "
            f"{len(mean) - 1}"
        )
    return indices.astype(np.int64), None
