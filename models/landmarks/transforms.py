"""Building blocks of the landmark network: convolutions that merge, and transforms by attention over all positions.

Source: method.md, section C. Linear attention is Katharopoulos et al. 2020; softmax attention is there to compare.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Attention = Literal["linear", "softmax"]

KEY_SHARE = 4
"""Channels per channel of the queries and keys."""

RESIDUAL_START = 0.2
"""Gain of a residual convolution before training."""

ATTENTION_FLOOR = 1e-6
"""Smallest denominator of the attention; φ is positive but underflows to zero for very negative keys."""


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


class AttentionTransform(nn.Module):
    """Residual attention over all positions, linear in their number or by softmax.

    Queries and keys have a quarter of the channels, and there is no feed-forward: the 3x3 convolutions between the
    transforms do its work, several times faster per operation on a processor than products this small.
    """

    def __init__(self, channels: int, heads: int, attention: Attention) -> None:
        super().__init__()
        if channels % (KEY_SHARE * heads):
            raise ValueError(
                f"attention: {channels} channels, expected a multiple of {KEY_SHARE * heads} for {heads} heads"
            )
        self.heads = heads
        self.attention = attention
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
        value = self._heads(self.value(normed), 1)[0]
        if self.attention == "linear":
            # φ acts before the heads are split, while the memory is contiguous.
            query, key = self._heads(positive_features(self.query_key(normed)), 2).unbind(0)
            attended = linear_attention(query, key, value)
        else:
            query, key = self._heads(self.query_key(normed), 2).unbind(0)
            attended = functional.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).flatten(2)
        return features + self.project(attended.unflatten(1, (height, width)).permute(0, 3, 1, 2))

    def _heads(self, features: Float[Tensor, "B C H W"], parts: int) -> Float[Tensor, "parts B heads N D"]:
        tokens = features.permute(0, 2, 3, 1).flatten(1, 2)
        return tokens.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


class EmbeddingTransform(nn.Module):
    """Local position embedding (a depthwise convolution added to its input), then the transform."""

    def __init__(self, channels: int, heads: int, attention: Attention = "linear") -> None:
        super().__init__()
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.transform = AttentionTransform(channels, heads, attention)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Features of the same shape."""
        return self.transform(features + self.position(features))


class MergingTransform(nn.Module):
    """Local merging (convolutions that lower the resolution or widen the channels), then the transform."""

    def __init__(self, inputs: int, outputs: int, heads: int, *, stride: int, attention: Attention = "linear") -> None:
        super().__init__()
        self.merge = ResidualMerge(inputs, outputs, stride=stride)
        self.transform = AttentionTransform(outputs, heads, attention)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D I J"]:
        """Features at the merged resolution."""
        return self.transform(self.merge(features))
