"""Basel Face Models of 2017 and 2019: `.h5` files in the format of Statismo.

What the keys mean (V vertices, F triangles; vectors are x y z x y z … or r g b r g b …):
- `/shape/model/mean` (3V,) the neutral face, millimetres; `pcaBasis` (3V, N) orthonormal directions; `pcaVariance` (N,)
  variances, so σ is their root; `noiseVariance` what the modes leave over, not needed;
- `/expression/model/…` likewise, for displacements: its `mean` is the average expression of the scanned people, which
  becomes a mode of its own, `expression_mean`, so that zero stays the neutral face and one adds it;
- `/color/model/…` likewise, for RGB from 0 to 1;
- `/shape/representer/cells` (3, F) vertices counted from 0; `…/points` (3, V) is the reference mesh, not needed;
- `/metadata/landmarks/json` a list of `id` and `coordinates` (millimetres, on the mean); those that iBUG has too place
  the 68 points, the others are found.

Axes are ours: +x the subject's left, +y up, +z out of the face. A file whose x axis was mirrored is refused where the
named points come with it; without them a mirrored mesh looks like another face, and cannot be told from one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from models.face.adapters.assemble import FaceModelArrays, landmark_positions
from models.face.adapters.basel import ALBEDO_MODES, LICENCE, mode_names
from models.face.adapters.borrowed_expressions import BORROWED, borrow_expressions
from models.face.adapters.feature_parts import feature_parts
from models.face.adapters.landmarks import Places, read_landmarks
from models.face.adapters.matlab_file import UNREADABLE, read_dataset
from models.face.adapters.partial_landmarks import complete_landmarks
from models.face.adapters.principal_modes import (
    albedo_from_vector,
    face_outwards,
    finite_numbers,
    modes_from_columns,
    triangles_from_rows,
    vertices_from_vector,
)
from models.face.adapters.source import file_sha256, named_in_short, require_file

MODEL_KEYS = ("mean", "pcaBasis", "pcaVariance")

NAMED_POINTS = {
    "center.chin.tip": 8,
    "center.nose.tip": 30,
    "center.nose.attachement_to_philtrum": 33,
    "right.eye.corner_outer": 36,
    "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45,
    "right.lips.corner": 48,
    "right.lips.philtrum_ridge": 50,
    "center.lips.upper.outer": 51,
    "left.lips.philtrum_ridge": 52,
    "left.lips.corner": 54,
    "center.lips.lower.outer": 57,
    "center.lips.upper.inner": 62,
    "center.lips.lower.inner": 66,
}
"""iBUG points by the names in the metadata; its brows and lids have other points than iBUG's."""

NAMED_POINT_REACH_MM = 5.0
"""A named point further off the mean's vertices belongs to a part that was cropped away."""

EDITIONS = {53149: "2017", 28588: "2017", 47439: "2019", 27657: "2019", 58203: "2019"}
"""By the number of vertices: the published crops of each."""


def read_basel_h5(path: Path, *, landmarks: Path | None = None, identity_modes: int | None = None) -> FaceModelArrays:
    """A Basel Face Model of 2017 or 2019.

    Convention: `landmarks` counts vertices from 0, or gives points in millimetres on the mean.
    Raises: ValueError or FileNotFoundError in one line.
    """
    require_file(path, expected="a Basel Face Model of 2017 or 2019 (.h5)")
    limits = {"shape": identity_modes, "expression": None, "color": ALBEDO_MODES}
    try:
        with h5py.File(path, "r") as file:
            found = tuple(str(name) for name in file)
            stored = {
                name: _model(file[f"{name}/model"], limit) for name, limit in limits.items() if f"{name}/model" in file
            }
            cells = _array(file, "shape/representer/cells")
            cells = np.zeros((3, 0)) if cells is None else cells
            text = _text(file, "metadata/landmarks/json")
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path}: not a readable HDF5 file ({reason}), expected a Basel .h5; copy it again") from None
    _require(path, stored, cells, found)
    raw = vertices_from_vector(stored["shape"]["mean"], key="shape/model/mean", path=path)
    mean, count = raw.astype(np.float32), len(raw)
    rows = triangles_from_rows(
        cells.T, vertex_count=count, first=0, key="shape/representer/cells (transposed)", path=path
    )
    triangles = face_outwards(rows, mean)
    if landmarks is None:
        known = _known_vertices(text, mean, path)
        places: Places = (complete_landmarks(known, mean=mean, triangles=triangles), None)
    else:
        places = read_landmarks(landmarks, mean=raw, triangles=rows)
    points = landmark_positions(mean, *places)
    parts = feature_parts(mean, points)
    modes = {name: _modes(name, model, count, path) for name, model in stored.items()}
    colour = stored.get("color")
    borrowed = "expression" not in stored
    if borrowed:
        expressions, names = borrow_expressions(mean, triangles, points, parts)
    else:
        expressions, names = _with_average(stored["expression"]["mean"], modes["expression"], path)
    name = f"basel-{EDITIONS[count]}" if count in EDITIONS else "basel"
    return FaceModelArrays(
        name=f"{name}, {BORROWED}" if borrowed else name,
        licence=f"{LICENCE}; {BORROWED} from the procedural face (Apache-2.0)" if borrowed else LICENCE,
        source_sha256=file_sha256(path),
        mean=mean,
        identity_basis=modes["shape"],
        expression_basis=expressions,
        expression_names=names,
        triangles=triangles,
        landmark_vertices=places[0],
        landmark_weights=places[1],
        parts=parts,
        albedo_mean=None
        if colour is None
        else albedo_from_vector(colour["mean"], vertex_count=count, white=1.0, key="color/model/mean", path=path),
        albedo_basis=modes.get("color"),
    )


def _model(group: Any, limit: int | None) -> dict[str, np.ndarray]:
    """Arrays of one of the models, as far as they are there; only the modes that are wanted leave the disk."""
    if not isinstance(group, h5py.Group):
        return {}
    arrays = {"mean": _array(group, "mean"), "pcaVariance": _array(group, "pcaVariance")}
    arrays["pcaBasis"] = _array(group, "pcaBasis", columns=limit)
    found = {key: array for key, array in arrays.items() if array is not None}
    if len(found) == len(MODEL_KEYS) and found["pcaVariance"].shape == group["pcaBasis"].shape[1:]:
        found["pcaVariance"] = found["pcaVariance"][:limit]
    return found


def _array(group: Any, name: str, *, columns: int | None = None) -> np.ndarray | None:
    dataset = group.get(name)
    if not isinstance(dataset, h5py.Dataset):
        return None
    if columns is None or dataset.ndim != 2:
        return read_dataset(dataset)
    return read_dataset(dataset, columns=columns)


def _text(file: Any, name: str) -> str | None:
    """A text, stored as a string, as an array of one string, or as its bytes."""
    array = _array(file, name)
    if array is None or array.size == 0:
        return None
    first = array.reshape(-1)[0]
    if isinstance(first, str):
        return first
    raw = first if isinstance(first, bytes) else array.tobytes()
    return raw.decode("utf-8", errors="replace").rstrip("\0")


def _require(path: Path, stored: Mapping[str, Mapping[str, Any]], cells: np.ndarray, found: tuple[str, ...]) -> None:
    if "shape" not in stored:
        raise ValueError(
            f"{path}: no Basel Face Model, found {named_in_short(found) or 'nothing'}, expected the group shape/model"
        )
    missing = [f"{name}/model/{key}" for name, model in stored.items() for key in MODEL_KEYS if key not in model]
    if not cells.size:
        missing.append("shape/representer/cells")
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} are missing, found the groups {named_in_short(found)}")
    if cells.ndim != 2 or cells.shape[0] != 3:
        raise ValueError(f"{path}: shape/representer/cells has shape {cells.shape}, expected (3, any)")


def _modes(name: str, model: Mapping[str, Any], count: int, path: Path) -> Float[np.ndarray, "N V 3"]:
    variance = finite_numbers(model["pcaVariance"], key=f"{name}/model/pcaVariance", path=path)
    if variance.size and variance.min() < 0.0:
        raise ValueError(f"{path}: {name}/model/pcaVariance holds {variance.min():.4g}, expected no negative variance")
    return modes_from_columns(
        model["pcaBasis"], sigma=np.sqrt(variance), vertex_count=count, key=f"{name}/model/pcaBasis", path=path
    )


def _with_average(
    stored: np.ndarray, modes: Float[np.ndarray, "N V 3"], path: Path
) -> tuple[Float[np.ndarray, "E V 3"], tuple[str, ...]]:
    average = vertices_from_vector(stored, key="expression/model/mean", path=path).astype(np.float32)
    if average.shape != modes.shape[1:]:
        raise ValueError(f"{path}: expression/model/mean has {len(average)} vertices, expected {modes.shape[1]}")
    names = mode_names(len(modes))
    if not average.any():
        return modes, names
    return np.concatenate([average[None], modes]), ("expression_mean", *names)


def _known_vertices(text: str | None, mean: Float[np.ndarray, "V 3"], path: Path) -> dict[int, int]:
    """Vertices nearest to the named points; none, if the file names none."""
    if text is None:
        return {}
    try:
        listed = json.loads(text)
        if isinstance(listed, dict):
            named = dict(listed)
        else:
            named = {entry["id"]: entry["coordinates"] for entry in listed}
        wanted = {
            point: np.asarray(named[name], dtype=np.float64) for name, point in NAMED_POINTS.items() if name in named
        }
        if any(place.shape != (3,) or not np.isfinite(place).all() for place in wanted.values()):
            raise ValueError("a point without three coordinates")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: metadata/landmarks/json is damaged ({error}), expected id and coordinates") from None
    if not wanted:
        return {}
    distances, vertices = cKDTree(mean).query(np.stack(list(wanted.values())))
    near = zip(wanted, vertices, distances, strict=True)
    return {point: int(vertex) for point, vertex, distance in near if distance < NAMED_POINT_REACH_MM}
