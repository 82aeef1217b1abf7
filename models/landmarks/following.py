"""Landmarks of faces whose place is nearly known, as in the next frames of a film: without looking for faces again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.landmarks.cascade import HierarchicalDetector
from models.landmarks.detector import Detection
from models.landmarks.guesses import Guesses
from models.types import JAW_COUNT, LANDMARK_COUNT

LOOKS = 1
"""The points of a neighbouring frame frame a face as well as a look at it would."""


def follow_faces(
    detector: HierarchicalDetector,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    which: Int[np.ndarray, "N"],
    points: Float[np.ndarray, "N 68 2"],
) -> list[Detection | None]:
    """Where the faces whose points are about `points` in the images `which` really are; None where no face is seen."""
    if not len(which):
        return []
    count, places = len(which), points.astype(np.float64)
    about = Guesses(
        photo=np.asarray(which, np.int64),
        points=places,
        annotated=places,
        sigma=np.zeros((count, LANDMARK_COUNT)),
        presence=np.ones(count),
        dense=np.zeros((count, 0, 2)),
        dense_sigma=np.zeros((count, 0)),
        outline=places[:, :JAW_COUNT],
        frame=np.zeros((count, 3, 3)),
    )
    found = detector._refine(images, about, LOOKS)
    shows = detector._shows_face(found)
    return [detector._detection(found, row) if shows[row] else None for row in range(count)]
