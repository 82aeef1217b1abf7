"""A network that says, pixel by pixel, how far a rendering may be off the photo; training alone needs it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

CODE = 128
"""Numbers in which the photo passes from the encoder to the decoder."""

MIN_SIGMA = 0.02
"""Of pixels in [0, 1]: about five steps of 256, the noise of a photo; surer than that a network only overfits."""

START_SIGMA = 0.2


class ConfidenceNetwork(nn.Module):
    """Photo to the expected error of two renderings, with the face's own skin and with it mirrored.

    Four convolutions that halve the resolution, a code, and the way back.
    Source: Wu et al. 2020; method D.4, at the resolution of the photo alone.
    """

    def __init__(self, *, width: int, size_px: int) -> None:
        """Raises: ValueError if the side is not a multiple of 16."""
        super().__init__()
        if size_px % 16:
            raise ValueError(f"crops of {size_px} px, expected a multiple of 16")
        self.width, self.size_px = width, size_px
        widths = [width, 2 * width, 4 * width, 8 * width]
        down: list[nn.Module] = []
        for inputs, outputs in zip([3, *widths[:-1]], widths, strict=True):
            down += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), *_normalized(outputs)]
        self.start = (widths[-1], size_px // 16, size_px // 16)
        numbers = self.start[0] * self.start[1] * self.start[2]
        self.down = nn.Sequential(*down, nn.Flatten(), nn.Linear(numbers, CODE), nn.LeakyReLU(0.2))
        self.spread = nn.Sequential(nn.Linear(CODE, numbers), nn.LeakyReLU(0.2))
        up: list[nn.Module] = []
        for inputs, outputs in zip(widths[::-1], [*widths[-2::-1], width], strict=True):
            up += [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), *_normalized(outputs)]
        self.up = nn.Sequential(*up)
        self.head = nn.Conv2d(width, 2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        # Softplus of this is the error that is expected of every pixel before anything is learned.
        nn.init.constant_(self.head.bias, float(torch.tensor(START_SIGMA - MIN_SIGMA).expm1().log()))

    def forward(self, image: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 2 S S"]:
        """Image in [0, 1]; standard deviations of its pixels, own skin first, mirrored second."""
        code = self.down((image - 0.5) / 0.25)
        hidden = self.up(self.spread(code).unflatten(1, self.start))
        return MIN_SIGMA + functional.softplus(self.head(hidden))

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        weights = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        return {"width": self.width, "size_px": self.size_px, "weights": weights}

    @staticmethod
    def load(content: dict[str, Any]) -> ConfidenceNetwork:
        """The network of a checkpoint, in evaluation mode."""
        network = ConfidenceNetwork(width=content["width"], size_px=content["size_px"])
        network.load_state_dict(content["weights"])
        return network.eval()


def _normalized(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(max(1, channels // 4), channels), nn.LeakyReLU(0.2)]
