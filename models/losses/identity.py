"""Losses of who a face is: persons far apart, photos of one person together, coefficients spread like real faces.

Convention: an embedding e is in millimetres, and the distance of two is the RMS vertex distance of two shapes, see
`geometry_embedding`. A face that is the mean face lies at zero.
Source: method D, after Jiang et al. 2021 (SIR); what differs is said at each function.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

SCALE = 32.0
MARGIN = 0.2
"""Of `separation`. Source: method D.1."""

INVERSE_VARIANCE = 0.5
"""Per mm²: photos of a person spread by about a millimetre in the directions that tell persons apart."""

DISTANCE_MARGIN = 0.1

EXPRESSION_SCALE = 3.0
"""Length of an expression at which its photo counts 1 / e as much as a neutral one. Source: method D.2."""

MIN_VARIANCE = 1e-3
"""Below it the divergence has no slope left that could be followed."""


def separation(
    embedding: Float[Tensor, "B K"],
    person: Int[Tensor, "B"],
    class_weights: Float[Tensor, "C K"],
    *,
    scale: float = SCALE,
    margin: float = MARGIN,
) -> Float[Tensor, "B"]:
    """Cross-entropy of telling each face's person by the angle to all persons' directions, less a margin.

    Convention: `person` is a row of `class_weights`, whose lengths do not matter.
    Degenerate: a face at zero has no direction and is equally far from all; a single person leaves nothing to tell.
    Source: Wang et al. 2018 (CosFace), equation 4; method D.1.
    """
    cosine = functional.normalize(embedding, dim=1) @ functional.normalize(class_weights, dim=1).T
    own = functional.one_hot(person, len(class_weights)).to(cosine.dtype)
    return functional.cross_entropy(scale * (cosine - margin * own), person, reduction="none")


def distance_separation(
    embedding: Float[Tensor, "B K"],
    person: Int[Tensor, "B"],
    centers: Float[Tensor, "C K"],
    *,
    inverse_variance: float = INVERSE_VARIANCE,
    margin: float = DISTANCE_MARGIN,
) -> Float[Tensor, "B"]:
    """Cross-entropy of telling each face's person by the distance to all persons' centres, the own one made longer.

    Logits are -β d² with d in mm, for the own person -β (1 + margin) d²: persons as Gaussians around their centres.
    Unlike angles, which say nothing of how far apart shapes are, it parts geometry.
    Degenerate: a single person leaves nothing to tell.
    Source: Wan et al. 2018 (large-margin Gaussian mixture), equation 9 with equal covariances.
    """
    own = functional.one_hot(person, len(centers)).to(embedding.dtype)
    logits = -inverse_variance * squared_distances(embedding, centers) * (1.0 + margin * own)
    return functional.cross_entropy(logits, person, reduction="none")


def squared_distances(first: Float[Tensor, "N K"], second: Float[Tensor, "M K"]) -> Float[Tensor, "N M"]:
    """Squared Euclidean distances of all rows, with gradients also where they are zero."""
    squares = first.square().sum(1)[:, None] + second.square().sum(1) - 2.0 * first @ second.T
    return squares.clamp_min(0.0)


def center_distance(embedding: Float[Tensor, "B K"], centers: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Half the squared distance to the centre of the person, in mm². Source: Wen et al. 2016; method D.2."""
    return 0.5 * (embedding - centers).square().sum(1)


def frontal_neutral_weight(
    angles: Float[Tensor, "B 3"], expression: Float[Tensor, "B E"], *, scale: float = EXPRESSION_SCALE
) -> Float[Tensor, "B"]:
    """How much a photo says of its person's shape, 1 for a frontal neutral one: Π max(cos, 0) · exp(-‖β‖ / scale).

    Convention: `angles` are yaw, pitch and roll in radians. From behind a face says nothing. Source: method D.2.
    """
    return angles.cos().clamp_min(0.0).prod(1) * torch.exp(-torch.linalg.vector_norm(expression, dim=1) / scale)


def move_centers(
    centers: Float[Tensor, "C K"],
    person: Int[Tensor, "N"],
    embedding: Float[Tensor, "N K"],
    weight: Float[Tensor, "N"],
    *,
    rate: float,
) -> Float[Tensor, "C K"]:
    """Centres drawn to the faces of a step, each by rate · Σ w (e - c) / (1 + Σ w); those of absent persons stay.

    The photo's own loss does not know the weight: it only says who moves the centre.
    Source: Wen et al. 2016, equation 4, with the weights of method D.2.
    """
    total = centers.new_zeros(len(centers)).index_add(0, person, weight)
    pull = torch.zeros_like(centers).index_add(0, person, weight[:, None] * (embedding - centers[person]))
    return centers + rate * pull / (1.0 + total)[:, None]


def divergence(mean: Float[Tensor, "K"], square: Float[Tensor, "K"]) -> Float[Tensor, ""]:
    """Divergence of N(mean, variance) from N(0, 1), averaged over dimensions; `square` is the mean of squares.

    ½ mean(v + μ² - 1 - ln v) with v = square - mean². Source: method D.3, there with the moments of a batch.
    """
    variance = (square - mean.square()).clamp_min(MIN_VARIANCE)
    return 0.5 * (square - 1.0 - variance.log()).mean()


def distribution(
    coefficients: Float[Tensor, "B K"], mean: Float[Tensor, "K"], square: Float[Tensor, "K"]
) -> Float[Tensor, "B"]:
    """The divergence of running moments, with the gradient of what each face adds to them.

    The value is that of the running moments for every face. The gradient is that of `divergence` at these moments
    through the moments of this batch, face by face, so that it does not depend on how a batch is divided, nor on the
    chance of who is in it: the own moments of a small batch are never those of the whole, see `batch_bias`.
    """
    mean, square = mean.detach().requires_grad_(), square.detach().requires_grad_()
    with torch.enable_grad():
        value = divergence(mean, square)
        by_mean, by_square = torch.autograd.grad(value, (mean, square))
    slope = coefficients @ by_mean + coefficients.square() @ by_square
    return value.detach() + slope - slope.detach()


def batch_bias(batch_size: int) -> float:
    """What the divergence of a batch's own moments is on average when its coefficients are N(0, 1): it should be 0.

    ½ (ln(B / 2) - ψ((B - 1) / 2)), because B v is distributed as χ² with B - 1 degrees of freedom.
    Raises: ValueError for a batch of one, whose variance is 0.
    """
    if batch_size < 2:
        raise ValueError(f"a batch of {batch_size} has no variance, expected at least two faces")
    freedom = torch.tensor((batch_size - 1) / 2.0, dtype=torch.float64)
    return 0.5 * (math.log(batch_size / 2.0) - float(torch.digamma(freedom)))
