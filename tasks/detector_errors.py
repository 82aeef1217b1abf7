"""How the trained detector errs on photos that it was not trained on: numbers, and the model of its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.landmarks.cascade import HierarchicalDetector
from models.landmarks.detector import PROVIDED_SIGMA, Detection, sigma_from_confidence
from models.landmarks.error_model import (
    DetectorErrors,
    FoundFaces,
    independent_errors,
    individual_deviation,
    measure_errors,
)
from models.landmarks.framing import box_side
from tasks.annotated_photos import AnnotatedPhotos

MISSED_NME = 0.1
"""A face whose mean error exceeds this fraction of its size counts as missed."""


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
    dense_nme = dense_error(detections, photos.take(np.array(hits)))
    if dense_nme is not None:
        numbers["validation_dense_nme"] = dense_nme
    outline_nme = outline_error(detections, photos.take(np.array(hits)))
    if outline_nme is not None:
        numbers["validation_outline_nme"] = outline_nme
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
        sigma=sigma_from_confidence(np.array([one.confidence for one in detections])),
        yaw_deg=photos.yaw_deg[hits],
    )


def dense_error(detections: Sequence[Detection], photos: AnnotatedPhotos) -> float | None:
    """Mean distance of the dense points of those photos whose are known, divided as those of the landmarks are.

    None where none are known, or the detector finds none.
    """
    return _further_error([one.dense for one in detections], photos.dense, photos.points)


def outline_error(detections: Sequence[Detection], photos: AnnotatedPhotos) -> float | None:
    """The same of the jaw where people put it."""
    return _further_error([one.outline for one in detections], photos.outline, photos.points)


def _further_error(
    found: Sequence[np.ndarray | None], annotated: np.ndarray | None, landmarks: np.ndarray
) -> float | None:
    if annotated is None or any(one is None for one in found):
        return None
    rows = np.flatnonzero(np.isfinite(annotated).all((1, 2)))
    if not len(rows):
        return None
    known = np.array([found[row] for row in rows.tolist()])
    return float(normalized_error(known, annotated[rows], box_of=landmarks[rows]).mean())


def normalized_error(detected: np.ndarray, annotated: np.ndarray, *, box_of: np.ndarray | None = None) -> np.ndarray:
    """Mean distance of each face's points as a fraction of the square root of its annotated box's area.

    `box_of`: points (N, 68, 2) whose box it is; default the annotated ones themselves.
    """
    size = np.sqrt(np.ptp(annotated if box_of is None else box_of, axis=1).prod(1))
    return np.asarray(np.linalg.norm(detected - annotated, axis=2).mean(1) / np.maximum(size, 1e-6))
