"""What a landmark detector is, what it finds, and the detectors that can be had by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from models.landmarks.framing import landmark_box
from models.types import LANDMARK_COUNT

CONFIDENCE_SIGMA = 0.02
"""Expected error, as a fraction of the face, at which the confidence is one half."""

PROVIDED_SIGMA = 0.01
"""Expected error of a given annotation, as a fraction of the face."""

Annotations = Sequence[Float[np.ndarray, "68 2"] | None]


@dataclass(frozen=True)
class Detection:
    """A face of one photo."""

    landmarks: Float[np.ndarray, "68 2"]
    """Pixels of the photo, pixel centres at +0.5."""
    confidence: Float[np.ndarray, "68"]
    """In (0, 1), see `confidence_from_sigma`."""
    box: Float[np.ndarray, "4"]
    """x0, y0, x1, y1 around the points."""
    face_score: float
    """Probability that this is a face."""
    dense: Float[np.ndarray, "D 2"] | None = None
    """Further vertices of the face model, pixels of the photo; None from a detector that knows none."""
    dense_confidence: Float[np.ndarray, "D"] | None = None
    outline: Float[np.ndarray, "17 2"] | None = None
    """The jaw where people put it, on the visible outline, pixels of the photo; None where it is not known."""


@runtime_checkable
class LandmarkDetector(Protocol):
    """Finds the 68 points of the best face in each photo."""

    def detect(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, annotations: Annotations | None = None
    ) -> list[Detection | None]:
        """One entry per RGB photo, None where no face was found; only `provided` reads the annotations."""
        ...


@runtime_checkable
class ManyFacesDetector(Protocol):
    """Finds the 68 points of every face in each photo."""

    def detect_all(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[list[Detection]]:
        """The faces of each RGB photo, largest first; an empty list where there is none."""
        ...


def detect_faces(detector: LandmarkDetector, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[list[Detection]]:
    """The faces of each photo, largest first; only the best one from a detector that does not look for more."""
    if isinstance(detector, ManyFacesDetector):
        return detector.detect_all(images)
    return [[] if found is None else [found] for found in detector.detect(images)]


def confidence_from_sigma(sigma: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """Confidence of a point whose error per coordinate is `sigma` of the larger side of the landmarks' box.

    Convention: 1 / (1 + (sigma / 0.02)²), so 1 % of the face gives 0.8, 2 % one half, 6 % a tenth.
    """
    return 1.0 / (1.0 + (sigma / CONFIDENCE_SIGMA) ** 2)


def sigma_from_confidence(confidence: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """Expected error per coordinate, in larger sides of the points' box; the inverse of `confidence_from_sigma`."""
    return CONFIDENCE_SIGMA * np.sqrt(np.maximum(1.0 / confidence - 1.0, 0.0))


class ProvidedDetector:
    """Hands on the annotations that came with the photos."""

    def detect(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, annotations: Annotations | None = None
    ) -> list[Detection | None]:
        """The annotations as detections of confidence 0.8; None where a photo has none.

        Raises: ValueError if annotations are not given for every photo.
        """
        if annotations is None or len(annotations) != len(images):
            found = "none" if annotations is None else str(len(annotations))
            raise ValueError(
                f"detector provided: {found} annotations for {len(images)} photos, expected one (or None) each"
            )
        return [None if points is None else self._detection(points) for points in annotations]

    @staticmethod
    def _detection(points: Float[np.ndarray, "68 2"]) -> Detection:
        landmarks = np.asarray(points, np.float32)
        confidence = confidence_from_sigma(np.full(LANDMARK_COUNT, PROVIDED_SIGMA, np.float32))
        return Detection(landmarks, confidence, landmark_box(landmarks[None])[0], 1.0)


def _provided() -> LandmarkDetector:
    return ProvidedDetector()


def _hierarchical(
    *,
    content: dict[str, Any],
    runtime: str = "auto",
    exported: Path | None = None,
    threads: int = 0,
    **options: Any,
) -> LandmarkDetector:
    from models.landmarks.cascade import load_hierarchical
    from models.landmarks.portable import is_exported, load_portable

    if runtime not in ("auto", "torch", "onnx"):
        raise ValueError(f"detector hierarchical: runtime {runtime!r}, expected auto, torch or onnx")
    there = exported is not None and is_exported(exported, with_finder="finder" in content)
    if runtime == "onnx" and not there:
        raise FileNotFoundError(f"{exported or 'no folder'}: no exported network; run train_detector again")
    on_processor = options.get("device", "cpu") == "cpu" and not options.get("half_precision", False)
    if exported is not None and there and (runtime == "onnx" or (runtime == "auto" and on_processor)):
        of_torch = ("device", "half_precision")
        return load_portable(
            exported, threads=threads, **{name: value for name, value in options.items() if name not in of_torch}
        )
    return load_hierarchical(content, **options)


def _face_alignment(**options: Any) -> LandmarkDetector:
    from models.landmarks.face_alignment import FaceAlignmentDetector

    return FaceAlignmentDetector(**options)


DETECTORS: dict[str, Callable[..., LandmarkDetector]] = {
    "provided": _provided,
    "hierarchical": _hierarchical,
    "face_alignment": _face_alignment,
}
"""Builders by name; each imports its own needs."""


def build_detector(kind: str, **options: Any) -> LandmarkDetector:
    """The detector of that name.

    `hierarchical` takes the `content` of its checkpoint, `runtime`, the folder `exported` with these networks as ONNX
    files, `threads` for them, and what `HierarchicalDetector` takes. `auto` is onnxruntime on the processor where the
    files are there, else torch.
    Raises: ValueError if no detector has that name, FileNotFoundError for `onnx` without files.
    """
    if kind not in DETECTORS:
        raise ValueError(f"detector {kind!r} is unknown, expected one of {', '.join(DETECTORS)}")
    return DETECTORS[kind](**options)
