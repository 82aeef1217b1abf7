"""The hierarchical landmark network: merging levels of linear-attention transforms, fused and read by one dense head.

Shallow features, patch partition, two levels of reference sub-networks (embedding-transform modules with a local
position embedding, then merging-transform modules), fusion by semantic enhancement and concatenation, a dense head.
Source: method.md, section C. Differs in widths, strides and the number of merging transforms, chosen so that it trains
in two minutes on two processor cores; docs/experiments.md has the numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.landmarks.local_features import read_around
from models.types import LANDMARK_COUNT

MAX_LOG_SIGMA = 3.0
"""Bound of the predicted log of the error in input pixels: one bad photo cannot run away with the likelihood."""

HEADS = 1

KEY_SHARE = 4
"""Channels per channel of the queries and keys."""

PRESENCE_WIDTH = 32

RESIDUAL_START = 0.2
"""Gain of a residual convolution before training."""

CONTRAST_FLOOR = 0.05
"""Added to the standard deviation of a crop before dividing by it, so that a flat crop stays flat."""

ATTENTION_FLOOR = 1e-6
"""Smallest denominator of the attention; φ is positive but underflows to zero for very negative keys."""


FINE_REACH_PX = (-4.0, -2.0, 0.0, 2.0, 4.0)
"""Where around a point, along each axis, the features of half the input's resolution are read."""

COARSE_REACH_PX = (-6.0, 0.0, 6.0)
"""The same for those of a quarter of it."""

LOOKS = 2

LOCAL_STEP = 0.02
"""Crop sides that an output of one moves a point by: two pixels at 96."""


@dataclass(frozen=True)
class NetworkWidths:
    """Channels of the stages; a checkpoint keeps them."""

    stem: int = 16
    shallow: int = 32
    patch: int = 48
    second: int = 96
    third: int = 128
    level_two: int = 128
    fused: int = 64
    hidden: int = 256
    local: int = 32

    def to_dict(self) -> dict[str, int]:
        """Plain values for a checkpoint."""
        return asdict(self)


class LandmarkOutput(NamedTuple):
    """What the network says about a batch of crops."""

    points: Float[Tensor, "B 68 2"]
    """Pixels of the input crop, pixel centres at +0.5."""
    guesses: Float[Tensor, "G B 68 2"]
    """The same from the dense head and after every local look, for the losses that teach each of them."""
    log_sigma: Float[Tensor, "B 68"]
    """Natural logarithm of the expected error, standard deviation per coordinate, in input pixels."""
    presence: Float[Tensor, "B"]
    """Logit that the crop shows a face."""


def positive_features(features: Tensor) -> Tensor:
    """φ = elu + 1, written with exp: several times faster than elu in half precision on a processor."""
    rising = functional.relu(features)
    return rising + (features - rising).exp()


def linear_attention(
    query: Float[Tensor, "B heads N D"], key: Float[Tensor, "B heads N D"], value: Float[Tensor, "B heads N E"]
) -> Float[Tensor, "B heads N E"]:
    """Attention in O(N D E) for queries and keys that φ has made positive: q (Σ k vᵀ) / (q Σ k).

    Both sums are divided by N, which cancels and keeps half precision in range.
    Source: Katharopoulos et al. 2020, equation 6.
    """
    context = key.transpose(2, 3) @ (value * (1.0 / value.shape[2]))
    normaliser = query @ key.mean(2, keepdim=True).transpose(2, 3)
    return (query @ context) * normaliser.clamp_min(ATTENTION_FLOOR).reciprocal()


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch normalisation, and ReLU where `activate`."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, activate: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, size, stride=stride, padding=(size - 1) // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if activate:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class ResidualMerge(nn.Module):
    """3x3 convolution that may lower the resolution, and a second one as a residual."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.merge = ConvNorm(inputs, outputs, 3, stride=stride)
        self.residual = ConvNorm(outputs, outputs, 3, activate=False)
        for module in self.residual.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, RESIDUAL_START)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D I J"]:
        """Features at the merged resolution."""
        merged = self.merge(features)
        return functional.relu(merged + self.residual(merged))


class LinearAttentionTransform(nn.Module):
    """Residual linear attention over all positions.

    Queries and keys have a quarter of the channels, and there is no feed-forward: the 3x3 convolutions between the
    transforms do its work, several times faster per operation on a processor than products this small.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % (KEY_SHARE * heads):
            raise ValueError(
                f"linear attention: {channels} channels, expected a multiple of {KEY_SHARE * heads} for {heads} heads"
            )
        self.heads = heads
        self.norm = nn.BatchNorm2d(channels)
        self.query_key = nn.Conv2d(channels, 2 * channels // KEY_SHARE, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.project = nn.Conv2d(channels, channels, 1)
        # Starts as nothing, so that the untrained network is a plain chain of merges.
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Features of the same shape that have seen the whole image."""
        height, width = features.shape[2:]
        normed = self.norm(features)
        # φ acts before the heads are split, while the memory is contiguous.
        query, key = self._heads(positive_features(self.query_key(normed)), 2).unbind(0)
        value = self._heads(self.value(normed), 1)[0]
        attended = linear_attention(query, key, value).transpose(1, 2).flatten(2)
        return features + self.project(attended.unflatten(1, (height, width)).permute(0, 3, 1, 2))

    def _heads(self, features: Float[Tensor, "B C H W"], parts: int) -> Float[Tensor, "parts B heads N D"]:
        tokens = features.permute(0, 2, 3, 1).flatten(1, 2)
        return tokens.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


class EmbeddingTransform(nn.Module):
    """Local position embedding (a depthwise convolution added to its input), then the transform."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.transform = LinearAttentionTransform(channels, heads)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Features of the same shape."""
        return self.transform(features + self.position(features))


class MergingTransform(nn.Module):
    """Local merging (convolutions that lower the resolution or widen the channels), then the transform."""

    def __init__(self, inputs: int, outputs: int, heads: int, *, stride: int) -> None:
        super().__init__()
        self.merge = ResidualMerge(inputs, outputs, stride=stride)
        self.transform = LinearAttentionTransform(outputs, heads)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D I J"]:
        """Features at the merged resolution."""
        return self.transform(self.merge(features))


class SemanticFusion(nn.Module):
    """Fine features enhanced by gated coarse ones, beside the coarse ones: concat(F1 (1 + σ(F2)), F2)."""

    def __init__(self, fine: int, coarse: int, outputs: int) -> None:
        super().__init__()
        self.fine = ConvNorm(fine, outputs, 1)
        self.coarse = ConvNorm(coarse, outputs, 1)
        self.gate = nn.Conv2d(outputs, outputs, 1)

    def forward(self, fine: Float[Tensor, "B C H W"], coarse: Float[Tensor, "B D I J"]) -> Float[Tensor, "B E H W"]:
        """Both levels at the resolution of the fine one."""
        first, second = self.fine(fine), self.coarse(coarse)
        second = second * torch.sigmoid(self.gate(second.mean((2, 3), keepdim=True)))
        second = functional.interpolate(second, size=fine.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([first * (1.0 + torch.sigmoid(second)), second], 1)


class LocalLook(nn.Module):
    """Correct points by the shallow features around them.

    A dense head reads place from a map of few cells and takes long to learn fractions of a pixel; edges right beside
    the guess tell them at once. Source: shape-indexed features, Cao et al. 2012 and Xiong and De la Torre 2013.
    """

    def __init__(self, *, fine: int, coarse: int, hidden: int, width: int) -> None:
        super().__init__()
        inputs = fine * len(FINE_REACH_PX) ** 2 + coarse * len(COARSE_REACH_PX) ** 2
        self.patch = nn.Linear(inputs, width)
        self.point = nn.Parameter(torch.zeros(LANDMARK_COUNT, width))
        self.dense = nn.Sequential(nn.Linear(LANDMARK_COUNT * width + hidden, hidden), nn.SiLU())
        self.offsets = nn.Linear(hidden, 2 * LANDMARK_COUNT)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)

    def forward(
        self,
        fine: Float[Tensor, "B C H W"],
        coarse: Float[Tensor, "B D I J"],
        hidden: Float[Tensor, "B K"],
        points: Float[Tensor, "B 68 2"],
        size_px: int,
    ) -> tuple[Float[Tensor, "B 68 2"], Float[Tensor, "B K"]]:
        """Offsets in crop sides, and the features that they were read from. Points in pixels of the crop."""
        around = torch.cat(
            [
                read_around(fine, points, FINE_REACH_PX, size_px),
                read_around(coarse, points, COARSE_REACH_PX, size_px),
            ],
            2,
        )
        seen = functional.silu(self.patch(around) + self.point).flatten(1)
        features = self.dense(torch.cat([seen, hidden], 1))
        return LOCAL_STEP * self.offsets(features).unflatten(1, (LANDMARK_COUNT, 2)), features


class HierarchicalNetwork(nn.Module):
    """Crops to 68 points, their expected errors and the presence of a face.

    The strides add up to 16 before the fusion, so an input of 128 pixels is read from an 8x8 map.
    `modes`: mean (136,) and principal directions (136, 136) of the training points, in crop sides around the crop's
    centre. The head predicts coefficients of the modes, so that the common motions (scale, place, turn of the head) are
    as easy to learn as the rare ones; the map to points stays complete.
    Raises: ValueError if the input size is not a multiple of 16.
    """

    mean_points: Float[Tensor, "136"]
    modes: Float[Tensor, "136 136"]

    def __init__(
        self,
        input_size_px: int = 128,
        *,
        widths: NetworkWidths = NetworkWidths(),
        modes: tuple[Float[Tensor, "136"], Float[Tensor, "136 136"]] | None = None,
    ) -> None:
        super().__init__()
        if input_size_px % 16:
            raise ValueError(f"landmark network: input of {input_size_px} px, expected a multiple of 16")
        self.input_size_px = input_size_px
        self.widths = widths
        self.stem = nn.Sequential(
            ConvNorm(3, widths.stem, 3, stride=2), ResidualMerge(widths.stem, widths.shallow, stride=2)
        )
        self.partition = nn.Sequential(
            nn.Conv2d(widths.shallow, widths.patch, 2, stride=2, bias=False), nn.BatchNorm2d(widths.patch)
        )
        self.level_one = nn.Sequential(
            nn.Sequential(EmbeddingTransform(widths.patch, HEADS), EmbeddingTransform(widths.patch, HEADS)),
            MergingTransform(widths.patch, widths.second, HEADS, stride=2),
            MergingTransform(widths.second, widths.third, HEADS, stride=1),
        )
        self.level_two = MergingTransform(widths.third, widths.level_two, HEADS, stride=2)
        self.fusion = SemanticFusion(widths.third, widths.level_two, widths.fused)
        cells = (input_size_px // 16) ** 2
        self.dense = nn.Sequential(nn.Linear(2 * widths.fused * cells, widths.hidden), nn.SiLU())
        self.coefficients = nn.Linear(widths.hidden, 2 * LANDMARK_COUNT)
        self.looks = nn.ModuleList(
            LocalLook(fine=widths.stem, coarse=widths.shallow, hidden=widths.hidden, width=widths.local)
            for _ in range(LOOKS)
        )
        self.log_sigma = nn.Linear(widths.hidden, LANDMARK_COUNT)
        self.presence = nn.Sequential(
            nn.Linear(widths.level_two, PRESENCE_WIDTH), nn.ReLU(), nn.Linear(PRESENCE_WIDTH, 1)
        )
        mean, directions = modes or (torch.zeros(2 * LANDMARK_COUNT), 0.1 * torch.eye(2 * LANDMARK_COUNT))
        self.register_buffer("mean_points", mean.float())
        self.register_buffer("modes", directions.float())
        nn.init.zeros_(self.coefficients.bias)
        nn.init.zeros_(self.log_sigma.weight)
        nn.init.ones_(self.log_sigma.bias)

    def forward(self, image: Float[Tensor, "B 3 S S"]) -> LandmarkOutput:
        """Points, errors and presence for crops in [0, 1]."""
        edges = self.stem[0](standardize(image))
        shallow = self.stem[1](edges)
        fine = self.level_one(self.partition(shallow))
        coarse = self.level_two(fine)
        fused = self.fusion(fine, coarse).flatten(1)
        # Half precision would round a coordinate to an eighth of a pixel, so the head computes in full.
        with torch.autocast(image.device.type, enabled=False):
            hidden = self.dense(fused.float())
            guess = self.mean_points + self.coefficients(hidden) @ self.modes
            guess = (guess.unflatten(1, (LANDMARK_COUNT, 2)) + 0.5) * self.input_size_px
            points, guesses = guess, [guess]
            for look in self.looks:
                # A look corrects points that it takes as given; only their own loss moves them.
                start = points.detach()
                offsets, hidden = look(edges, shallow, hidden, start, self.input_size_px)
                points = start + offsets * self.input_size_px
                guesses.append(points)
            return LandmarkOutput(
                points=points,
                guesses=torch.stack(guesses),
                # The error is learned beside the points and must not bend the features that find them.
                log_sigma=self.log_sigma(hidden.detach()).clamp(-MAX_LOG_SIGMA, MAX_LOG_SIGMA),
                presence=self.presence(coarse.float().mean((2, 3))).squeeze(1),
            )


def standardize(image: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Each crop with mean zero and standard deviation one half: exposure says nothing about place."""
    centred = image - image.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return centred * (0.5 / (deviation + CONTRAST_FLOOR))
