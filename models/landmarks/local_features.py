"""Features at places around points, bilinear, with a compiled step for training on the processor.

torch's own `grid_sample` spreads gradients channel by channel; with sixteen channels side by side in memory this is
several times faster. Elsewhere, and where nothing learns (also when the network is exported), it is `grid_sample`.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.rendering.compiled import kernel, run_jobs


def read_around(
    features: Float[Tensor, "B C H W"],
    points: Float[Tensor, "B L 2"],
    reach_px: tuple[float, ...],
    size_px: int,
) -> Float[Tensor, "B L J"]:
    """Features at a grid of places around every point, place by place; zero outside the image.

    Convention: points in pixels of the crop of `size_px`, whatever the resolution of the features. Differentiable in
    the features.
    """
    steps = torch.tensor(reach_px, dtype=points.dtype, device=points.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = points[:, :, None] + torch.stack([x, y], -1).flatten(0, 1)
    learning = features.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if learning and features.device.type == "cpu":
        height, width = features.shape[2:]
        scale = places.new_tensor([width / size_px, height / size_px])
        read: Tensor = BilinearRead.apply(features.float(), (places.detach() * scale - 0.5).flatten(1, 2))
        return read.unflatten(1, places.shape[1:3]).flatten(2)
    sampled = functional.grid_sample(features.float(), places * (2.0 / size_px) - 1.0, align_corners=False)
    return sampled.permute(0, 2, 3, 1).flatten(2)


class BilinearRead(torch.autograd.Function):
    """(B, C, H, W) features at (B, N, 2) places, in pixels of the features with centres on integers: (B, N, C)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, places: Tensor) -> Tensor:
        """Image by image."""
        image = features.detach().permute(0, 2, 3, 1).contiguous()
        ctx.save_for_backward(places)
        ctx.shape = image.shape
        read = torch.zeros((*places.shape[:2], image.shape[3]))
        source, where, target = image.numpy(), places.contiguous().numpy(), read.numpy()
        run_jobs(lambda job: _transfer(source[job], where[job], target[job], False), len(source))
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_read: Tensor) -> tuple[Tensor, None]:
        """Gradient of the features; each image is one job, so sums have one order."""
        (places,) = ctx.saved_tensors
        image = torch.zeros(ctx.shape)
        target, where, source = image.numpy(), places.contiguous().numpy(), to_read.contiguous().numpy()
        run_jobs(lambda job: _transfer(target[job], where[job], source[job], True), len(target))
        return image.permute(0, 3, 1, 2), None


@kernel
@no_type_check
def _transfer(image, places, read, spread):
    """Add weighted features to what is read, or with `spread` what was read to the features."""
    height, width, channels = image.shape
    for place in range(places.shape[0]):
        x, y = places[place, 0], places[place, 1]
        # Far outside nothing is read; the comparison also keeps what is not finite from becoming an integer.
        if not (-1.0 < x < width and -1.0 < y < height):
            continue
        left, top = np.int64(np.floor(x)), np.int64(np.floor(y))
        right_share, lower_share = x - np.float32(left), y - np.float32(top)
        for down in range(2):
            row = top + down
            if row < 0 or row >= height:
                continue
            by_row = lower_share if down else np.float32(1.0) - lower_share
            for across in range(2):
                column = left + across
                if column < 0 or column >= width:
                    continue
                weight = by_row * (right_share if across else np.float32(1.0) - right_share)
                if spread:
                    for channel in range(channels):
                        image[row, column, channel] += weight * read[place, channel]
                else:
                    for channel in range(channels):
                        read[place, channel] += weight * image[row, column, channel]
