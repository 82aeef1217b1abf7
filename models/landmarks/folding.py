"""Networks without batch normalisation: evaluated, the convolutions beside it can hold its factors and offsets."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.landmarks.transforms import AttentionTransform

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def without_norms(network: Network) -> Network:
    """A copy in evaluation mode that computes the same with fewer passes over its features; it cannot be trained.

    Normalisations right behind a convolution are taken into it, those of an `AttentionTransform` into its queries, keys
    and values. Others stay.
    """
    folded = copy.deepcopy(network).eval()
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            _fold_behind(module)
        elif isinstance(module, AttentionTransform):
            _fold_before(module)
    return folded


def _fold_behind(chain: nn.Sequential) -> None:
    for place in range(len(chain) - 1):
        convolution, norm = chain[place], chain[place + 1]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            chain[place] = fuse_conv_bn_eval(convolution, norm)
            chain[place + 1] = nn.Identity()


def _fold_before(transform: AttentionTransform) -> None:
    """Both are 1x1, so no border mixes the offset with padding."""
    norm = transform.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    offset = norm.bias - norm.running_mean * factor
    for name in ("query_key", "value"):
        plain: nn.Conv2d = getattr(transform, name)
        folded = nn.Conv2d(plain.in_channels, plain.out_channels, 1)
        folded.weight.copy_(plain.weight * factor[:, None, None])
        assert folded.bias is not None
        folded.bias.copy_(plain.weight[:, :, 0, 0] @ offset)
        setattr(transform, name, folded.eval())
    transform.norm = nn.Identity()  # type: ignore[assignment]
