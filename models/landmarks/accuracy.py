"""How far detected points lie from annotated ones over many faces, and whether the detector knew.

Convention: pixels of the photo. A missed face has NaN points; it has no error, but counts as a failure and adds nothing
under the error curve. Errors and rates are fractions. N counts faces.
Source: method.md, section C; normalisation by the outer eye corners as in 300-W, by the box as in AFLW2000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from models.landmarks.detector import sigma_from_confidence
from models.landmarks.framing import box_side, landmark_box
from models.statistics import bootstrap_interval

EYE_CORNERS = (36, 45)
"""Outer corners of the eyes."""

FIRST_INNER_POINT = 17
"""The 17 points before belong to the contour, whose definition differs most between annotations."""

SMALLEST_SIZE_PX = 1e-6
"""Keeps the error of a degenerate annotation finite; it then counts as a failure."""

MIN_OVERLAP = 0.1
"""Boxes with less in common (intersection over union) show different faces."""

HALF_RADIUS, MOST_RADIUS = math.sqrt(2.0 * math.log(2.0)), math.sqrt(2.0 * math.log(10.0))
"""Standard deviations per coordinate that hold half and 90 % of a Gaussian in the plane."""


@dataclass(frozen=True)
class MeasuredFaces:
    """Annotated faces and what a detector made of them."""

    annotated: Float[np.ndarray, "N 68 2"]
    found: Float[np.ndarray, "N 68 2"]
    """NaN where the face was missed."""
    confidence: Float[np.ndarray, "N 68"]
    """See `confidence_from_sigma`; NaN where the face was missed."""
    yaw_deg: Float[np.ndarray, "N"]

    def take(self, rows: Bool[np.ndarray, "N"]) -> MeasuredFaces:
        """The faces of those rows."""
        return MeasuredFaces(self.annotated[rows], self.found[rows], self.confidence[rows], self.yaw_deg[rows])

    def hits(self) -> Bool[np.ndarray, "N"]:
        """Which faces were found."""
        return np.isfinite(self.found).all((1, 2))


@dataclass(frozen=True)
class FaceErrors:
    """Mean error of each face, NaN where it was missed."""

    eyes68: Float[np.ndarray, "N"]
    """Over the distance of the outer eye corners."""
    eyes51: Float[np.ndarray, "N"]
    """The same of the points without the contour."""
    box68: Float[np.ndarray, "N"]
    """Over the square root of the area of the annotated points' box."""
    box51: Float[np.ndarray, "N"]


@dataclass(frozen=True)
class Accuracy:
    """What a set of faces comes to; errors are means over found faces, rates count missed ones as failures."""

    count: int
    missed: int
    nme68: float
    nme51: float
    """By the distance of the outer eye corners."""
    nme68_box: float
    nme51_box: float
    """By the square root of the box area; the one to read where faces are turned far."""
    median68: float
    median51: float
    fr8: float
    fr10: float
    """Share of faces whose 68 points err by more than 8 and 10 % of the eyes' distance."""
    auc8: float
    auc10: float
    """Area under the cumulative curve of that error up to 8 and 10 %, 1 for a perfect detector."""
    fr8_51: float
    fr10_51: float
    auc8_51: float
    auc10_51: float
    fr10_box: float
    """As `fr10`, by the square root of the box area."""
    auc10_box: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Points of about the same expected error. Units: larger sides of the annotated points' box, per coordinate."""

    expected: float
    """Root mean square of what the detector expected."""
    observed: float
    """Root mean square of its errors."""
    within_half: float
    """Share of points as near as half of them should be."""
    within_most: float
    """Share of points as near as 90 % of them should be."""
    count: int


def nearest_face(candidates: Sequence[Float[np.ndarray, "68 2"]], annotated: Float[np.ndarray, "68 2"]) -> int | None:
    """The candidate whose points' box overlaps that of the annotated points most; None if none overlaps enough."""
    if not candidates:
        return None
    boxes = landmark_box(np.asarray(candidates, np.float64))
    truth = landmark_box(np.asarray(annotated, np.float64)[None])[0]
    shared = np.minimum(boxes[:, 2:], truth[2:]) - np.maximum(boxes[:, :2], truth[:2])
    intersection = np.clip(shared, 0.0, None).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (truth[2:] - truth[:2]).prod() - intersection
    overlap = intersection / np.maximum(union, SMALLEST_SIZE_PX)
    best = int(np.nanargmax(overlap)) if np.isfinite(overlap).any() else 0
    return best if overlap[best] >= MIN_OVERLAP else None


def face_errors(faces: MeasuredFaces) -> FaceErrors:
    """Mean distance between found and annotated points of each face, by eyes and by box, with and without contour."""
    distance = np.linalg.norm(faces.found - faces.annotated, axis=2)
    first, second = EYE_CORNERS
    eyes = np.linalg.norm(faces.annotated[:, first] - faces.annotated[:, second], axis=1)
    box = np.sqrt(np.ptp(faces.annotated, axis=1).prod(1))
    all_points, inner = distance.mean(1), distance[:, FIRST_INNER_POINT:].mean(1)
    eyes, box = np.maximum(eyes, SMALLEST_SIZE_PX), np.maximum(box, SMALLEST_SIZE_PX)
    return FaceErrors(all_points / eyes, inner / eyes, all_points / box, inner / box)


def failure_rate(errors: Float[np.ndarray, "N"], *, limit: float) -> float:
    """Share of errors above the limit; missed faces (NaN) are among them. NaN for an empty set."""
    return float((~(errors <= limit)).mean()) if len(errors) else math.nan


def area_under_curve(errors: Float[np.ndarray, "N"], *, limit: float) -> float:
    """Area under the cumulative error curve from 0 to the limit, over the limit; NaN for an empty set.

    Exact, not by bins: the curve is a stair, so each face adds max(0, limit - e) / limit. Missed faces add nothing.
    """
    return float(_curve_shares(errors, limit).mean()) if len(errors) else math.nan


def measure_accuracy(faces: MeasuredFaces) -> Accuracy:
    """All numbers of a set of faces; what cannot be said of it is NaN."""
    errors, hits = face_errors(faces), faces.hits()
    return Accuracy(
        count=len(hits),
        missed=int((~hits).sum()),
        nme68=_mean(errors.eyes68),
        nme51=_mean(errors.eyes51),
        nme68_box=_mean(errors.box68),
        nme51_box=_mean(errors.box51),
        median68=float(np.median(errors.eyes68[hits])) if hits.any() else math.nan,
        median51=float(np.median(errors.eyes51[hits])) if hits.any() else math.nan,
        fr8=failure_rate(errors.eyes68, limit=0.08),
        fr10=failure_rate(errors.eyes68, limit=0.1),
        auc8=area_under_curve(errors.eyes68, limit=0.08),
        auc10=area_under_curve(errors.eyes68, limit=0.1),
        fr8_51=failure_rate(errors.eyes51, limit=0.08),
        fr10_51=failure_rate(errors.eyes51, limit=0.1),
        auc8_51=area_under_curve(errors.eyes51, limit=0.08),
        auc10_51=area_under_curve(errors.eyes51, limit=0.1),
        fr10_box=failure_rate(errors.box68, limit=0.1),
        auc10_box=area_under_curve(errors.box68, limit=0.1),
    )


def accuracy_by_yaw(faces: MeasuredFaces, edges_deg: Sequence[float]) -> list[tuple[float, float, Accuracy]]:
    """Low edge, high edge and accuracy of each bin of |yaw|; a bin holds its low edge, and the last all beyond.

    Raises: ValueError if the edges do not rise from 0 or more.
    """
    check_yaw_edges(edges_deg)
    edges = np.asarray(edges_deg, np.float64)
    size = np.abs(faces.yaw_deg)
    table = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        inside = (size >= low) & ((size < high) | (high == edges[-1]))
        table.append((low, high, measure_accuracy(faces.take(inside))))
    return table


def check_yaw_edges(edges_deg: Sequence[float]) -> None:
    """Raises: ValueError if the edges do not rise from 0 or more."""
    if len(edges_deg) < 2 or edges_deg[0] < 0.0 or not (np.diff(np.asarray(edges_deg, np.float64)) > 0.0).all():
        raise ValueError(f"yaw bins: edges {list(edges_deg)}, expected two or more that rise from 0, e.g. 0,30,60,90")


def bootstrap_intervals(faces: MeasuredFaces, *, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Percentile intervals of `nme68`, `nme51`, `nme68_box`, `fr10` and `auc10` over resampled faces.

    Degenerate: without a found face the intervals of the errors are NaN.
    """
    errors = face_errors(faces)
    values = {
        "nme68": errors.eyes68,
        "nme51": errors.eyes51,
        "nme68_box": errors.box68,
        "fr10": (~(errors.eyes68 <= 0.1)).astype(np.float64),
        "auc10": _curve_shares(errors.eyes68, 0.1),
    }
    return {name: bootstrap_interval(value, level=level, seed=seed) for name, value in values.items()}


def reliability_curve(faces: MeasuredFaces, *, bins: int = 10) -> list[ReliabilityBin]:
    """Expected against observed error of the found points, in bins of equally many, from sure to unsure."""
    found = faces.take(faces.hits())
    distance = np.linalg.norm(found.found - found.annotated, axis=2) / np.maximum(
        box_side(found.annotated), SMALLEST_SIZE_PX
    ).reshape(-1, 1)
    sigma = sigma_from_confidence(found.confidence.astype(np.float64)).ravel()
    order, distance = np.argsort(sigma, kind="stable"), distance.ravel()
    curve = []
    for rows in np.array_split(order, bins):
        if len(rows):
            curve.append(
                ReliabilityBin(
                    expected=float(np.sqrt(np.mean(sigma[rows] ** 2))),
                    observed=float(np.sqrt(np.mean(distance[rows] ** 2) / 2.0)),
                    within_half=float(np.mean(distance[rows] <= HALF_RADIUS * sigma[rows])),
                    within_most=float(np.mean(distance[rows] <= MOST_RADIUS * sigma[rows])),
                    count=len(rows),
                )
            )
    return curve


def calibration_error(curve: Sequence[ReliabilityBin]) -> float:
    """Mean over points of |expected - observed| / expected of their bin; 0 where confidences say the truth.

    Degenerate: NaN without points.
    Source: expected normalised calibration error, Levi et al. 2019, equation 8.
    """
    count = sum(one.count for one in curve)
    gaps = [one.count * abs(one.expected - one.observed) / max(one.expected, SMALLEST_SIZE_PX) for one in curve]
    return sum(gaps) / count if count else math.nan


def _curve_shares(errors: Float[np.ndarray, "N"], limit: float) -> Float[np.ndarray, "N"]:
    return np.clip(1.0 - np.where(np.isfinite(errors), errors, np.inf) / limit, 0.0, None)


def _mean(errors: Float[np.ndarray, "N"]) -> float:
    known = errors[np.isfinite(errors)]
    return float(known.mean()) if len(known) else math.nan
