"""Photometric and landmark losses: what an image says about a face."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.types import Camera

INNER_WEIGHT = 20.0
"""Weight of nose bridge and inner lips against other landmarks. Source: Deng et al. 2019, as in their code."""

INNER_LANDMARKS = (28, 29, 30, *range(60, 68))

REFERENCE_SIZE_PX = 224.0
"""Crop size for which the weights of squared pixels are given; other crops are scaled to it."""

EPSILON = 1e-6
"""Under the root of the photo loss, so that its gradient is finite where two images agree."""


def photo_distance(
    image: Float[Tensor, "B 3 H W"], rendering: Float[Tensor, "B 3 H W"], *, mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B"]:
    """Mean RGB distance of the masked pixels (the L2,1 norm, so that a wrong pixel counts linearly).

    Degenerate: a face without a masked pixel returns 0.
    Source: method A, L1 and L5, in the form of Deng et al. 2019, equation 1.
    """
    distance = ((image - rendering).square().sum(1) + EPSILON).sqrt() * mask
    return distance.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)


def landmark_distance(
    predicted: Float[Tensor, "B 68 2"],
    target: Float[Tensor, "B 68 2"],
    *,
    confidence: Float[Tensor, "B 68"],
    camera: Camera,
) -> Float[Tensor, "B"]:
    """Weighted mean squared landmark error in px² of a 224 px crop.

    Source: method A, L2 and L6; weights after Deng et al. 2019, times the detector's confidence.
    """
    weights = torch.ones_like(confidence)
    weights[:, list(INNER_LANDMARKS)] = INNER_WEIGHT
    scale = REFERENCE_SIZE_PX / camera.size[1]
    squared = ((predicted - target) * scale).square().sum(2)
    # Divided by the points' number, not by the sum of weights, as the published weight of 1.6e-3 expects.
    return (weights * confidence * squared).mean(1)
