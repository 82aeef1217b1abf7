"""Detectors by the names that the benchmark takes: those of the pipeline, or a path to weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.landmarks.detector import Detection, LandmarkDetector, ProvidedDetector, build_detector, detect_faces
from tasks.artifacts import load_checkpoint

CHECKPOINT, EXPORTED = "checkpoint.pt", "landmarks.onnx"


def open_detector(
    name: str,
    *,
    workspace: Path,
    weights: Path | None = None,
    runtime: str = "auto",
    convention: str = "annotated",
    boxes: str = "auto",
    min_face_score: float = 0.5,
    device: str = "cpu",
    threads: int = 2,
) -> LandmarkDetector:
    """The detector of that name; `boxes` as in `HierarchicalDetector`, or `truth` for photos cut around the face.

    `runtime`: auto runs exported files where there are some, torch only checkpoints, onnx only exported files.
    Raises: FileNotFoundError or ValueError in one line.
    """
    if name in ("provided", "face_alignment"):
        if weights is not None:
            raise ValueError(f"--weights: detector {name} takes none; use --detector hierarchical")
        return build_detector(name) if name == "provided" else build_detector(name, min_face_score=min_face_score)
    if name == "hierarchical":
        place = weights or workspace / "artifacts" / "train_detector"
    elif weights is None and Path(name).exists():
        place = Path(name)
    else:
        raise ValueError(
            f"--detector {name}: expected hierarchical, face_alignment, provided, or a path to a checkpoint or a folder"
        )
    options: dict[str, Any] = {
        "convention": convention,
        "min_face_score": min_face_score,
        # Where photos are cut around the face, the whole photo is its box.
        "boxes": "windows" if boxes == "truth" else boxes,
    }
    exported, checkpoint = _weight_files(place)
    if runtime == "onnx" or (runtime == "auto" and exported is not None and device == "cpu"):
        if exported is None:
            raise FileNotFoundError(f"{place}: no {EXPORTED}; run train_detector again or use --runtime torch")
        from models.landmarks.portable import load_portable

        return load_portable(exported, threads=threads, **options)
    if checkpoint is None:
        raise FileNotFoundError(f"{place}: no {CHECKPOINT}; run the stage train_detector first or give --weights")
    return build_detector(
        "hierarchical", content=load_checkpoint(checkpoint), runtime="torch", device=device, **options
    )


def find_faces(
    detector: LandmarkDetector,
    images: Sequence[np.ndarray],
    *,
    annotations: Sequence[np.ndarray],
    one_each: bool = False,
) -> list[list[Detection]]:
    """Every face of each photo, or the best one alone. Only the detector `provided` reads the annotations."""
    if not one_each and not isinstance(detector, ProvidedDetector):
        return detect_faces(detector, images)
    found = detector.detect(images, annotations=list(annotations))
    return [[] if one is None else [one] for one in found]


def _weight_files(place: Path) -> tuple[Path | None, Path | None]:
    """What can be run by onnxruntime and by torch: a folder of exported files (or one file), and a checkpoint."""
    if not place.exists():
        raise FileNotFoundError(f"{place}: missing; run the stage train_detector first or give --weights")
    if place.is_file():
        return (place, None) if place.suffix == ".onnx" else (None, place)
    exported, checkpoint = place / EXPORTED, place / CHECKPOINT
    return place if exported.is_file() else None, checkpoint if checkpoint.is_file() else None
