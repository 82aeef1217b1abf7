"""Stage train_detector: our landmark network learns from every annotated training photo, balanced over poses."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from models.face.dense import dense_vertices
from models.face.morphable import MorphableModel
from models.landmarks.cascade import HierarchicalDetector, detector_content
from models.landmarks.detector import PROVIDED_SIGMA
from models.landmarks.error_model import DetectorErrors, independent_errors
from models.landmarks.finder import finder_content
from models.landmarks.framing import mean_face_shape
from models.landmarks.learning import LandmarkSamples
from models.landmarks.portable import export_detector
from models.landmarks.pose_balance import BalancedPoses, imbalance, pose_table
from tasks.annotated_photos import ANNOTATED, load_annotated
from tasks.artifacts import SAMPLES, Workspace, read_table, replace_folder, save_checkpoint, write_curve, write_json
from tasks.detector_errors import measure_detector
from tasks.detector_training import balance_photos, forget_progress, train_finder, train_landmarks
from tasks.face_model import load_face_model
from tasks.fill_poses import annotation_trust, fill_poses
from tasks.params import Params
from tasks.point_conventions import annotation_offsets, as_annotated
from tasks.tracking import track

MIN_SAMPLES = 30
"""Fewer annotated photos than this teach nothing."""

FAMILIAR_FACES = 1500
"""Training photos on which is measured how errors depend on the face."""


def train_detector(params: Params, workspace: Workspace) -> None:
    """Train the landmark network and measure how it errs; writes checkpoint, noise, balance, curve and metrics.

    Where another detector is chosen, only the default noise model is written.
    Raises: ValueError if too few training photos are annotated.
    """
    if params.detect_landmarks.detector != "hierarchical":
        _skip(params, workspace)
        return
    section = params.train_detector
    table = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES)
    training = load_annotated(params, workspace, "train", size_px=section.input_size_px)
    if len(training.images) < MIN_SAMPLES:
        raise ValueError(
            f"train_detector: {len(training.images)} annotated training photos, expected at least {MIN_SAMPLES}; "
            "use detect_landmarks.detector: provided, or add a synthetic source"
        )
    validation = load_annotated(params, workspace, "validation", size_px=None)
    shape, face_model = mean_face_shape(training.points), load_face_model(params, workspace)
    photographed, offsets = training.yaw_deg, annotation_offsets(training, face_model)
    training = fill_poses(training, face_model, section, seed=params.project.seed)
    turned = np.arange(len(training.images)) >= len(photographed)
    balanced = balance_photos(training, section, seed=params.project.seed)
    samples = LandmarkSamples(
        training.images,
        training.points,
        shape,
        convention=training.convention,
        weight=annotation_trust(training, face_model) if (training.convention == ANNOTATED).any() else None,
        dense=training.dense,
        dense_mirror=None if training.dense is None else _dense_mirror(params, face_model, training.dense.shape[1]),
        outline=training.outline,
        annotated=None if offsets is None else as_annotated(training, face_model, offsets),
    )
    identity = hashlib.sha256("".join(table["sample_id"].to_pylist()).encode()).hexdigest()
    with (
        track(params, workspace, "train_detector") as run,
        replace_folder(workspace.folder("train_detector")) as folder,
    ):
        finder, finder_curve = None, list[dict[str, Any]]()
        if section.finder_steps:
            finder, finder_curve = train_finder(params, workspace, samples, identity=identity)
        averaged, result = train_landmarks(params, workspace, samples, balanced, identity=identity)
        detector = HierarchicalDetector(
            averaged.average,
            finder=finder,
            input_size_px=section.input_size_px,
            mean_shape=shape,
            min_face_score=params.detect_landmarks.min_face_score,
        )
        metrics, errors, sigma_scale = measure_detector(
            detector,
            validation.of_face_model(),
            familiar=training.of_face_model().some(FAMILIAR_FACES, seed=params.project.seed),
            mean_points=face_model.landmark_mean.numpy(),
            large_pose_deg=section.large_pose_deg,
        )
        content = detector_content(
            averaged.average,
            mean_shape=shape,
            sigma_scale=sigma_scale,
            finder=finder_content(finder) if finder else None,
        )
        save_checkpoint(folder / "checkpoint.pt", content)
        export_detector(content, folder)
        _write_errors(folder / "noise.npz", errors)
        _write_balance(folder, photographed, balanced, turned, section.yaw_bin_deg)
        curve = result.curve + [row | {"name": f"finder_{row['name']}"} for row in finder_curve]
        write_curve(folder / "curve.csv", curve)
        numbers: dict[str, Any] = {
            "training_photos": len(photographed),
            "turned_photos": int(turned.sum()),
            "balanced_rows": len(balanced.index),
            "imbalance_before": imbalance(photographed, large_pose_deg=section.large_pose_deg),
            "imbalance_after": imbalance(balanced.yaw_deg, large_pose_deg=section.large_pose_deg),
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            **metrics,
        }
        if numbers["imbalance_after"] > section.balance_tolerance:
            large = int((np.abs(balanced.yaw_deg) > section.large_pose_deg).sum())
            numbers["note"] = (
                f"{large} of {len(balanced.yaw_deg)} faces are at large poses: one kind of photos has none to copy on "
                f"one side of {section.large_pose_deg:g} degrees; add some, or raise turned_copies"
            )
        write_json(folder / "metrics.json", numbers)
        run.curve(curve)
        run.metrics({key: value for key, value in numbers.items() if isinstance(value, int | float)})
    forget_progress(workspace)


def _dense_mirror(params: Params, face_model: MorphableModel, count: int) -> np.ndarray:
    """Mirror images of the vertices that `ingest` stored the photos with."""
    _, mirror = dense_vertices(face_model, params.ingest.dense_points)
    if len(mirror) != count:
        raise ValueError(
            f"samples.parquet: {count} dense points per photo, expected {len(mirror)} as ingest.dense_points says; "
            "run ingest again"
        )
    return mirror


def _skip(params: Params, workspace: Workspace) -> None:
    kind = params.detect_landmarks.detector
    with replace_folder(workspace.folder("train_detector")) as folder:
        _write_errors(folder / "noise.npz", independent_errors(PROVIDED_SIGMA))
        write_json(folder / "metrics.json", {"skipped": 1, "note": f"detect_landmarks.detector is {kind!r}"})


def _write_errors(path: Path, errors: DetectorErrors) -> None:
    np.savez_compressed(
        path,
        covariance=errors.covariance.astype(np.float32),
        bias=errors.bias.astype(np.float32),
        response=errors.response.astype(np.float32),
        sigma=errors.sigma.astype(np.float32),
        large=errors.large,
        count=np.array(errors.count, np.int64),
    )


def _write_balance(
    folder: Path, before_deg: np.ndarray, balanced: BalancedPoses, turned: np.ndarray, bin_deg: float
) -> None:
    table = pose_table(before_deg, balanced, bin_deg=bin_deg, turned=turned)
    with (folder / "balance.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(table[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    middles = [(row.low_deg + row.high_deg) / 2 for row in table]
    axes.bar(middles, [row.after for row in table], width=0.9 * bin_deg, color="#9ecae1", label="balanced")
    axes.bar(middles, [row.before for row in table], width=0.5 * bin_deg, color="#08519c", label="as annotated")
    axes.set(xlabel="yaw in degrees", ylabel="faces")
    axes.legend(frameon=False)
    figure.savefig(folder / "balance.png", dpi=120)
