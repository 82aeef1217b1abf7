"""Losses of the landmark network: Wing on the points, a likelihood on their expected errors, presence of a face."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def wing(error: Float[Tensor, "*N"], *, width: float = 10.0, curvature: float = 2.0) -> Float[Tensor, "*N"]:
    """Wing of the absolute error: w ln(1 + |e| / ε) below w, |e| - C above, continuous at w.

    Convention: pixels of the network's input. Example: width 10, curvature 2: e = 2 gives 10 ln 2 = 6.93.
    Source: Feng et al. 2018, equation 5.
    """
    size = error.abs()
    offset = width - width * math.log1p(width / curvature)
    return torch.where(size < width, width * torch.log1p(size / curvature), size - offset)


def wing_loss(
    predicted: Float[Tensor, "B L 2"], target: Float[Tensor, "B L 2"], *, width: float = 10.0, curvature: float = 2.0
) -> Float[Tensor, "B"]:
    """Mean Wing over points and coordinates of each face."""
    return wing(predicted - target, width=width, curvature=curvature).mean((1, 2))


def error_likelihood(
    log_sigma: Float[Tensor, "B L"], predicted: Float[Tensor, "B L 2"], target: Float[Tensor, "B L 2"]
) -> Float[Tensor, "B"]:
    """Negative Gaussian log-likelihood of the errors made, per coordinate and without constants: ln σ + e² / 2σ².

    The errors carry no gradient: σ learns how wrong the points are, the points do not learn to please σ.
    """
    squared = (predicted - target).detach().square().mean(2)
    return (log_sigma + 0.5 * squared * torch.exp(-2.0 * log_sigma)).mean(1)


def presence_loss(logit: Float[Tensor, "B"], face: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Binary cross-entropy of the face-presence logit; `face` is 1 for a face and 0 for none."""
    return functional.binary_cross_entropy_with_logits(logit, face, reduction="none")
