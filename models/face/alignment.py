"""Rigid and similarity alignment of corresponding points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rigid_alignment(
    source: Float[Tensor, "B K 3"],
    target: Float[Tensor, "B K 3"],
    *,
    weights: Float[Tensor, "B K"] | None = None,
    scale: bool = False,
) -> tuple[Float[Tensor, "B 3 3"], Float[Tensor, "B 3"], Float[Tensor, "B"]]:
    """Rotation, translation and scale that bring `source` closest to `target`: s R x + t, in least squares.

    Degenerate: points on a line leave the turn about it free; the result is still a proper rotation.
    Source: Kabsch 1976; the scale after Umeyama 1991.
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    share = (weights / weights.sum(1, keepdim=True))[..., None]
    source_mean, target_mean = (source * share).sum(1, keepdim=True), (target * share).sum(1, keepdim=True)
    centred_source, centred_target = source - source_mean, target - target_mean
    left, singular, right = torch.linalg.svd((centred_target * share).transpose(1, 2) @ centred_source)
    signs = torch.ones_like(singular)
    signs[:, 2] = torch.det(left @ right)
    rotation = left @ (signs[..., None] * right)
    factor = torch.ones_like(singular[:, 0])
    if scale:
        factor = (singular * signs).sum(1) / (centred_source.square() * share).sum((1, 2))
    translation = target_mean[:, 0] - factor[:, None] * (source_mean @ rotation.transpose(1, 2))[:, 0]
    return rotation, translation, factor


def transform(
    points: Float[Tensor, "B N 3"],
    rotation: Float[Tensor, "B 3 3"],
    translation: Float[Tensor, "B 3"],
    scale: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B N 3"]:
    """Apply what `rigid_alignment` found."""
    turned = points @ rotation.transpose(1, 2)
    if scale is not None:
        turned = turned * scale[:, None, None]
    return turned + translation[:, None]


NOW_LANDMARKS = (36, 39, 42, 45, 33, 48, 54)
"""Eye corners, base of the nose, mouth corners: the seven points of the NoW protocol, as iBUG indices."""
