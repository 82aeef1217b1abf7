"""The photo loss as a likelihood: a network says where a rendering can be trusted to explain the photo."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

FLIPPED_WEIGHT = 0.5
"""Of the rendering with mirrored skin beside the one with its own. Source: Wu et al. 2020."""


def laplacian_likelihood(
    image: Float[Tensor, "B 3 H W"],
    rendering: Float[Tensor, "B 3 H W"],
    sigma: Float[Tensor, "B H W"],
    *,
    mask: Bool[Tensor, "B H W"],
) -> Float[Tensor, "B"]:
    """Negative log-likelihood of the masked pixels under Laplace distributions of standard deviation `sigma`.

    mean(√2 |I - Î| / σ + ln σ), |·| the mean over the channels; a constant is left out, so that it may be negative.
    Where the two differ by d, σ = √2 d is best: what cannot be explained is not paid for linearly.
    Degenerate: a face without a masked pixel returns 0.
    Source: Wu et al. 2020 (unsupervised learning of symmetric objects); method D.4.
    """
    distance = (image - rendering).abs().mean(1)
    value = (math.sqrt(2.0) * distance / sigma + sigma.log()) * mask
    return value.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)


def mirror_partners(mean: Float[Tensor, "V 3"]) -> Int[Tensor, "V"]:
    """The vertex nearest to each one's mirror image across the middle of the face, x = 0."""
    points = mean.detach().double().cpu().numpy()
    _, partner = cKDTree(points).query(points * [-1.0, 1.0, 1.0])
    return torch.from_numpy(partner).to(mean.device)
