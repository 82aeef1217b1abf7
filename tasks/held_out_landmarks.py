"""The detector on the annotated photos of the test split: numbers, the worst faces, are its doubts right."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.landmarks.accuracy import (
    MeasuredFaces,
    accuracy_by_yaw,
    calibration_error,
    measure_accuracy,
    reliability_curve,
)
from models.landmarks.cascade import Convention
from tasks.annotated_photos import ANNOTATED, AnnotatedPhotos, load_annotated
from tasks.artifacts import Workspace, without_nan
from tasks.detect import open_detector
from tasks.landmark_pictures import write_curves, write_sheet
from tasks.params import Params
from tasks.source_params import detector_only

BATCH = 64


@dataclass(frozen=True)
class HeldOutLandmarks:
    """What the detector made of photos that no training has seen."""

    convention: Convention
    """`annotated` where photos came with points, else `model`: rendered photos."""
    photos: AnnotatedPhotos
    faces: MeasuredFaces

    def numbers(self, edges_deg: tuple[float, ...]) -> dict[str, Any]:
        """Errors and rates as fractions, also by |yaw|; what cannot be said is None."""
        by_yaw = {
            f"{low:g}-{high:g}": asdict(accuracy) for low, high, accuracy in accuracy_by_yaw(self.faces, edges_deg)
        }
        calibration = calibration_error(reliability_curve(self.faces))
        numbers = {**asdict(measure_accuracy(self.faces)), "calibration_error": calibration}
        measured: dict[str, Any] = without_nan(
            {
                "convention": self.convention,
                **numbers,
                "by_yaw": {name: values for name, values in by_yaw.items() if values["count"]},
            }
        )
        return measured

    def write_pictures(self, folder: Path) -> None:
        """`landmarks_worst.png` and `landmarks_accuracy.png`."""
        names = [f"photo {row}" for row in range(len(self.photos.images))]
        write_sheet(folder / "landmarks_worst.png", self.faces, names, lambda row: self.photos.images[row])
        write_curves(folder / "landmarks_accuracy.png", self.faces, reliability_curve(self.faces))


def measure_held_out(params: Params, workspace: Workspace) -> HeldOutLandmarks | None:
    """Measure the detector on annotated photos, or on rendered ones where there are none; None if nothing is annotated.

    A detector that hands on annotations has nothing to be measured.
    """
    if params.detect_landmarks.detector == "provided":
        return None
    apart = {source.name for source in params.ingest.sources if detector_only(source)}
    photos = load_annotated(params, workspace, "test", size_px=None, without=apart)
    real = np.flatnonzero(photos.convention == ANNOTATED)
    convention: Convention = "annotated" if len(real) else "model"
    photos = photos.take(real) if len(real) else photos.of_face_model()
    if not photos.images:
        return None
    detector = open_detector(params, workspace, convention=convention)
    found = np.full((len(photos.images), 68, 2), np.nan)
    confidence = np.full((len(photos.images), 68), np.nan)
    for start in range(0, len(photos.images), BATCH):
        for row, detection in enumerate(detector.detect(photos.images[start : start + BATCH]), start):
            if detection is not None:
                found[row], confidence[row] = detection.landmarks, detection.confidence
    return HeldOutLandmarks(
        convention,
        photos,
        MeasuredFaces(photos.points.astype(np.float64), found, confidence, photos.yaw_deg.astype(np.float64)),
    )
