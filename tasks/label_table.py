"""One row of plain numbers per detected face: what the expectations of `validate_labels` look at.

Lists are reduced to numbers here, so that every value in the Data Docs and in the quarantine can be read and looked up.
A number that cannot be computed is null; then another one says why, so that no bad row passes for want of a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.face.camera import crop_camera
from models.face.crop import apply_affine, crop_affine
from models.face.morphable import MorphableModel
from models.reconstruction.label_quality import label_quality, landmark_error
from models.types import LANDMARK_COUNT
from tasks.params import Params

SPLITS_BY_RIGHT = ("test", "validation", "train")
"""Who keeps a person that stands in several splits equally often: what is held out stays complete."""

MANIFEST_COLUMNS = ("source", "person", "split", "labelled", "width", "height")

GRID_SHARE = 0.001
"""Points closer than this share of the box count as one."""

MESH_NUMBERS = (
    "mesh_id",
    "mesh_numbers",
    "neutral_numbers",
    "mesh_not_finite",
    "mesh_long_side_mm",
    "mesh_short_side_mm",
    "mesh_fit_error_mm",
    "mesh_coverage",
)
QUALITY_BATCH = 256
DECIMALS = 6


def manifest_rows(landmarks: pa.Table, samples: pa.Table) -> np.ndarray:
    """Row (N,) of the manifest that each detected face belongs to, -1 where the manifest lacks it."""
    place = {sample_id: row for row, sample_id in reversed(list(enumerate(samples["sample_id"].to_pylist())))}
    return np.array([place.get(sample_id, -1) for sample_id in landmarks["sample_id"].to_pylist()], dtype=np.int64)


def build_label_table(
    params: Params,
    face_model: MorphableModel,
    *,
    landmarks: pa.Table,
    samples: pa.Table,
    meshes: Iterable[pa.Table],
    stored: Mapping[str, int],
) -> pd.DataFrame:
    """The numbers to be judged, in the order of `landmarks`.

    `meshes` is the table of meshes, part by part: all vertices together may be more than the memory holds.
    `stored` counts the photos by sample id.
    """
    in_manifest = manifest_rows(landmarks, samples)
    matched = take_rows(samples.drop_columns(["sample_id"]), in_manifest)
    sample_ids = landmarks["sample_id"].to_pylist()
    known = Counter(samples["sample_id"].to_pylist())
    table: dict[str, object] = {"row": np.arange(len(landmarks)), "sample_id": sample_ids}
    for name in ("source", "person", "split", "path"):
        table[name] = matched[name].to_pylist()
    table["manifest_rows"] = [known[sample_id] for sample_id in sample_ids]
    gaps = [matched[name].is_null().to_numpy() for name in MANIFEST_COLUMNS]
    known_split = pc.is_in(matched["split"], value_set=pa.array(SPLITS_BY_RIGHT)).to_numpy()
    table["manifest_gaps"] = np.where(in_manifest >= 0, np.sum(gaps, axis=0) + ~known_split, np.nan)
    table["image_rows"] = [stored.get(sample_id, 0) for sample_id in sample_ids]
    for name, key in (("person_split", "person"), ("mesh_split", "mesh_id")):
        table[name] = majority_splits(matched[key].to_pylist(), matched["split"].to_pylist())
    points = list_matrix(landmarks["landmarks"], 2 * LANDMARK_COUNT).reshape(-1, LANDMARK_COUNT, 2)
    confidence = list_matrix(landmarks["confidence"], LANDMARK_COUNT)
    size = np.stack([float_column(matched[name]) for name in ("width", "height")], 1)
    table |= _landmark_numbers(landmarks, points, confidence, size)
    table |= _annotation_numbers(matched)
    table |= _mesh_numbers(params, face_model, matched, meshes, points, confidence)
    return pd.DataFrame(table).round(DECIMALS)


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a table by number; -1 gives a row of nulls."""
    return table.take(pa.array(rows, mask=rows < 0))


def float_column(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers (N,) as float64, NaN where null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)


def list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    """How many numbers (N,) each list of a column holds; a null list holds none."""
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), dtype=np.int64)


def list_matrix(column: pa.ChunkedArray, width: int, *, dtype: type = np.float64) -> np.ndarray:
    """The lists of a column as rows (N, width); a list of another length gives a row of NaN."""
    fitting = list_lengths(column) == width
    matrix: np.ndarray = np.full((len(column), width), np.nan, dtype=dtype)
    values = pc.list_flatten(column.filter(pa.array(fitting))).to_numpy()
    matrix[fitting] = values.reshape(-1, width)
    return matrix


def majority_splits(keys: Sequence[str | None], splits: Sequence[str | None]) -> list[str | None]:
    """The split in which each row's person (or mesh) stands most often; rows that stand elsewhere leak.

    Degenerate: a tie goes to the split that is held out more strictly; a row without a person keeps its own split.
    """
    seen = Counter((key, split) for key, split in zip(keys, splits, strict=True) if key is not None)
    majority: dict[str, str | None] = {}
    for key, split in sorted(seen, key=lambda pair: (-seen[pair], *(pair[1] != name for name in SPLITS_BY_RIGHT))):
        majority.setdefault(key, split)
    return [split if key is None else majority[key] for key, split in zip(keys, splits, strict=True)]


def _not_finite(matrix: np.ndarray) -> np.ndarray:
    return np.asarray((~np.isfinite(matrix)).reshape(len(matrix), -1).sum(1))


def _landmark_numbers(
    landmarks: pa.Table, points: np.ndarray, confidence: np.ndarray, size: np.ndarray
) -> dict[str, np.ndarray]:
    box = list_matrix(landmarks["box"], 4)
    pose = np.stack([float_column(landmarks[name]) for name in ("yaw_deg", "pitch_deg", "roll_deg", "face_score")], 1)
    numbers = {}
    for name, column, matrix in (
        ("landmark", "landmarks", points),
        ("confidence", "confidence", confidence),
        ("box", "box", box),
    ):
        lengths = list_lengths(landmarks[column])
        numbers[f"{name}_numbers"] = lengths
        fitting = lengths == matrix[:1].size
        numbers[f"{name}_not_finite"] = np.where(fitting, _not_finite(matrix), np.nan)
    numbers["pose_not_finite"] = _not_finite(pose)
    for index, name in enumerate(("yaw_deg", "pitch_deg", "roll_deg", "face_score")):
        numbers[name] = _finite_or_null(pose[:, index])
    finite_confidence = np.where(np.isfinite(confidence).all(1, keepdims=True), confidence, np.nan)
    numbers["lowest_confidence"] = finite_confidence.min(1)
    numbers["highest_confidence"] = finite_confidence.max(1)
    numbers["mean_confidence"] = finite_confidence.mean(1)
    finite_box = np.where(np.isfinite(box).all(1, keepdims=True), box, np.nan)
    numbers["box_short_side_px"] = np.minimum(finite_box[:, 2] - finite_box[:, 0], finite_box[:, 3] - finite_box[:, 1])

    shape = np.where(np.isfinite(points).all((1, 2))[:, None, None], points, np.nan)
    sides = shape.max(1) - shape.min(1)
    long_side = sides.max(1)
    numbers["landmark_box_px"] = long_side
    extent = np.where(long_side > 0, long_side, np.nan)
    numbers["landmark_box_aspect"] = sides.min(1) / extent
    outside = np.maximum(-shape.min(1), shape.max(1) - size).max(1)
    numbers["outside_photo_share"] = np.maximum(outside, 0.0) / extent
    numbers["distinct_points"] = np.array(
        [_distinct(face, side) if np.isfinite(side) else np.nan for face, side in zip(shape, long_side, strict=True)]
    )
    return numbers


def _distinct(face: np.ndarray, side: float) -> float:
    return float(len(np.unique(np.round((face - face.min(0)) / max(GRID_SHARE * side, 1e-9)), axis=0)))


def _finite_or_null(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _annotation_numbers(matched: pa.Table) -> dict[str, np.ndarray]:
    numbers = {}
    for name, column, width in (("annotation", "landmarks", 2 * LANDMARK_COUNT), ("rotation", "rotation", 3)):
        present = matched[column].is_valid().to_numpy()
        lengths = list_lengths(matched[column])
        numbers[f"{name}_numbers"] = np.where(present, lengths, np.nan)
        bad = _not_finite(list_matrix(matched[column], width))
        numbers[f"{name}_not_finite"] = np.where(present & (lengths == width), bad, np.nan)
    return numbers


def _measure_meshes(face_model: MorphableModel, parts: Iterable[pa.Table]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Numbers (M,) about every mesh, with its `mesh_id`, and its 68 points (M, 68, 3), NaN where it is malformed."""
    width = 3 * face_model.vertex_count
    measured: list[dict[str, np.ndarray]] = []
    points: list[np.ndarray] = [np.zeros((0, LANDMARK_COUNT, 3), dtype=np.float32)]
    for part in parts:
        shapes = list_matrix(part["vertices"], width, dtype=np.float32).reshape(-1, face_model.vertex_count, 3)
        lengths, neutral_lengths = list_lengths(part["vertices"]), list_lengths(part["neutral"])
        fit_error, coverage = float_column(part["fit_error_mm"]), float_column(part["coverage"])
        neutral_bad = _not_finite(list_matrix(part["neutral"], width, dtype=np.float32))
        bad = np.where(lengths == width, _not_finite(shapes), 0)
        bad += np.where(neutral_lengths == width, neutral_bad, 0) + ~np.isfinite(fit_error) + ~np.isfinite(coverage)
        shapes[~np.isfinite(shapes).all((1, 2))] = np.nan
        extents = shapes.max(1) - shapes.min(1)
        points.append(face_model.landmarks(torch.from_numpy(shapes)).numpy())
        measured.append(
            {
                "mesh_id": np.array(part["mesh_id"].to_pylist(), dtype=object),
                "mesh_numbers": lengths,
                "neutral_numbers": np.where(part["neutral"].is_valid().to_numpy(), neutral_lengths, np.nan),
                "mesh_not_finite": bad,
                "mesh_long_side_mm": extents.max(1),
                "mesh_short_side_mm": extents.min(1),
                "mesh_fit_error_mm": _finite_or_null(fit_error),
                "mesh_coverage": _finite_or_null(coverage),
            }
        )
    numbers = {
        name: np.concatenate([part[name] for part in measured]) if measured else np.zeros(0) for name in MESH_NUMBERS
    }
    return numbers, np.concatenate(points)


def _mesh_numbers(
    params: Params,
    face_model: MorphableModel,
    matched: pa.Table,
    meshes: Iterable[pa.Table],
    points: np.ndarray,
    confidence: np.ndarray,
) -> dict[str, np.ndarray]:
    measured, mesh_points = _measure_meshes(face_model, meshes)
    known = measured.pop("mesh_id").tolist()
    stored = Counter(known)
    place = {mesh_id: row for row, mesh_id in enumerate(known) if mesh_id is not None}
    mesh_ids = matched["mesh_id"].to_pylist()
    rows = np.array([place.get(mesh_id, -1) for mesh_id in mesh_ids], dtype=np.int64)
    named = np.array([mesh_id is not None for mesh_id in mesh_ids], dtype=bool)
    numbers = {"has_mesh": named | matched["labelled"].fill_null(False).to_numpy()}
    count = [stored[mesh_id] if mesh_id is not None else 0 for mesh_id in mesh_ids]
    numbers["mesh_rows"] = np.where(numbers["has_mesh"], count, np.nan)
    for name, values in measured.items():
        # A last NaN, which row -1 points at.
        numbers[name] = np.append(values.astype(np.float64), np.nan)[rows]
    of_row = np.concatenate([mesh_points, np.full((1, LANDMARK_COUNT, 3), np.nan, dtype=np.float32)])[rows]
    numbers["label_quality"] = _qualities(
        params, of_row, points, confidence, numbers["mesh_fit_error_mm"], numbers["mesh_coverage"]
    )
    return numbers


def _qualities(
    params: Params,
    mesh_points: np.ndarray,
    points: np.ndarray,
    confidence: np.ndarray,
    fit_error: np.ndarray,
    coverage: np.ndarray,
) -> np.ndarray:
    """Label quality (N,) of every face whose mesh and landmarks are fit to be compared, else NaN."""
    quality = np.full(len(points), np.nan)
    able = np.isfinite(points).all((1, 2)) & (np.ptp(points, axis=1).max(1) > 0)
    able &= np.isfinite(confidence).all(1) & (confidence >= 0).all(1)
    # A mesh without extent has no pose; its size is refused anyway.
    able &= np.isfinite(mesh_points).all((1, 2)) & (np.ptp(mesh_points, axis=1).min(1) > 1e-3)
    size_px = params.project.crop_size_px
    chosen_rows = np.flatnonzero(able)
    for start in range(0, len(chosen_rows), QUALITY_BATCH):
        chosen = chosen_rows[start : start + QUALITY_BATCH]
        photo_points = torch.from_numpy(points[chosen])
        affine = crop_affine(photo_points, size_px=size_px, scale=params.validate_labels.crop_scale)
        error = landmark_error(
            torch.from_numpy(mesh_points[chosen]),
            apply_affine(torch.linalg.inv(affine), photo_points).float(),
            confidence=torch.from_numpy(confidence[chosen]).float(),
            camera=crop_camera(len(chosen), size_px),
        )
        registered, covered = torch.from_numpy(fit_error[chosen]).float(), torch.from_numpy(coverage[chosen]).float()
        quality[chosen] = label_quality(registered, error, coverage=covered).numpy()
    return _finite_or_null(quality)
