"""What the landmark network says about frames of photos, and which of several guesses show the same face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from models.landmarks.framing import landmark_box
from models.types import JAW_COUNT, LANDMARK_COUNT

SHARED_AREA = 0.5
"""Two boxes show the same face if they share this much of the smaller one: a face does not lie within another."""

MIN_POINT_SPREAD_PX = 1.0
"""Points closer together than this are no face and cannot be framed again."""


class CropReading(NamedTuple):
    """What the network says about a batch of crops, in pixels of the crops."""

    points: Float[np.ndarray, "N 68 2"]
    annotated: Float[np.ndarray, "N 68 2"]
    log_sigma: Float[np.ndarray, "N 68"]
    presence: Float[np.ndarray, "N"]
    """Logits."""
    dense: Float[np.ndarray, "N D 2"]
    dense_log_sigma: Float[np.ndarray, "N D"]
    outline: Float[np.ndarray, "N 17 2"]


CropReader = Callable[[UInt8[np.ndarray, "N S S 3"]], CropReading]
"""The landmark network by whatever runs it."""


@dataclass(frozen=True)
class Guesses:
    """What the network says about N frames."""

    photo: Int[np.ndarray, "N"]
    points: Float[np.ndarray, "N 68 2"]
    """Pixels of the photo, at the face model's vertices."""
    annotated: Float[np.ndarray, "N 68 2"]
    """The same as photos are annotated."""
    sigma: Float[np.ndarray, "N 68"]
    """Expected error as a fraction of the larger side of the points' box."""
    presence: Float[np.ndarray, "N"]
    """Probability of a face."""
    dense: Float[np.ndarray, "N D 2"]
    dense_sigma: Float[np.ndarray, "N D"]
    outline: Float[np.ndarray, "N 17 2"]
    """The jaw where people put it, on the visible outline, pixels of the photo."""
    frame: Float[np.ndarray, "N 3 3"]
    """The affine of the frame that was looked at, as `framing.frame_affine` makes it."""

    def handmade(self) -> Float[np.ndarray, "N 68 2"]:
        """The points with their jaw on the visible outline."""
        return np.concatenate([self.outline, self.points[:, JAW_COUNT:]], 1)

    def rank(self) -> Float[np.ndarray, "N"]:
        """Higher is better: sure of a face, and sure of its points, which favours windows that fit tightly."""
        return np.log(self.presence + 1e-6) - 0.5 * np.log(self.sigma.mean(1) + 1e-6)

    def average(self, mirrored: Guesses) -> Guesses:
        """Mean with a look from right to left at the same faces; dense points have no mirror image."""
        return Guesses(
            self.photo,
            (self.points + mirrored.points) / 2.0,
            (self.annotated + mirrored.annotated) / 2.0,
            (self.sigma + mirrored.sigma) / 2.0,
            (self.presence + mirrored.presence) / 2.0,
            self.dense,
            self.dense_sigma,
            (self.outline + mirrored.outline) / 2.0,
            self.frame,
        )

    def take(self, rows: Int[np.ndarray, "M"] | Bool[np.ndarray, "N"]) -> Guesses:
        """The guesses of those rows."""
        return Guesses(*(getattr(self, field.name)[rows] for field in fields(self)))

    def replace(self, rows: Int[np.ndarray, "M"], others: Guesses) -> Guesses:
        """These guesses with others in the place of some rows."""
        order = np.arange(len(self.photo))
        order[rows] = len(order) + np.arange(len(rows))
        return Guesses.join([self, others]).take(order)

    @classmethod
    def join(cls, parts: Sequence[Guesses]) -> Guesses:
        """All guesses of several, in order."""
        # Without rows nobody knows how many dense points there would be.
        filled = [part for part in parts if len(part.photo)] or parts[:1]
        return cls(*(np.concatenate([getattr(part, field.name) for part in filled]) for field in fields(cls)))

    @classmethod
    def none(cls) -> Guesses:
        """No guess at all."""
        points, values = np.zeros((0, LANDMARK_COUNT, 2)), np.zeros((0, LANDMARK_COUNT))
        dense = np.zeros((0, 0, 2))
        return cls(
            np.zeros(0, np.int64),
            points,
            points,
            values,
            np.zeros(0),
            dense,
            dense[..., 0],
            points[:, :JAW_COUNT],
            np.zeros((0, 3, 3)),
        )


def without_duplicates(guesses: Guesses) -> Int[np.ndarray, "M"]:
    """Rows of the best guess of each face, by falling rank."""
    boxes = landmark_box(guesses.points)
    kept: list[int] = []
    for row in np.argsort(-guesses.rank(), kind="stable").tolist():
        others = [other for other in kept if guesses.photo[other] == guesses.photo[row]]
        if not others or _shared_area(boxes[row], boxes[others]).max() < SHARED_AREA:
            kept.append(row)
    return np.array(kept, np.int64)


def _shared_area(box: Float[np.ndarray, "4"], others: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N"]:
    """Area that a box shares with others, as a fraction of the smaller of the two."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.maximum(high - low, 0.0).prod(1)
    smaller = np.minimum((box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(1))
    return common / np.maximum(smaller, 1e-9)
