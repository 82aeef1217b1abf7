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

from models.landmarks.heads import MAX_LOG_SIGMA, ConventionMap, DenseHead, LocalLook, OutlineHead
from models.landmarks.transforms import Attention, ConvNorm, EmbeddingTransform, MergingTransform, ResidualMerge
from models.types import JAW_COUNT, LANDMARK_COUNT

HEADS = 1

PRESENCE_WIDTH = 32

CONTRAST_FLOOR = 0.05
"""Added to the standard deviation of a crop before dividing by it, so that a flat crop stays flat."""

LOOKS = 2


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

    def times(self, factor: float) -> NetworkWidths:
        """All widths so many times as large, as multiples of sixteen."""
        return NetworkWidths(**{name: max(16, 16 * round(width * factor / 16)) for name, width in asdict(self).items()})

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
    shifts: Float[Tensor, "K B 68 2"]
    """From `points` to the same in other conventions: the first of annotated photos, others of other face models."""
    annotated: Float[Tensor, "B 68 2"]
    """`points` in the convention of annotated photos; the same as `points` where none were learned."""
    dense: Float[Tensor, "B D 2"]
    """Further vertices of the face model, pixels of the input crop; none without a dense head."""
    dense_log_sigma: Float[Tensor, "B D"]
    outline: Float[Tensor, "B 17 2"]
    """The jaw where people put it, on the visible outline, pixels of the crop; that of `points` without a head."""


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


class HierarchicalNetwork(nn.Module):
    """Crops to 68 points, their expected errors and the presence of a face.

    The strides add up to 16 before the fusion, so an input of 128 pixels is read from an 8x8 map.
    `modes`: mean (136,) and principal directions (136, 136) of the training points, in crop sides around the crop's
    centre. The head predicts coefficients of the modes, so that the common motions (scale, place, turn of the head) are
    as easy to learn as the rare ones; the map to points stays complete.
    `conventions`: how many conventions of points it learns beside the face model's.
    `dense_points`: how many further vertices the network finds; `dense_modes` as in `DenseHead`, for training.
    `outline`: whether it finds the visible outline of the jaw.
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
        attention: Attention = "linear",
        conventions: int = 1,
        dense_points: int = 0,
        dense_modes: tuple[Float[Tensor, "E"], Float[Tensor, "M E"]] | None = None,
        outline: bool = False,
    ) -> None:
        super().__init__()
        if input_size_px % 16:
            raise ValueError(f"landmark network: input of {input_size_px} px, expected a multiple of 16")
        self.input_size_px = input_size_px
        self.widths = widths
        self.attention = attention
        if conventions < 1:
            raise ValueError("landmark network: no conventions, expected at least that of annotated photos")
        self.dense_points = dense_points
        self.stem = nn.Sequential(
            ConvNorm(3, widths.stem, 3, stride=2), ResidualMerge(widths.stem, widths.shallow, stride=2)
        )
        self.partition = nn.Sequential(
            nn.Conv2d(widths.shallow, widths.patch, 2, stride=2, bias=False), nn.BatchNorm2d(widths.patch)
        )
        self.level_one = nn.Sequential(
            nn.Sequential(
                EmbeddingTransform(widths.patch, HEADS, attention=attention),
                EmbeddingTransform(widths.patch, HEADS, attention=attention),
            ),
            MergingTransform(widths.patch, widths.second, HEADS, stride=2, attention=attention),
            MergingTransform(widths.second, widths.third, HEADS, stride=1, attention=attention),
        )
        self.level_two = MergingTransform(widths.third, widths.level_two, HEADS, stride=2, attention=attention)
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
        self.conventions = nn.ModuleList(ConventionMap() for _ in range(conventions))
        for convention in self.conventions if modes else ():
            convention.set_reference(mean.float().unflatten(0, (LANDMARK_COUNT, 2)))  # type: ignore[operator]
        self.dense_head = DenseHead(widths.hidden, dense_points, dense_modes) if dense_points else None
        shape = {"fine": widths.stem, "coarse": widths.shallow, "hidden": widths.hidden, "width": widths.local}
        self.outline_head = OutlineHead(**shape) if outline else None

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
            dense, dense_log_sigma = self._dense(hidden)
            shifts = torch.stack([convention(points.detach()) for convention in self.conventions])
            return LandmarkOutput(
                points=points,
                guesses=torch.stack(guesses),
                # The error is learned beside the points and must not bend the features that find them.
                log_sigma=self.log_sigma(hidden.detach()).clamp(-MAX_LOG_SIGMA, MAX_LOG_SIGMA),
                presence=self.presence(coarse.float().mean((2, 3))).squeeze(1),
                shifts=shifts,
                annotated=points + shifts[0],
                dense=dense,
                dense_log_sigma=dense_log_sigma,
                outline=self._outline(edges, shallow, hidden, points),
            )

    def _outline(self, edges: Tensor, shallow: Tensor, hidden: Tensor, points: Tensor) -> Float[Tensor, "B 17 2"]:
        if self.outline_head is None:
            return points[:, :JAW_COUNT]
        outline: Tensor = self.outline_head(edges, shallow, hidden, points, self.input_size_px)
        return outline

    def _dense(self, hidden: Float[Tensor, "B K"]) -> tuple[Float[Tensor, "B D 2"], Float[Tensor, "B D"]]:
        if self.dense_head is None:
            return hidden.new_zeros(hidden.shape[0], 0, 2), hidden.new_zeros(hidden.shape[0], 0)
        points, log_sigma = self.dense_head(hidden)
        return (points + 0.5) * self.input_size_px, log_sigma


def standardize(image: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Each crop with mean zero and standard deviation one half: exposure says nothing about place."""
    centred = image - image.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return centred * (0.5 / (deviation + CONTRAST_FLOOR))
