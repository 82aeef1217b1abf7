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

from models.face.alignment import rigid_alignment, transform
from models.face.camera import angles_from_rotation, rotation_distance
from models.face.morphable import MorphableModel
from models.face.regions import REGIONS, face_regions, region_errors
from models.face.surface import SurfaceTopology, now_crop, now_distance
from models.metrics import (
    MIN_SPREAD,
    angle_errors,
    depth_flatness,
    depth_moments,
    landmark_error,
    normal_error,
    nose_protrusion,
    peak_signal_to_noise,
    similarity,
    typology_angle,
    vertex_error,
)
from models.rendering.shade import vertex_normals
from models.statistics import bootstrap_interval, paired_difference, percentiles, pooled_median_interval, resamples
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
    *(f"{name}_error_mm" for name in REGIONS),
    "nose_ratio",
    "landmark_nme",
    "pose_error_deg",
    "yaw_error_deg",
    "pitch_error_deg",
    "roll_error_deg",
    "similarity",
    "psnr_db",
)
"""What is known of a single photo; the scan errors are the median and the mean over its scan's points."""

POOLED = ("scan_error_mm", "scan_error_mean_mm", "scan_error_scaled_mm")
"""Of those, what is pooled over the points of all photos; the others are means over photos."""

TONES = {"light": (41.0, math.inf), "medium": (10.0, 41.0), "dark": (-math.inf, 10.0)}
"""Typology angles in degrees from low to below high: light and very light; intermediate and tan; brown and dark."""

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
    landmark_vertices: Tensor
    """(68,)"""
    regions: dict[str, Tensor]
    """(V,) by name: nose, mouth, forehead, cheeks."""
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
        landmark_vertices=landmarks,
        regions=face_regions(model),
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
    chosen: Tensor | None = None,
) -> Measured:
    """Run a stage over a split and measure every photo, or the `chosen` ones (N,)."""
    chosen = torch.arange(len(crops)) if chosen is None else chosen
    values = {name: np.full(len(crops), np.nan, dtype=np.float32) for name in MEASURES}
    nothing = np.zeros(0, dtype=np.float32)
    scan, scaled = [nothing] * len(crops), [nothing] * len(crops)
    moments = torch.full((len(crops), 5), torch.nan, dtype=torch.float64)
    found: list[FaceCoefficients] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for indices in torch.split(chosen, batch_size):
            batch = to_device(make_batch(crops, indices, model=model, source="test", labelled=False), device)
            coefficients, rendering, landmarks = predict(batch)
            seen = rendering.mask & batch.mask
            values["similarity"][indices] = similarity(batch.image, rendering.image, seen).cpu()
            values["psnr_db"][indices] = peak_signal_to_noise(batch.image, rendering.image, seen).cpu()
            shape = model.vertices(coefficients.identity).cpu()
            expressive = model.vertices(coefficients.identity, coefficients.expression).cpu()
            coefficients = to_device(coefficients, "cpu")
            found.append(coefficients)
            turned = rotation_distance(coefficients.rotation, crops.rotation[indices]).rad2deg()
            values["landmark_nme"][indices] = landmark_error(landmarks.cpu(), crops.annotation[indices])
            values["pose_error_deg"][indices] = turned
            for name, angle in zip(
                ("yaw", "pitch", "roll"), angle_errors(coefficients.rotation, crops.rotation[indices])
            ):
                values[f"{name}_error_deg"][indices] = angle
            meshes = crops.mesh_index[indices]
            labelled = meshes >= 0
            if not bool(labelled.any()):
                continue
            meshes, places = meshes[labelled], indices[labelled]
            shape = torch.where(truth.neutral[meshes][:, None, None], shape[labelled], expressive[labelled])
            measures, moments[places] = _shape_measures(shape, truth, meshes)
            for name, found_values in measures.items():
                values[name][places] = found_values
            jobs = _scan_jobs(shape, truth, meshes)
            for place, (rigid, similar) in zip(places.tolist(), pool.map(lambda job: now_distance(*job), jobs)):
                scan[place], scaled[place] = rigid.astype(np.float32), similar.astype(np.float32)
                values["scan_error_mm"][place] = np.median(rigid)
                values["scan_error_mean_mm"][place] = rigid.mean()
                values["scan_error_scaled_mm"][place] = np.median(similar)
    rows = chosen.tolist()
    return Measured(
        values={name: of_all[rows] for name, of_all in values.items()},
        scan=tuple(scan[row] for row in rows),
        scan_scaled=tuple(scaled[row] for row in rows),
        moments=moments[chosen],
        coefficients=join_coefficients(found),
    )


def join_measured(parts: Sequence[Measured]) -> Measured:
    """What was measured of parts of a split, one after the other."""
    return Measured(
        values={name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        scan=tuple(distances for part in parts for distances in part.scan),
        scan_scaled=tuple(distances for part in parts for distances in part.scan_scaled),
        moments=torch.cat([part.moments for part in parts]),
        coefficients=join_coefficients([part.coefficients for part in parts]),
    )


def _shape_measures(shape: Tensor, truth: Truth, meshes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Errors of shape by name, and depth moments; aligned rigidly by all outer vertices, or by those of a region."""
    target, outer = truth.shape[meshes], truth.outer
    rotation, translation, _ = rigid_alignment(shape[:, outer], target[:, outer])
    aligned = transform(shape, rotation, translation)
    depths = []
    for vertices in (shape, target):
        mean = truth.mean[outer].expand(len(vertices), -1, 3)
        rotation, translation, _ = rigid_alignment(vertices[:, outer], mean)
        depths.append((transform(vertices[:, outer], rotation, translation) - mean)[..., 2])
    points = truth.landmark_vertices
    measures = {
        "vertex_error_mm": vertex_error(aligned, target, outer),
        "normal_error_deg": normal_error(vertex_normals(aligned, truth.triangles), truth.normals[meshes], outer),
        "nose_ratio": nose_protrusion(shape[:, points]) / nose_protrusion(target[:, points]),
    }
    for name, error in region_errors(shape, target, truth.regions).items():
        measures[f"{name}_error_mm"] = error
    return measures, depth_moments(*depths)


def _scan_jobs(shape: Tensor, truth: Truth, meshes: Tensor) -> list[tuple[Any, ...]]:
    """Arguments of `now_distance` for every face; the scan moves, so that distances are in its millimetres."""
    target, points = truth.shape[meshes].double().numpy(), truth.landmark_vertices.numpy()
    normals = vertex_normals(shape, truth.triangles).double().numpy()
    vertices = shape.double().numpy()
    return [
        (
            target[row][truth.scan_points[mesh]],
            target[row][points],
            vertices[row],
            normals[row],
            vertices[row][points],
            truth.topology,
        )
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


@torch.no_grad()
def person_tone_deg(model: MorphableModel, coefficients: FaceCoefficients, persons: np.ndarray) -> np.ndarray:
    """(N,): typology angle of each photo's person, the mean over that person's photos of the fitted skin's.

    Light and skin explain each other in a single photo, so that one angle alone says less.
    """
    skin = model.part("skin")
    angles = [
        typology_angle(model.albedo(part)[:, skin].mean(1).clamp(0.0, 1.0))
        for part in torch.split(coefficients.albedo, 64)
    ]
    angle = torch.cat(angles).cpu().double().numpy()
    _, places = np.unique(persons, return_inverse=True)
    return (np.bincount(places, weights=angle) / np.bincount(places))[places]


def tone_groups(tone_deg: np.ndarray) -> dict[str, np.ndarray]:
    """Photos (N,) of each group of skin tones, see `TONES`."""
    return {name: (tone_deg >= low) & (tone_deg < high) for name, (low, high) in TONES.items()}


def summarize(measured: Measured, persons: np.ndarray, chosen: np.ndarray, *, intervals: bool = True) -> dict[str, Any]:
    """Pooled numbers over the chosen photos; None where no photo has the truth that a number needs.

    Scan errors are pooled over the points of all photos, the others are means over photos. With `intervals` every
    number has its 95 % bootstrap interval over persons beside it, as `<name>_low` and `<name>_high`.
    """
    places = np.nonzero(chosen)[0]
    owners = persons[places]
    scan = [measured.scan[place] for place in places]
    scaled = [measured.scan_scaled[place] for place in places]
    known = measured.moments.isfinite().all(1).numpy() & chosen
    moments = measured.moments[torch.from_numpy(known)]
    numbers = {
        "scan_error_mm_median": _of(np.median, np.concatenate([np.zeros(0), *scan])),
        "scan_error_mm_mean": _of(np.mean, np.concatenate([np.zeros(0), *scan])),
        "scan_error_scaled_mm_median": _of(np.median, np.concatenate([np.zeros(0), *scaled])),
        **{name: _mean(measured.values[name][places]) for name in MEASURES if name not in POOLED},
        "region_error_mm": _mean(_region_mean(measured)[places]),
    }
    numbers["depth_slope"], numbers["depth_correlation"] = (
        depth_flatness(moments) if len(moments) else (math.nan, math.nan)
    )
    if intervals:
        ends = {
            "scan_error_mm_median": pooled_median_interval(scan, owners),
            "scan_error_mm_mean": bootstrap_interval(measured.values["scan_error_mean_mm"][places], owners),
            "scan_error_scaled_mm_median": pooled_median_interval(scaled, owners),
            **{name: bootstrap_interval(measured.values[name][places], owners) for name in MEASURES if name in numbers},
            "region_error_mm": bootstrap_interval(_region_mean(measured)[places], owners),
        }
        ends["depth_slope"], ends["depth_correlation"] = _flatness_intervals(moments, persons[known])
        for name, (low, high) in ends.items():
            numbers |= {f"{name}_low": low, f"{name}_high": high}
    counts = {
        "photos": len(places),
        "persons": len(set(owners.tolist())),
        "photos_with_mesh": len(moments),
    }
    rounded = {name: round(float(value), 5) if math.isfinite(value) else None for name, value in numbers.items()}
    return {**rounded, **counts}


def compare(measured: Measured, baseline: Measured, persons: np.ndarray) -> dict[str, float | None]:
    """Differences to a baseline on the same photos, with their intervals over persons: `<name>`, `_low`, `_high`."""
    found: dict[str, float | None] = {}
    for name in MEASURES:
        numbers = paired_difference(measured.values[name], baseline.values[name], persons)
        for ending, value in zip(("", "_low", "_high"), numbers, strict=True):
            found[f"{name}{ending}"] = round(value, 5) if math.isfinite(value) else None
    return found


def _flatness_intervals(moments: Tensor, owners: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intervals of slope and correlation of depth."""
    if not len(moments):
        return (math.nan, math.nan), (math.nan, math.nan)
    _, places = np.unique(owners, return_inverse=True)
    count = int(places.max()) + 1
    # Of each person the sum, and the number of photos, so that a resample is one product.
    table = np.zeros((count, moments.shape[1] + 1))
    np.add.at(table, places, np.concatenate([moments.numpy(), np.ones((len(moments), 1))], axis=1))
    drawn = resamples(count) @ table
    predicted, target, predicted_square, target_square, product = (drawn[:, :-1] / drawn[:, -1:]).T
    covariance = product - predicted * target
    spread, truth_spread = predicted_square - predicted**2, target_square - target**2
    truth_spread = np.where(truth_spread > MIN_SPREAD, truth_spread, math.nan)
    spread = np.where(spread > MIN_SPREAD, spread, math.nan)
    return percentiles(covariance / truth_spread), percentiles(covariance / np.sqrt(spread * truth_spread))


def _region_mean(measured: Measured) -> np.ndarray:
    """(N,): mean over the four regions of each photo."""
    mean: np.ndarray = np.mean([measured.values[f"{name}_error_mm"] for name in REGIONS], axis=0)
    return mean


def _of(statistic: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    return float(statistic(values)) if len(values) else math.nan


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else math.nan
