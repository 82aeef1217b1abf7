"""What the face finder minimises: which cells hold a face, and where the face lies that a cell holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.nn import functional

from models.landmarks.augment import Augmentation, jitter_colours
from models.landmarks.finder import OFFSET_UNIT, REFERENCE_SIDE, SIZE_MULTIPLE, FinderOutput, cell_grid
from models.landmarks.finder_canvases import CanvasComposer, Canvases, CanvasSettings
from models.landmarks.learning import LandmarkSamples

COLOURS = Augmentation(grey_share=0.15, brightness=0.1, contrast=0.3, colour=0.12, cutout_share=0.1)
"""Stronger than for points: nothing but the face itself should tell."""

FITTING_OCTAVES = 0.65
"""A face belongs to the steps in which its side is within this of the reference; neighbouring steps share some."""

SMALLEST_OCTAVES = -1.0
"""In the finest step smaller faces belong, too, for want of a finer one."""

DOUBTFUL_OCTAVES = 1.1
"""Cells on a face that is nearly of the step's size count neither way."""

NEAR = 0.25
"""Cells closer to the centre than this share of the side hold the face; the closest always does."""

DOUBTFUL = 0.45

FAR = 0.6
"""Not even the closest cell holds a face whose centre is farther away: too much of it is cut off."""

SEEN = 0.4
"""Share of its points from which a face must be found; from `HINTED` on it may be."""

HINTED = 0.1

FOCUS = 2.0
"""Exponent that keeps easy cells, nearly all, from deciding. Source: Lin et al. 2017, focal loss."""

MIN_SIZE_PX = 128
"""Smallest canvas whose coarsest step is no single pixel before the last strided convolution; see `FaceFinder`."""

ERROR_SOFTNESS = 0.05
"""Errors below this share of the side are squared."""


@dataclass(frozen=True)
class FinderSettings:
    """Make-up of a batch and weights of the terms."""

    batch_size: int = 16
    centre_weight: float = 6.0
    side_weight: float = 3.0
    turn_weight: float = 0.5


class FinderObjective:
    """Loss of one step: focal loss of the cells, errors of centre, side and roll where a face is.

    Raises: ValueError if the canvases are too small or no multiple of the network's strides.
    """

    def __init__(
        self,
        samples: LandmarkSamples,
        *,
        size_px: int = 128,
        settings: FinderSettings | None = None,
        canvases: CanvasSettings | None = None,
        augmentation: Augmentation = COLOURS,
    ) -> None:
        if size_px < MIN_SIZE_PX or size_px % SIZE_MULTIPLE:
            raise ValueError(
                f"face finder: canvases of {size_px} px, expected a multiple of {SIZE_MULTIPLE} from {MIN_SIZE_PX} on"
            )
        self.settings = settings or FinderSettings()
        self.composer = CanvasComposer(samples, size_px=size_px, settings=canvases)
        self.augmentation = augmentation
        self.grid = cell_grid(size_px, size_px)

    def __call__(self, network: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Compose a batch and measure it; all randomness comes from the generator's seed."""
        random = np.random.default_rng(generator.initial_seed())
        canvases = self.composer.compose(self.settings.batch_size, random)
        pixels = jitter_colours(torch.from_numpy(canvases.images), augmentation=self.augmentation, generator=random)
        device = next(network.parameters()).device
        output: FinderOutput = network(pixels.to(device, memory_format=torch.channels_last))
        targets = cell_targets(canvases, self.grid)
        settings, named = self.settings, cell_losses(output, targets, device)
        total = (
            named["score"]
            + settings.centre_weight * named["centre"]
            + settings.side_weight * named["side"]
            + settings.turn_weight * named["turn"]
        )
        return total, {name: value.detach() for name, value in named.items()}


@dataclass(frozen=True)
class CellTargets:
    """What the cells of a batch should say; the last four list the cells that hold a face."""

    face: Bool[np.ndarray, "B N"]
    counts: Bool[np.ndarray, "B N"]
    """Whether a cell counts as with or without a face."""
    offset: Float[np.ndarray, "K 2"]
    """In `OFFSET_UNIT`."""
    unit: Float[np.ndarray, "K"]
    """`OFFSET_UNIT` of the cell's step in sides of its face."""
    log_side: Float[np.ndarray, "K"]
    turn: Float[np.ndarray, "K 2"]


def cell_targets(canvases: Canvases, grid: tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N"]]) -> CellTargets:
    """Cells in or near the middle of each face, in the steps whose size it has."""
    centres, scales = grid
    distance = np.linalg.norm(centres - canvases.centre[:, None], axis=2) / canvases.side[:, None]
    octaves = np.log2(canvases.side[:, None] / (REFERENCE_SIDE * scales))
    lowest = np.where(scales == 1.0, SMALLEST_OCTAVES, -FITTING_OCTAVES)
    fits = (octaves >= lowest) & (octaves <= FITTING_OCTAVES)
    closest = np.zeros_like(fits)
    for scale in np.unique(scales):
        step = np.flatnonzero(scales == scale)
        if len(canvases.side):
            closest[np.arange(len(fits)), step[distance[:, step].argmin(1)]] = True
    seen = (canvases.visible >= SEEN)[:, None]
    holds = fits & seen & ((distance < NEAR) | (closest & (distance < FAR)))
    doubtful = (canvases.visible >= HINTED)[:, None] & (np.abs(octaves) < DOUBTFUL_OCTAVES)
    doubtful &= distance < np.where(seen, DOUBTFUL, FAR)
    # Of two faces, a cell holds the one whose centre is closer.
    away = np.where(holds, distance, np.inf)
    count = len(canvases.images)
    best = np.full((count, len(scales)), np.inf)
    np.minimum.at(best, canvases.canvas, away)
    face = np.isfinite(best)
    counts = np.ones_like(face)
    np.logical_and.at(counts, canvases.canvas, ~doubtful)
    winner = np.zeros((count, len(scales)), np.int64)
    for row in range(len(holds)):
        image = canvases.canvas[row]
        winner[image][holds[row] & (away[row] == best[image])] = row
    chosen, cell = winner[face], np.nonzero(face)[1]
    unit = OFFSET_UNIT * scales[cell]
    side, angle = canvases.side[chosen], canvases.angle[chosen]
    return CellTargets(
        face,
        counts | face,
        (canvases.centre[chosen] - centres[cell]) / unit[:, None],
        unit / side,
        np.log(side / (REFERENCE_SIDE * scales[cell])),
        np.stack([np.cos(angle), np.sin(angle)], 1),
    )


def cell_losses(output: FinderOutput, targets: CellTargets, device: torch.device) -> dict[str, Tensor]:
    """Focal loss per cell with a face, and mean errors of centre, side (both in sides) and roll over those cells."""
    face = torch.from_numpy(targets.face).to(device)
    counts = torch.from_numpy(targets.counts).to(device)
    score = output.score.float()
    wrong = torch.where(face, 1.0 - score.sigmoid(), score.sigmoid())
    entropy = functional.binary_cross_entropy_with_logits(score, face.float(), reduction="none")
    number = face.sum().clamp_min(1)
    focal = (wrong**FOCUS * entropy * counts).sum() / number

    def expected(values: Float[np.ndarray, "K ..."]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(device)

    centre = (output.offset[face].float() - expected(targets.offset)) * expected(targets.unit)[:, None]
    side = output.log_side[face].float() - expected(targets.log_side)
    turn = output.turn[face].float() - expected(targets.turn)
    return {
        "score": focal,
        "centre": _softened(centre).sum() / number,
        "side": _softened(side).sum() / number,
        "turn": turn.square().sum() / number,
    }


def _softened(error: Tensor) -> Tensor:
    return functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=ERROR_SOFTNESS)
