"""Stage train_detector: our landmark network learns from every annotated training photo, balanced over poses."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from models.face.camera import angles_from_rotation
from models.landmarks.cascade import HierarchicalDetector, detector_content
from models.landmarks.detector import CONFIDENCE_SIGMA, PROVIDED_SIGMA, Detection
from models.landmarks.error_model import (
    DetectorErrors,
    FoundFaces,
    independent_errors,
    individual_deviation,
    measure_errors,
)
from models.landmarks.framing import box_side, landmark_box, mean_face_shape
from models.landmarks.head_pose import head_angles
from models.landmarks.hierarchical import HierarchicalNetwork
from models.landmarks.learning import (
    AveragedNetwork,
    LandmarkObjective,
    LandmarkSamples,
    ObjectiveSettings,
    coordinate_modes,
)
from models.landmarks.pose_balance import BalancedPoses, balance_poses, imbalance, pose_table
from models.training.loop import LoopResult, LoopSettings, build_fabric, train
from tasks.artifacts import SAMPLES, Workspace, read_table, replace_folder, save_checkpoint, write_json
from tasks.face_model import load_face_model
from tasks.images import read_images
from tasks.params import Params
from tasks.tracking import track
from tasks.train import write_curve

MIN_SAMPLES = 30
"""Fewer annotated photos than this teach nothing."""

NEIGHBOURHOOD = 3.6
"""Side of what is kept around a face relative to its box; the widest training crop reaches this far."""

FAMILIAR_FACES = 1500
"""Training photos on which is measured how errors depend on the face."""

MISSED_NME = 0.1
"""A face whose mean error exceeds this fraction of its size counts as missed."""


@dataclass(frozen=True)
class AnnotatedPhotos:
    """Photos of one split with their points, in memory."""

    images: list[np.ndarray]
    points: np.ndarray
    yaw_deg: np.ndarray

    def some(self, count: int, *, seed: int) -> AnnotatedPhotos:
        """At most so many of them, drawn at random."""
        rows = np.random.default_rng(seed).permutation(len(self.images))[:count]
        return AnnotatedPhotos([self.images[row] for row in rows], self.points[rows], self.yaw_deg[rows])


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
    torch.manual_seed(params.project.seed)
    shape, face_model = mean_face_shape(training.points), load_face_model(params, workspace)
    balanced = balance_poses(
        training.yaw_deg,
        large_pose_deg=section.large_pose_deg,
        bin_deg=section.yaw_bin_deg,
        generator=np.random.default_rng(params.project.seed),
    )
    modes = coordinate_modes(
        LandmarkSamples(training.images, training.points, shape),
        size_px=section.input_size_px,
        generator=np.random.default_rng(params.project.seed),
    )
    network = HierarchicalNetwork(section.input_size_px, modes=modes)
    identity = hashlib.sha256("".join(table["sample_id"].to_pylist()).encode()).hexdigest()
    with (
        track(params, workspace, "train_detector") as run,
        replace_folder(workspace.folder("train_detector")) as folder,
    ):
        averaged, result = _fit(params, workspace, network, training, balanced, shape, identity)
        detector = HierarchicalDetector(
            averaged.average,
            input_size_px=section.input_size_px,
            mean_shape=shape,
            min_face_score=params.detect_landmarks.min_face_score,
        )
        metrics, errors, sigma_scale = measure_detector(
            detector,
            validation,
            familiar=training.some(FAMILIAR_FACES, seed=params.project.seed),
            mean_points=face_model.landmark_mean.numpy(),
            large_pose_deg=section.large_pose_deg,
        )
        content = detector_content(averaged.average, mean_shape=shape, sigma_scale=sigma_scale)
        save_checkpoint(folder / "checkpoint.pt", content)
        _write_errors(folder / "noise.npz", errors)
        _write_balance(folder, training.yaw_deg, balanced, section.yaw_bin_deg)
        write_curve(folder / "curve.csv", result.curve)
        numbers: dict[str, Any] = {
            "training_photos": len(training.images),
            "balanced_rows": len(balanced.index),
            "imbalance_before": imbalance(training.yaw_deg, large_pose_deg=section.large_pose_deg),
            "imbalance_after": imbalance(balanced.yaw_deg, large_pose_deg=section.large_pose_deg),
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            **metrics,
        }
        if numbers["imbalance_after"] > section.balance_tolerance:
            numbers["note"] = "no annotated photo on one side of large_pose_deg, so the poses could not be balanced"
        write_json(folder / "metrics.json", numbers)
        run.curve(result.curve)
        run.metrics({key: value for key, value in numbers.items() if isinstance(value, int | float)})


def _fit(
    params: Params,
    workspace: Workspace,
    network: HierarchicalNetwork,
    training: AnnotatedPhotos,
    balanced: BalancedPoses,
    shape: np.ndarray,
    identity: str,
) -> tuple[AveragedNetwork, LoopResult]:
    section = params.train_detector
    averaged = AveragedNetwork(network)
    averaged.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = LandmarkObjective(
        LandmarkSamples(training.images, training.points, shape),
        np.stack([balanced.index, balanced.flipped], 1).astype(np.int64),
        settings=ObjectiveSettings(
            batch_size=section.batch_size,
            wing_width_px=section.wing_width_px,
            wing_curvature_px=section.wing_curvature_px,
            augmented_weight=section.augmented_weight,
            consistency_weight=section.consistency_weight,
        ),
        size_px=section.input_size_px,
    )
    steps = max(1, round(section.epochs * len(training.images) / section.batch_size))

    def validate(_: nn.Module) -> dict[str, float]:
        # The schedule ends at the best weights; a choice among earlier ones would fit the validation photos.
        return {"score": -float(averaged.steps_taken())}

    result = train(
        build_fabric(device=params.project.device, precision=params.project.precision),
        averaged,
        settings=LoopSettings(
            steps=steps,
            learning_rate=section.learning_rate,
            warmup_steps=min(50, steps // 10),
            weight_decay=section.weight_decay,
            clip_norm=section.clip_norm,
            validate_every=max(1, steps // 8),
            patience=1000,
            seed=params.project.seed,
            optimizer="muon",
        ),
        loss=objective,
        validate=validate,
        progress_folder=workspace.progress("train_detector"),
        fingerprint=hashlib.sha256(repr((params.project, section, identity)).encode()).hexdigest(),
        name="train_detector",
    )
    averaged.eval()
    return averaged, result


def load_annotated(params: Params, workspace: Workspace, split: str, *, size_px: int | None) -> AnnotatedPhotos:
    """Photos of a split that have landmarks, with their yaw: true where the rotation is known, else fitted.

    `size_px`: keep only the neighbourhood of each face, reduced so that its box is no larger than this.
    """
    rows = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES).to_pylist()
    rows = [row for row in rows if row["split"] == split and row["landmarks"] is not None]
    points = np.array([row["landmarks"] for row in rows], np.float32).reshape(-1, 68, 2)
    pixels = read_images(workspace, [row["sample_id"] for row in rows])
    images = [pixels.pop(row["sample_id"]) for row in rows]
    yaw = np.full(len(rows), np.nan)
    known = np.array([row["rotation"] is not None for row in rows], bool)
    if known.any():
        rotation = torch.tensor([row["rotation"] for row in rows if row["rotation"] is not None])
        yaw[known] = torch.rad2deg(angles_from_rotation(rotation)[:, 0]).numpy()
    if not known.all():
        model = load_face_model(params, workspace)
        annotated = torch.from_numpy(points[~known])
        angles = head_angles(annotated, confidence=torch.ones(annotated.shape[:2]), mean_points=model.landmark_mean)
        yaw[~known] = angles[:, 0].numpy()
    if size_px is not None:
        reduced = [neighbourhood(image, face, size_px=size_px) for image, face in zip(images, points, strict=True)]
        images = [image for image, _ in reduced]
        points = np.array([face for _, face in reduced], np.float32).reshape(-1, 68, 2)
    return AnnotatedPhotos(images, points, yaw)


def neighbourhood(image: np.ndarray, points: np.ndarray, *, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of a photo that training crops can reach, reduced so that the face's box is at most `size_px` large."""
    face = float(box_side(points[None])[0])
    box = landmark_box(points[None])[0]
    centre, reach = (box[:2] + box[2:]) / 2.0, face * NEIGHBOURHOOD / 2.0
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach), image.shape[1::-1]).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    factor = min(1.0, size_px / face)
    if factor == 1.0:
        return np.ascontiguousarray(part), points - low
    size = np.maximum(1, np.rint(np.array(part.shape[1::-1]) * factor)).astype(int)
    scale = size / np.array(part.shape[1::-1])
    return cv2.resize(part, size.tolist(), interpolation=cv2.INTER_AREA), (points - low) * scale


def measure_detector(
    detector: HierarchicalDetector,
    photos: AnnotatedPhotos,
    *,
    familiar: AnnotatedPhotos,
    mean_points: np.ndarray,
    large_pose_deg: float,
) -> tuple[dict[str, float | int], DetectorErrors, float]:
    """Errors on photos that training did not see: numbers, the error model, and the factor that corrects σ.

    `familiar` photos, which training saw, tell only how errors depend on the face.
    """
    hits, detections = _detect(detector, photos)
    default = independent_errors(2 * PROVIDED_SIGMA)
    if not hits:
        return {"validation_photos": len(photos.images), "validation_found": 0}, default, 1.0
    faces = _found_faces(detections, photos, hits, mean_points)
    nme = normalized_error(np.array([one.landmarks for one in detections]), photos.points[hits])
    large = np.abs(faces.yaw_deg) > large_pose_deg
    kept = nme < MISSED_NME
    # A scale makes the predicted errors agree with those made on unseen persons; missed faces are no measure of it.
    scale = float(np.sqrt(np.mean(faces.errors[kept] ** 2) / np.mean(faces.sigma[kept] ** 2))) if kept.any() else 1.0
    numbers: dict[str, float | int] = {
        "validation_photos": len(photos.images),
        "validation_found": len(hits),
        "validation_nme": float(nme.mean()),
        "validation_nme_median": float(np.median(nme)),
        "validation_missed": float((nme >= MISSED_NME).mean()),
        "sigma_scale": scale,
    }
    for name, rows in (("small", ~large), ("large", large)):
        if rows.any():
            numbers[f"validation_nme_{name}"] = float(nme[rows].mean())
    scale = float(np.clip(scale, 0.25, 4.0))
    known_hits, known = _detect(detector, familiar)
    seen = _found_faces(known, familiar, known_hits, mean_points) if known else None
    model = measure_errors(
        replace(faces, sigma=scale * faces.sigma),
        seen_in_training=replace(seen, sigma=scale * seen.sigma) if seen else None,
        large_pose_deg=large_pose_deg,
        default_sigma=2 * PROVIDED_SIGMA,
    )
    return numbers, model, scale


def _detect(detector: HierarchicalDetector, photos: AnnotatedPhotos) -> tuple[list[int], list[Detection]]:
    found = detector.detect(photos.images)
    hits = [row for row, detection in enumerate(found) if detection is not None]
    return hits, [found[row] for row in hits]  # type: ignore[misc]


def _found_faces(
    detections: list[Detection],
    photos: AnnotatedPhotos,
    hits: list[int],
    mean_points: np.ndarray,
) -> FoundFaces:
    annotated = photos.points[hits]
    side = box_side(annotated)[:, None, None]
    return FoundFaces(
        errors=(np.array([one.landmarks for one in detections]) - annotated) / side,
        deviation=individual_deviation(annotated, mean_points) / side,
        sigma=expected_errors(detections),
        yaw_deg=photos.yaw_deg[hits],
    )


def expected_errors(detections: list[Detection]) -> np.ndarray:
    """What the detector expected of each point, (N, 68) larger sides of the points' boxes."""
    return CONFIDENCE_SIGMA * np.sqrt(1.0 / np.array([one.confidence for one in detections]) - 1.0)


def normalized_error(detected: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """Mean distance of each face's points as a fraction of the square root of its annotated box's area."""
    size = np.sqrt(np.ptp(annotated, axis=1).prod(1))
    return np.asarray(np.linalg.norm(detected - annotated, axis=2).mean(1) / np.maximum(size, 1e-6))


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


def _write_balance(folder: Path, before_deg: np.ndarray, balanced: BalancedPoses, bin_deg: float) -> None:
    table = pose_table(before_deg, balanced, bin_deg=bin_deg)
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
