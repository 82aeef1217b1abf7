"""Where the faces of a photo are: one small convolutional network over a pyramid of the photo, decoded without it.

Every step of the pyramid halves the photo and is read by the same weights, so a face looks the same to the network
whatever its size, and sizes need not be learned one by one. A cell says whether a face of the step's size is centred
near it, where exactly, how large and how far turned; side and turn are those of `framing.tight_frame`.
Source: anchor-free detection, Tian et al. 2019 (FCOS) and Zhou et al. 2019 (CenterNet); rotation as a unit vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from models.landmarks.joint_norm import convolve_jointly, merge_jointly
from models.landmarks.transforms import ConvNorm, ResidualMerge

SIZE_MULTIPLE = 32
"""Height and width of the network's input are multiples of this."""

LEVELS = 5
"""Steps of the pyramid: the photo itself down to a sixteenth of it."""

STRIDE = 8
"""Pixels of its step between neighbouring cells."""

REFERENCE_SIDE = 24.0
"""Side of the faces that a step is made for, in its pixels."""

OFFSET_UNIT = 16.0
"""Pixels of its step that an offset of one moves the centre by."""

LONGEST_PX = 320
"""Photos are reduced to this longer side; faces of 24 pixels and more are then found in a photo of 640."""

FIRST_SCORE = 0.02
"""Probability of a face in a cell before training: cells with one are rare, and a loss that starts high is noisy."""

MAX_LOG_SIDE = 3.0
"""Bound of the predicted log of side / reference, so that an untrained network cannot overflow."""

MAX_CANDIDATES = 400
"""Cells per photo that are looked at, surest first."""

SAME_OVERLAP = 0.35
"""Squares that share more than this of their union are one face."""

INSIDE_OVERLAP = 0.7
"""A less sure square with more than this of it inside another is a part of that face."""


@dataclass(frozen=True)
class FinderWidths:
    """Channels of the stages; a checkpoint keeps them."""

    stem: int = 16
    shallow: int = 24
    fine: int = 48
    coarse: int = 96
    head: int = 48

    def to_dict(self) -> dict[str, int]:
        """Plain values for a checkpoint."""
        return asdict(self)


class FinderOutput(NamedTuple):
    """What the network says in every cell: step by step from fine to coarse, in rows from top left."""

    score: Float[Tensor, "B N"]
    """Logit that a face of the step's size is centred near the cell."""
    offset: Float[Tensor, "B N 2"]
    """From the cell to the centre of the face, in `OFFSET_UNIT`."""
    log_side: Float[Tensor, "B N"]
    """Natural logarithm of the side relative to `REFERENCE_SIDE`."""
    turn: Float[Tensor, "B N 2"]
    """Cosine and sine of the roll, times any positive number."""


class FinderArrays(NamedTuple):
    """`FinderOutput` outside the network."""

    score: Float[np.ndarray, "B N"]
    offset: Float[np.ndarray, "B N 2"]
    log_side: Float[np.ndarray, "B N"]
    turn: Float[np.ndarray, "B N 2"]


@dataclass(frozen=True)
class FoundBoxes:
    """Upright squares around the faces of one photo, largest first."""

    centre: Float[np.ndarray, "N 2"]
    """Pixels of the photo, pixel centres at +0.5."""
    side: Float[np.ndarray, "N"]
    angle: Float[np.ndarray, "N"]
    """Radians, clockwise in the image; all three as in `framing.tight_frame`."""
    score: Float[np.ndarray, "N"]
    """Probability of a face, in (0, 1)."""

    def __len__(self) -> int:
        return len(self.side)

    def take(self, rows: np.ndarray) -> FoundBoxes:
        """The boxes of those rows."""
        return FoundBoxes(self.centre[rows], self.side[rows], self.angle[rows], self.score[rows])


FinderRun = Callable[[Float[np.ndarray, "B 3 H W"]], tuple[Any, Any, Any, Any]]
"""Pixels in [0, 1] to arrays in the order of `FinderOutput`: an onnxruntime session's wrapper."""


class FaceFinder(nn.Module):
    """Photos to cells; height and width must be multiples of `SIZE_MULTIPLE`, at least twice that."""

    def __init__(self, *, widths: FinderWidths | None = None) -> None:
        super().__init__()
        self.widths = widths = widths or FinderWidths()
        self.stem = ConvNorm(3, widths.stem, 3, stride=2)
        self.shallow = ConvNorm(widths.stem, widths.shallow, 3, stride=2)
        self.fine = ResidualMerge(widths.shallow, widths.fine, stride=2)
        # Half the resolution is enough to see what surrounds a face, at a quarter of the cost.
        self.coarse = ResidualMerge(widths.fine, widths.coarse, stride=1)
        self.context = ResidualMerge(widths.coarse, widths.coarse, stride=1)
        self.lift = nn.Conv2d(widths.coarse, widths.fine, 1)
        self.head = ConvNorm(widths.fine, widths.head, 3)
        self.read = nn.Conv2d(widths.head, 6, 1)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.read.bias[0] = np.log(FIRST_SCORE / (1.0 - FIRST_SCORE))  # type: ignore[index]
            self.read.bias[4] = 1.0  # type: ignore[index]

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> FinderOutput:
        """Cells of all steps, for pixels in [0, 1]."""
        # The middle grey is no edge against the zeros that the convolutions pad with.
        steps = [image - 0.5]
        for _ in range(1, LEVELS):
            steps.append(functional.avg_pool2d(steps[-1], 2))
        fine = merge_jointly(self.fine, convolve_jointly(self.shallow, convolve_jointly(self.stem, steps)))
        # Pooled, because in half precision oneDNN gets the gradient of a strided convolution of a single cell wrong.
        coarse = merge_jointly(self.coarse, [functional.avg_pool2d(step, 2, ceil_mode=True) for step in fine])
        context = [self.lift(step) for step in merge_jointly(self.context, coarse)]
        joined = [
            functional.relu(near + functional.interpolate(around, size=near.shape[2:], mode="nearest"))
            for near, around in zip(fine, context, strict=True)
        ]
        cells = torch.cat([self.read(step).flatten(2) for step in convolve_jointly(self.head, joined)], 2)
        return FinderOutput(
            cells[:, 0],
            cells[:, 1:3].transpose(1, 2),
            cells[:, 3].clamp(-MAX_LOG_SIDE, MAX_LOG_SIDE),
            cells[:, 4:].transpose(1, 2),
        )


def cell_grid(height: int, width: int) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N"]]:
    """Centre of every cell of an input of that size, in its pixels, and how often its step is reduced."""
    centres, scales = [], []
    for level in range(LEVELS):
        scale = 2.0**level
        rows, columns = (-(-(extent >> level) // STRIDE) for extent in (height, width))
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        # Convolutions of stride 2 with one pixel of padding are centred on the first pixel of every pair.
        centres.append((np.stack([x.ravel(), y.ravel()], 1) * STRIDE + 0.5) * scale)
        scales.append(np.full(rows * columns, scale))
    return np.concatenate(centres), np.concatenate(scales)


def find_faces(
    run: nn.Module | FinderRun,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    *,
    min_score: float = 0.5,
    longest_px: int = LONGEST_PX,
    batch_size: int = 16,
) -> list[FoundBoxes]:
    """Faces of each RGB photo, largest first; no face is a `FoundBoxes` of length 0.

    `run`: the network, or anything that gives the same arrays for float32 pixels (B, 3, H, W) in [0, 1].
    Photos are never enlarged; photos of equal reduced size run together.
    """
    call = _network_run(run) if isinstance(run, nn.Module) else run
    reduced = [_reduced(image, longest_px) for image in images]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, pixels in enumerate(reduced):
        groups.setdefault(pixels.shape[:2], []).append(index)
    found: dict[int, FoundBoxes] = {}
    for (height, width), members in groups.items():
        padded = tuple(max(2, -(-extent // SIZE_MULTIPLE)) * SIZE_MULTIPLE for extent in (height, width))
        grid = cell_grid(*padded)
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            # The same grey that the convolutions see beyond the border.
            pixels = np.full((len(part), 3, *padded), 127.5, np.float32)
            for row, index in enumerate(part):
                pixels[row, :, :height, :width] = reduced[index].transpose(2, 0, 1)
            pixels *= 1.0 / 255.0
            output = FinderArrays(*(np.asarray(array, np.float64) for array in call(pixels)))
            for row, index in enumerate(part):
                boxes = merge_boxes(decode_cells(output, row, grid, min_score=min_score))
                factor = np.array(images[index].shape[1::-1]) / (width, height)
                found[index] = FoundBoxes(
                    boxes.centre * factor, boxes.side * float(factor.mean()), boxes.angle, boxes.score
                )
    return [found[index] for index in range(len(images))]


def decode_cells(
    output: FinderArrays,
    row: int,
    grid: tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N"]],
    *,
    min_score: float,
) -> FoundBoxes:
    """Boxes of the cells of one photo of a batch that are sure enough, surest first, in input pixels."""
    centres, scales = grid
    logit = output.score[row]
    rows = np.flatnonzero(logit >= np.log(min_score / (1.0 - min_score)))
    rows = rows[np.argsort(-logit[rows], kind="stable")][:MAX_CANDIDATES]
    scale = scales[rows]
    turn = output.turn[row][rows]
    return FoundBoxes(
        centres[rows] + output.offset[row][rows] * (OFFSET_UNIT * scale)[:, None],
        REFERENCE_SIDE * scale * np.exp(output.log_side[row][rows]),
        np.arctan2(turn[:, 1], turn[:, 0]),
        1.0 / (1.0 + np.exp(-logit[rows])),
    )


def merge_boxes(boxes: FoundBoxes) -> FoundBoxes:
    """One box per face, largest first: the mean of those that agree with the surest, weighted by their scores.

    Squares are compared as if upright. A face may lie over part of a larger one, so a sure small box removes no large
    one, but a small box inside a surer large one is part of that face. Input: surest first.
    """
    overlap = _intersections(boxes)
    area = boxes.side**2
    same = overlap > SAME_OVERLAP * (area[:, None] + area - overlap)
    # [i, j]: j lies inside i.
    inside = overlap > INSIDE_OVERLAP * area
    left = np.ones(len(boxes), bool)
    centre, side, angle, score = [], [], [], []
    for first in range(len(boxes)):
        if not left[first]:
            continue
        group = np.flatnonzero(left & same[first])
        left &= ~(same[first] | (inside[first] & (area <= area[first])))
        weight = boxes.score[group] / boxes.score[group].sum()
        centre.append(weight @ boxes.centre[group])
        side.append(np.exp(weight @ np.log(boxes.side[group])))
        angle.append(np.arctan2(weight @ np.sin(boxes.angle[group]), weight @ np.cos(boxes.angle[group])))
        score.append(boxes.score[first])
    merged = FoundBoxes(np.array(centre).reshape(-1, 2), np.array(side), np.array(angle), np.array(score))
    return merged.take(np.argsort(-merged.side, kind="stable"))


def finder_content(network: FaceFinder) -> dict[str, Any]:
    """What a checkpoint must hold for `load_finder`."""
    return {"kind": "finder", "weights": network.state_dict(), "widths": network.widths.to_dict()}


def load_finder(content: dict[str, Any]) -> FaceFinder:
    """Network in evaluation mode from the content of its checkpoint.

    Raises: ValueError if the content is not that of a face finder.
    """
    if content.get("kind") != "finder":
        raise ValueError(
            f"finder checkpoint: kind {content.get('kind')!r}, expected 'finder'; run train_detector again"
        )
    network = FaceFinder(widths=FinderWidths(**content["widths"]))
    network.load_state_dict(content["weights"])
    return network.eval()


def _reduced(image: UInt8[np.ndarray, "H W 3"], longest_px: int) -> UInt8[np.ndarray, "h w 3"]:
    factor = longest_px / max(image.shape[:2])
    if factor >= 1.0:
        return image
    size = [max(1, round(extent * factor)) for extent in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _network_run(network: nn.Module) -> FinderRun:
    device = next(network.parameters()).device

    @torch.inference_mode()
    def run(pixels: Float[np.ndarray, "B 3 H W"]) -> tuple[Any, Any, Any, Any]:
        output: FinderOutput = network(torch.from_numpy(pixels).to(device))
        score, offset, log_side, turn = (value.float().cpu().numpy() for value in output)
        return score, offset, log_side, turn

    return run


def _intersections(boxes: FoundBoxes) -> Float[np.ndarray, "N N"]:
    low = boxes.centre - boxes.side[:, None] / 2.0
    high = boxes.centre + boxes.side[:, None] / 2.0
    extent = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    return np.asarray(np.maximum(extent, 0.0).prod(2))
