"""One person per clip: what single frames took for another face shape is given back to the expression."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.signal import butter, sosfiltfilt
from torch import Tensor

from models.face.morphable import MorphableModel

NOISE_MM = 3.0
"""By how much a landmark of a frame may be moved without an expression being the reason."""
ACTIVATION_SIGMA = 0.3
"""Spread of expressions around rest."""


def with_one_identity(
    model: MorphableModel,
    identity: Float[Tensor, "T I"],
    expression: Float[Tensor, "T E"],
    *,
    confidence: Float[Tensor, " T"],
) -> tuple[Float[Tensor, " I"], Float[Tensor, "T E"]]:
    """The clip's identity, the weighted mean over its frames, and the expressions that keep each frame's landmarks.

    Method: the landmarks that a frame's own identity moved away from those of the clip's identity are explained by
    expression as far as a ridge regression believes it, and the result is kept within [0, 1].
    Degenerate: frames without confidence count alike.
    """
    weights = confidence if bool((confidence > 0).any()) else torch.ones_like(confidence)
    person = (weights[:, None] * identity).sum(0) / weights.sum()
    moved = (identity - person) @ model.landmark_identity_basis.flatten(1)
    basis = model.landmark_expression_basis.flatten(1)
    ridge = (NOISE_MM / ACTIVATION_SIGMA) ** 2
    normal = basis @ basis.T + ridge * torch.eye(len(basis), dtype=basis.dtype)
    correction = torch.linalg.solve(normal, basis @ moved.T).T
    return person, torch.clamp(expression + correction, 0.0, 1.0)


def filled(values: Float[np.ndarray, "T C"], seen: Bool[np.ndarray, " T"]) -> Float[np.ndarray, "T C"]:
    """Frames in which nothing was seen, by straight lines between those before and after.

    Raises: ValueError if nothing was ever seen.
    """
    places = np.flatnonzero(seen)
    if not len(places):
        raise ValueError("no frame shows a face, expected some")
    wanted = np.arange(len(values))
    return np.stack([np.interp(wanted, places, column[places]) for column in values.T], 1)


def smoothed(values: Float[np.ndarray, "T C"], *, rate_hz: float, cutoff_hz: float) -> Float[np.ndarray, "T C"]:
    """Without what changes faster than the cut-off, and without delay (Butterworth, forwards and backwards).

    Degenerate: a clip too short for the filter, or a cut-off above half the rate, leaves the values.
    """
    if cutoff_hz >= 0.5 * rate_hz or len(values) < 10:
        return values
    filter_ = butter(2, cutoff_hz, fs=rate_hz, output="sos")
    return np.asarray(sosfiltfilt(filter_, values, axis=0, padlen=min(9, len(values) - 1)))
