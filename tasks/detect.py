"""Stage detect_landmarks: every photo gets 68 points, confidence, box and head angles, or a reason why not."""

from __future__ import annotations

import hashlib
import importlib.metadata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from models import landmarks
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
from tasks.face_model import shared_face_model
from tasks.fan_out import Spread, serial
from tasks.images import read_shard
from tasks.kept_detections import DETECTED, KeptDetections, part_name, read_part, write_part
from tasks.params import Params
from tasks.source_params import detector_only
from tasks.tracking import track

Row = dict[str, Any]

PHOTOS_AT_ONCE = 128
"""So many are in memory; a shard of large ones would be a gigabyte."""


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


@dataclass(frozen=True)
class ShardPiece:
    """A shard to be looked at, in any process."""

    params: Params
    workspace: Workspace
    shard: str
    kept: Path
    """Folder of the parts."""
    known: dict[str, list[str]]
    """Photos whose detections lie in other parts, by part."""


def detect_landmarks(params: Params, workspace: Workspace, *, spread: Spread = serial) -> None:
    """Run the chosen detector over all shards; writes landmarks, quarantine and summary.

    Photos that this detector has seen before are not looked at again.
    """
    if params.detect_landmarks.detector == "provided":
        merge(params, workspace, (detect_shard(params, workspace, shard) for shard in shards(workspace)))
        return
    # A detector that cannot be opened is told before anything is done.
    open_detector(params, workspace)
    kept = KeptDetections(workspace, _fingerprint(params, workspace))

    def pieces() -> Iterator[ShardPiece]:
        for shard in shards(workspace):
            ids = [row["sample_id"] for row in _samples(params, workspace, shard, columns=("sample_id",))[0]]
            yield ShardPiece(params, workspace, shard, kept.folder, kept.known(ids))

    merge(params, workspace, (_found(params, workspace, *part) for part in spread(detect_piece, pieces())))
    kept.close()


def shards(workspace: Workspace) -> list[str]:
    """Names of the image shards that hold accepted photos, in order."""
    table = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES, columns=["shard"])
    return sorted(pc.unique(table["shard"]).to_pylist())


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
    """Landmarks of the photos of one shard, nothing kept; opens its own detector where none is given."""
    samples, skipped = _samples(params, workspace, shard)
    if not samples:
        return DetectedShard(shard, [], [], [], skipped=skipped)
    rows = _detect(params, workspace, shard, samples, detector or open_detector(params, workspace))
    return _sorted(params, shard, samples, rows, skipped=skipped)


def detect_piece(piece: ShardPiece) -> tuple[str, Path]:
    """Look at the photos of a shard that no part has; gives the shard and the part with all of its photos."""
    samples, _ = _samples(piece.params, piece.workspace, piece.shard)
    path = piece.kept / part_name([row["sample_id"] for row in samples])
    if path.exists() or not samples:
        return piece.shard, path
    rows: dict[str, Row] = {}
    for part, ids in piece.known.items():
        rows |= read_part(piece.kept / part, ids)
    missing = [row for row in samples if row["sample_id"] not in rows]
    if missing:
        detector = _shared_detector(piece.params.model_dump_json(), piece.workspace, piece.kept)
        rows |= _detect(piece.params, piece.workspace, piece.shard, missing, detector)
    write_part(path, [rows[row["sample_id"]] for row in samples])
    return piece.shard, path


@lru_cache(maxsize=1)
def _shared_detector(params: str, workspace: Workspace, kept: Path) -> LandmarkDetector:  # noqa: ARG001
    # The folder's name stands for the weights.
    return open_detector(Params.model_validate_json(params), workspace)


def _found(params: Params, workspace: Workspace, shard: str, part: Path) -> DetectedShard:
    samples, skipped = _samples(params, workspace, shard)
    rows = read_part(part) if samples else {}
    return _sorted(params, shard, samples, rows, skipped=skipped)


def _samples(
    params: Params, workspace: Workspace, shard: str, *, columns: Sequence[str] = ("sample_id", "path", "landmarks")
) -> tuple[list[Row], int]:
    """Rows of a shard's photos, and how many more there are that teach the detector only."""
    path = workspace.folder("ingest") / "samples.parquet"
    table = read_table(path, SAMPLES, columns=[*columns, "source"], where=[("shard", "=", shard)])
    apart = {source.name for source in params.ingest.sources if detector_only(source)}
    rows = [row for row in table.to_pylist() if row["source"] not in apart]
    return rows, len(table) - len(rows)


def _detect(
    params: Params, workspace: Workspace, shard: str, samples: Sequence[Row], detector: LandmarkDetector
) -> dict[str, Row]:
    """Rows of `DETECTED` by sample id."""
    found: list[tuple[str, Detection]] = []
    rows: dict[str, Row] = {}
    for pixels in read_shard(workspace, shard, [row["sample_id"] for row in samples], at_once=PHOTOS_AT_ONCE):
        some = [row for row in samples if row["sample_id"] in pixels]
        detections = detector.detect(
            [pixels[row["sample_id"]] for row in some], annotations=[_points(row["landmarks"]) for row in some]
        )
        for row, detection in zip(some, detections, strict=True):
            if detection is None or not np.isfinite(detection.landmarks).all():
                rows[row["sample_id"]] = dict.fromkeys(DETECTED.names) | {"sample_id": row["sample_id"], "found": False}
            else:
                found.append((row["sample_id"], detection))
    angles = _angles(params, workspace, [detection for _, detection in found])
    for (sample_id, detection), angle in zip(found, angles, strict=True):
        rows[sample_id] = _row(sample_id, detection, angle) | {"found": True}
    return rows


def _sorted(
    params: Params, shard: str, samples: Sequence[Row], rows: Mapping[str, Row], *, skipped: int
) -> DetectedShard:
    provided = params.detect_landmarks.detector == "provided"
    rows_found, quarantine, nme = [], [], []
    for sample in samples:
        row = dict(rows[sample["sample_id"]])
        if not row.pop("found"):
            quarantine.append(_refused(sample, provided=provided, threshold=params.detect_landmarks.min_face_score))
            continue
        rows_found.append(row)
        points = _points(sample["landmarks"])
        if points is not None:
            detected = np.array(row["landmarks"], np.float32).reshape(1, 68, 2)
            nme.append(float(normalized_error(detected, points[None])[0]))
    return DetectedShard(shard, rows_found, quarantine, nme, skipped=skipped)


def merge(params: Params, workspace: Workspace, parts: Iterable[DetectedShard]) -> None:
    """Write what all shards found as the output of the stage; those that come one by one come in order."""
    if isinstance(parts, Sequence):
        parts = sorted(parts, key=lambda part: part.shard)
    quarantine: list[Row] = []
    nme, confidence = array("d"), array("d")
    skipped = 0
    with (
        track(params, workspace, "detect_landmarks") as run,
        replace_folder(workspace.folder("detect_landmarks")) as folder,
    ):
        with pq.ParquetWriter(folder / "landmarks.parquet", LANDMARKS, compression="zstd") as writer:
            for part in parts:
                writer.write_table(pa.Table.from_pylist(part.landmarks, schema=LANDMARKS))
                confidence.extend(float(np.mean(row["confidence"])) for row in part.landmarks)
                nme.extend(part.nme)
                quarantine += part.quarantine
                skipped += part.skipped
        write_table(folder / "quarantine.parquet", quarantine, QUARANTINE)
        summary: dict[str, Any] = {
            "photos": len(confidence) + len(quarantine) + skipped,
            "found": len(confidence),
            "quarantined": len(quarantine),
            "skipped": skipped,
            "mean_confidence": float(np.mean(confidence)) if confidence else None,
            "annotated": len(nme),
            "mean_nme": float(np.mean(nme)) if nme else None,
            "median_nme": float(np.median(nme)) if nme else None,
            "detector": params.detect_landmarks.detector,
        }
        write_json(folder / "summary.json", summary)
        run.metrics({key: value for key, value in summary.items() if isinstance(value, int | float)})


def _fingerprint(params: Params, workspace: Workspace) -> str:
    """What a detection follows from beside its photo: the detector's weights and settings, the face model, the code."""
    digest = hashlib.sha256(params.detect_landmarks.model_dump_json().encode())
    digest.update(shared_face_model(params.face_model, workspace).content_hash().encode())
    if params.detect_landmarks.detector == "hierarchical":
        digest.update((workspace.folder("train_detector") / "checkpoint.pt").read_bytes())
    libraries = [importlib.metadata.version(name) for name in ("torch", "opencv-python", "numpy")]
    digest.update(repr((libraries, torch.cuda.is_available() and params.project.device != "cpu")).encode())
    for path in (*sorted(Path(landmarks.__file__).parent.glob("*.py")), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _angles(params: Params, workspace: Workspace, detections: Sequence[Detection]) -> np.ndarray:
    if not detections:
        return np.zeros((0, 3))
    # Building one takes a second, and a shard with few new photos is looked at in less.
    model = shared_face_model(params.face_model, workspace)
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
