"""Stage detect_landmarks: every photo gets 68 points, confidence, box and head angles, or a reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models.landmarks.cascade import Convention
from models.landmarks.detector import Detection, LandmarkDetector, build_detector
from models.landmarks.head_pose import head_angles
from tasks.artifacts import (
    LANDMARKS,
    QUARANTINE,
    SAMPLES,
    Workspace,
    load_checkpoint,
    read_table,
    replace_folder,
    write_json,
    write_table,
)
from tasks.detector_errors import normalized_error
from tasks.face_model import load_face_model
from tasks.images import read_images
from tasks.params import Params
from tasks.source_params import detector_only
from tasks.tracking import track

Row = dict[str, Any]


@dataclass(frozen=True)
class DetectedShard:
    """What was found in the photos of one image shard."""

    shard: str
    landmarks: list[Row] = field(repr=False)
    """Rows of `LANDMARKS`."""
    quarantine: list[Row] = field(repr=False)
    """Rows of `QUARANTINE`."""
    nme: list[float] = field(repr=False)
    """Error of each photo that has an annotation, as a fraction of the face."""
    skipped: int = 0
    """Photos that teach the detector only, because they show another face model."""


def detect_landmarks(params: Params, workspace: Workspace) -> None:
    """Run the chosen detector over all shards; writes landmarks, quarantine and summary."""
    detector = open_detector(params, workspace)
    merge(params, workspace, [detect_shard(params, workspace, shard, detector) for shard in shards(workspace)])


def shards(workspace: Workspace) -> list[str]:
    """Names of the image shards that hold accepted photos, in order."""
    table = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES)
    return sorted(set(table["shard"].to_pylist()))


def open_detector(params: Params, workspace: Workspace, *, convention: Convention = "model") -> LandmarkDetector:
    """The detector that the params name, with its weights; ours gives points in the convention that is asked for.

    Raises: FileNotFoundError naming the file that is missing and the remedy.
    """
    section = params.detect_landmarks
    if section.detector == "provided":
        return build_detector("provided")
    device = "cuda" if params.project.device != "cpu" and torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"min_face_score": section.min_face_score, "device": device}
    if section.detector == "hierarchical":
        folder = workspace.folder("train_detector")
        content = load_checkpoint(folder / "checkpoint.pt")
        # In batches torch takes 4.9 ms a photo, onnxruntime 6.8; for single photos it is the other way round.
        options.update(content=content, runtime="torch", batch_size=section.batch_size, convention=convention)
    return build_detector(section.detector, **options)


def detect_shard(
    params: Params, workspace: Workspace, shard: str, detector: LandmarkDetector | None = None
) -> DetectedShard:
    """Landmarks of the photos of one shard; the flow maps it, so it opens its own detector where none is given."""
    table = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES).drop_columns(["dense", "outline"])
    stored = [row for row in table.to_pylist() if row["shard"] == shard]
    apart = {source.name for source in params.ingest.sources if detector_only(source)}
    samples = [row for row in stored if row["source"] not in apart]
    if not samples:
        return DetectedShard(shard, [], [], [], skipped=len(stored))
    detector = detector or open_detector(params, workspace)
    provided = params.detect_landmarks.detector == "provided"
    found: list[tuple[Row, Detection]] = []
    quarantine: list[Row] = []
    pixels = read_images(workspace, [row["sample_id"] for row in samples])
    annotations = [_points(row["landmarks"]) for row in samples]
    detections = detector.detect([pixels[row["sample_id"]] for row in samples], annotations=annotations)
    for row, detection in zip(samples, detections, strict=True):
        if detection is None or not np.isfinite(detection.landmarks).all():
            quarantine.append(_refused(row, provided=provided, threshold=params.detect_landmarks.min_face_score))
        else:
            found.append((row, detection))
    angles = _angles(params, workspace, [detection for _, detection in found])
    rows = [_row(row["sample_id"], detection, angle) for (row, detection), angle in zip(found, angles, strict=True)]
    nme = [
        float(normalized_error(detection.landmarks[None], points[None])[0])
        for row, detection in found
        if (points := _points(row["landmarks"])) is not None
    ]
    return DetectedShard(shard, rows, quarantine, nme, skipped=len(stored) - len(samples))


def merge(params: Params, workspace: Workspace, parts: Sequence[DetectedShard]) -> None:
    """Write what all shards found as the output of the stage."""
    ordered = sorted(parts, key=lambda part: part.shard)
    rows = [row for part in ordered for row in part.landmarks]
    quarantine = [row for part in ordered for row in part.quarantine]
    nme = [error for part in ordered for error in part.nme]
    skipped = sum(part.skipped for part in ordered)
    summary: dict[str, Any] = {
        "photos": len(rows) + len(quarantine) + skipped,
        "found": len(rows),
        "quarantined": len(quarantine),
        "skipped": skipped,
        "mean_confidence": float(np.mean([np.mean(row["confidence"]) for row in rows])) if rows else None,
        "annotated": len(nme),
        "mean_nme": float(np.mean(nme)) if nme else None,
        "median_nme": float(np.median(nme)) if nme else None,
        "detector": params.detect_landmarks.detector,
    }
    with (
        track(params, workspace, "detect_landmarks") as run,
        replace_folder(workspace.folder("detect_landmarks")) as folder,
    ):
        write_table(folder / "landmarks.parquet", rows, LANDMARKS)
        write_table(folder / "quarantine.parquet", quarantine, QUARANTINE)
        write_json(folder / "summary.json", summary)
        run.metrics({key: value for key, value in summary.items() if isinstance(value, int | float)})


def _angles(params: Params, workspace: Workspace, detections: Sequence[Detection]) -> np.ndarray:
    if not detections:
        return np.zeros((0, 3))
    model = load_face_model(params, workspace)
    angles = head_angles(
        torch.from_numpy(np.array([one.landmarks for one in detections])),
        confidence=torch.from_numpy(np.array([one.confidence for one in detections])),
        mean_points=model.landmark_mean,
    )
    return np.asarray(angles.numpy())


def _points(flat: list[float] | None) -> np.ndarray | None:
    return None if flat is None else np.array(flat, np.float32).reshape(68, 2)


def _row(sample_id: str, detection: Detection, angles: np.ndarray) -> Row:
    return {
        "sample_id": sample_id,
        "landmarks": detection.landmarks.astype(np.float32).ravel().tolist(),
        "confidence": detection.confidence.astype(np.float32).tolist(),
        "box": detection.box.astype(np.float32).tolist(),
        "face_score": float(detection.face_score),
        "yaw_deg": float(angles[0]),
        "pitch_deg": float(angles[1]),
        "roll_deg": float(angles[2]),
        "dense": _flat(detection.dense),
        "dense_confidence": _flat(detection.dense_confidence),
    }


def _flat(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else np.asarray(values, np.float32).ravel().tolist()


def _refused(row: Row, *, provided: bool, threshold: float) -> Row:
    reason = "no_annotation" if provided else "no_face"
    detail = "no landmarks came with the photo" if provided else f"no face scores {threshold:g} or more"
    return {
        "source": row["source"],
        "path": row["path"],
        "sample_id": row["sample_id"],
        "reason": reason,
        "detail": detail,
    }
