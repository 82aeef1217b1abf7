"""Convolution blocks over the steps of a pyramid that share one batch normalisation.

Steps that were normalised one by one would each be seen as if of average contrast while training, and as they are
afterwards: a network trained so sees faces everywhere. Evaluated, a block acts on every step by itself.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.landmarks.transforms import ConvNorm, ResidualMerge


def convolve_jointly(block: ConvNorm, steps: list[Tensor]) -> list[Tensor]:
    """Convolution, normalisation by the statistics of all steps, and ReLU where the block has one."""
    if not block.training:
        return [block(step) for step in steps]
    convolution, norm, *activation = block
    assert isinstance(norm, nn.BatchNorm2d)
    normed = normalize_jointly(norm, [convolution(step) for step in steps])
    return [functional.relu(step) for step in normed] if activation else normed


def merge_jointly(block: ResidualMerge, steps: list[Tensor]) -> list[Tensor]:
    """`ResidualMerge` with the same."""
    if not block.training:
        return [block(step) for step in steps]
    merged = convolve_jointly(block.merge, steps)
    residual = convolve_jointly(block.residual, merged)
    return [functional.relu(first + second) for first, second in zip(merged, residual, strict=True)]


def normalize_jointly(norm: nn.BatchNorm2d, steps: list[Float[Tensor, "B C _ _"]]) -> list[Tensor]:
    """Training: every position of every step counts alike, and the running statistics move once."""
    # Channels last, as the convolutions leave them: no copy but the one that joins the steps.
    flat = torch.cat([step.permute(0, 2, 3, 1).flatten(1, 2) for step in steps], 1)
    batch, count, channels = flat.shape
    normed = functional.batch_norm(
        flat.reshape(batch * count, channels),
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        training=True,
        momentum=norm.momentum or 0.0,
        eps=norm.eps,
    ).view(batch, count, channels)
    parts = normed.split([step.shape[2] * step.shape[3] for step in steps], 1)
    return [part.unflatten(1, step.shape[2:]).permute(0, 3, 1, 2) for part, step in zip(parts, steps, strict=True)]
