"""Measures reconstructions of a split against the truth: per photo, then pooled per stage and per yaw bin."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.face.alignment import NOW_LANDMARKS, rigid_alignment, transform
from models.face.camera import angles_from_rotation, rotation_distance
from models.face.morphable import MorphableModel
from models.face.surface import SurfaceTopology, now_crop, scan_distance
from models.metrics import (
    depth_flatness,
    depth_moments,
    landmark_error,
    normal_error,
    similarity,
    vertex_error,
)
from models.rendering.shade import vertex_normals
from models.training.data import CropSet, make_batch
from models.types import Batch, FaceCoefficients, Rendering, to_device

SCAN_POINTS = 600
"""Points of each scan that are measured: pooled over hundreds of photos their median moves by less than 0.01 mm."""

MEASURES = (
    "scan_error_mm",
    "scan_error_mean_mm",
    "scan_error_scaled_mm",
    "vertex_error_mm",
    "normal_error_deg",
    "landmark_nme",
    "pose_error_deg",
    "similarity",
)
"""What is known of a single photo; the scan errors are the median and the mean over its scan's points."""

Predict = Callable[[Batch], tuple[FaceCoefficients, Rendering, Tensor]]
"""Coefficients, rendering and projected landmarks (B, 68, 2) of a batch."""


@dataclass(frozen=True)
class Truth:
    """The test persons' meshes, prepared once for all stages."""

    shape: Tensor
    """(M, V, 3): neutral where it is known, else with expression."""
    neutral: Tensor
    """(M,): whether `shape` is neutral."""
    normals: Tensor
    scan_points: tuple[np.ndarray, ...]
    """Indices of the vertices that stand for the scan of each mesh."""
    mean: Tensor
    triangles: Tensor
    topology: SurfaceTopology
    now_vertices: Tensor
    """Vertices of the seven points that scans are aligned by."""
    outer: Tensor
    """(V,): skin, lips and brows; what a scanner sees."""


@dataclass(frozen=True)
class Measured:
    """What a stage achieves on every photo of a split."""

    values: dict[str, np.ndarray]
    """(N,) by name of `MEASURES`; NaN where the truth is unknown."""
    scan: tuple[np.ndarray, ...]
    """Distances of the scan's points in mm, rigidly aligned; empty without a mesh."""
    scan_scaled: tuple[np.ndarray, ...]
    moments: Tensor
    """(N, 5): see `depth_moments`; NaN without a mesh."""
    coefficients: FaceCoefficients


def prepare_truth(model: MorphableModel, crops: CropSet) -> Truth:
    """Shapes, normals and scan points of the label meshes of a split.

    Raises: ValueError if the meshes are not in the face model's topology.
    """
    if len(crops.vertices) and crops.vertices.shape[1] != model.vertex_count:
        raise ValueError(
            f"ingest/meshes.parquet: meshes of {crops.vertices.shape[1]} vertices, expected the {model.vertex_count} "
            f"of face model {model.name}; set face_model as it was or run ingest again"
        )
    known = crops.neutral.isfinite().flatten(1).all(1)
    shape = torch.where(known[:, None, None], crops.neutral, crops.vertices)
    outer = (model.part("skin") | model.part("lips") | model.part("brows")).cpu()
    triangles, landmarks = model.triangles.cpu(), model.landmark_vertices.cpu()
    # One fixed order for all meshes: every vertex stands for the same spot of every face.
    order = np.random.default_rng(0).permutation(np.nonzero(outer.numpy())[0])
    points = []
    for vertices in shape.double().numpy():
        points.append(order[now_crop(vertices[order], vertices[landmarks.numpy()])][:SCAN_POINTS])
    return Truth(
        shape=shape,
        neutral=known,
        normals=vertex_normals(shape, triangles) if len(shape) else shape,
        scan_points=tuple(points),
        mean=model.mean.cpu(),
        triangles=triangles,
        topology=SurfaceTopology.build(triangles.numpy(), model.vertex_count),
        now_vertices=landmarks[list(NOW_LANDMARKS)],
        outer=outer,
    )


@torch.no_grad()
def measure_stage(
    predict: Predict,
    crops: CropSet,
    *,
    model: MorphableModel,
    truth: Truth,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Measured:
    """Run a stage over a split and measure every photo."""
    values = {name: np.full(len(crops), np.nan, dtype=np.float32) for name in MEASURES}
    nothing = np.zeros(0, dtype=np.float32)
    scan, scaled = [nothing] * len(crops), [nothing] * len(crops)
    moments = torch.full((len(crops), 5), torch.nan, dtype=torch.float64)
    found: list[FaceCoefficients] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for indices in torch.split(torch.arange(len(crops)), batch_size):
            batch = to_device(make_batch(crops, indices, model=model, source="test", labelled=False), device)
            coefficients, rendering, landmarks = predict(batch)
            likeness = similarity(batch.image, rendering.image, rendering.mask & batch.mask)
            shape = model.vertices(coefficients.identity).cpu()
            expressive = model.vertices(coefficients.identity, coefficients.expression).cpu()
            coefficients = to_device(coefficients, "cpu")
            found.append(coefficients)
            turned = rotation_distance(coefficients.rotation, crops.rotation[indices]).rad2deg()
            values["similarity"][indices] = likeness.cpu()
            values["landmark_nme"][indices] = landmark_error(landmarks.cpu(), crops.annotation[indices])
            values["pose_error_deg"][indices] = turned
            meshes = crops.mesh_index[indices]
            labelled = meshes >= 0
            if not bool(labelled.any()):
                continue
            meshes, places = meshes[labelled], indices[labelled]
            shape = torch.where(truth.neutral[meshes][:, None, None], shape[labelled], expressive[labelled])
            vertex, normal, moments[places] = _shape_measures(shape, truth, meshes)
            values["vertex_error_mm"][places], values["normal_error_deg"][places] = vertex, normal
            jobs = _scan_jobs(shape, truth, meshes)
            for place, (rigid, similar) in zip(places.tolist(), pool.map(lambda job: scan_distance(*job), jobs)):
                scan[place], scaled[place] = rigid.astype(np.float32), similar.astype(np.float32)
                values["scan_error_mm"][place] = np.median(rigid)
                values["scan_error_mean_mm"][place] = rigid.mean()
                values["scan_error_scaled_mm"][place] = np.median(similar)
    return Measured(
        values=values,
        scan=tuple(scan),
        scan_scaled=tuple(scaled),
        moments=moments,
        coefficients=join_coefficients(found),
    )


def _shape_measures(shape: Tensor, truth: Truth, meshes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vertex error, normal error and depth moments after rigid alignment by all outer vertices."""
    target, outer = truth.shape[meshes], truth.outer
    rotation, translation, _ = rigid_alignment(shape[:, outer], target[:, outer])
    aligned = transform(shape, rotation, translation)
    depths = []
    for vertices in (shape, target):
        mean = truth.mean[outer].expand(len(vertices), -1, 3)
        rotation, translation, _ = rigid_alignment(vertices[:, outer], mean)
        depths.append((transform(vertices[:, outer], rotation, translation) - mean)[..., 2])
    return (
        vertex_error(aligned, target, outer),
        normal_error(vertex_normals(aligned, truth.triangles), truth.normals[meshes], outer),
        depth_moments(*depths),
    )


def _scan_jobs(shape: Tensor, truth: Truth, meshes: Tensor) -> list[tuple[Any, ...]]:
    target = truth.shape[meshes]
    # The scan moves to the prediction, so that distances are in the scan's millimetres.
    rotation, translation, _ = rigid_alignment(target[:, truth.now_vertices], shape[:, truth.now_vertices])
    moved = transform(target, rotation, translation).double().numpy()
    normals = vertex_normals(shape, truth.triangles).double().numpy()
    vertices = shape.double().numpy()
    return [
        (moved[row][truth.scan_points[mesh]], vertices[row], normals[row], truth.topology)
        for row, mesh in enumerate(meshes.tolist())
    ]


def join_coefficients(parts: Sequence[FaceCoefficients]) -> FaceCoefficients:
    """Coefficients of several batches as one."""
    names = ("identity", "expression", "albedo", "lighting", "rotation", "translation")
    return FaceCoefficients(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def true_yaw_deg(crops: CropSet) -> np.ndarray:
    """(N,): yaw of the true rotation where it is known, else of the detected pose."""
    known = crops.rotation.isfinite().all(1)
    true = angles_from_rotation(crops.rotation.nan_to_num())[:, 0].rad2deg()
    return torch.where(known, true, crops.yaw_deg).numpy()


def yaw_bins(yaw_deg: np.ndarray, edges: Sequence[float]) -> dict[str, np.ndarray]:
    """Photos (N,) of each bin of |yaw| by a name such as 0-30; beyond the last edge counts as the last bin."""
    bins = {}
    size = np.abs(yaw_deg)
    for number, (low, high) in enumerate(pairwise(edges)):
        last = number == len(edges) - 2
        bins[f"{low:g}-{high:g}"] = (size >= low) & ((size < high) | last)
    return bins


def summarize(measured: Measured, persons: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Pooled numbers over the chosen photos; None where no photo has the truth that a number needs.

    Scan errors are pooled over the points of all photos, the others are means over photos.
    """
    places = np.nonzero(chosen)[0]
    scan = _join([measured.scan[place] for place in places])
    scaled = _join([measured.scan_scaled[place] for place in places])
    moments = measured.moments[torch.from_numpy(places)]
    moments = moments[moments.isfinite().all(1)]
    slope, correlation = depth_flatness(moments) if len(moments) else (math.nan, math.nan)
    numbers = {
        "scan_error_mm_median": np.median(scan) if len(scan) else math.nan,
        "scan_error_mm_mean": scan.mean() if len(scan) else math.nan,
        "scan_error_scaled_mm_median": np.median(scaled) if len(scaled) else math.nan,
        "vertex_error_mm": _mean(measured.values["vertex_error_mm"][places]),
        "normal_error_deg": _mean(measured.values["normal_error_deg"][places]),
        "depth_slope": slope,
        "depth_correlation": correlation,
        "landmark_nme": _mean(measured.values["landmark_nme"][places]),
        "pose_error_deg": _mean(measured.values["pose_error_deg"][places]),
        "similarity": _mean(measured.values["similarity"][places]),
    }
    counts = {
        "photos": len(places),
        "persons": len(set(persons[places].tolist())),
        "photos_with_mesh": len(moments),
    }
    rounded = {name: round(float(value), 5) if math.isfinite(value) else None for name, value in numbers.items()}
    return {**rounded, **counts}


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else math.nan


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
