"""What reads points from the network's features: looks around guesses, maps of conventions, dense points, outlines."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.landmarks.local_features import read_around
from models.types import JAW_COUNT, LANDMARK_COUNT

OUTLINE_STEP = 0.1
"""Crop sides that an output of one moves a jaw point by: in profile the outline lies far from the jaw's vertices."""

LAYOUT_SCALE = 3.0
"""Brings coordinates in crop sides to the size of features."""

MAX_LOG_SIGMA = 3.0
"""Bound of the predicted log of the error in input pixels: one bad photo cannot run away with the likelihood."""

FINE_REACH_PX = (-4.0, -2.0, 0.0, 2.0, 4.0)
"""Where around a point, along each axis, the features of half the input's resolution are read."""

COARSE_REACH_PX = (-6.0, 0.0, 6.0)
"""The same for those of a quarter of it."""

LOCAL_STEP = 0.02
"""Crop sides that an output of one moves a point by: two pixels at 96."""

CONVENTION_RANK = 8
"""Ways in which the shift from model points to annotated ones may depend on the face."""

MAX_DENSE_MODES = 160


class LocalLook(nn.Module):
    """Correct points by the shallow features around them.

    A dense head reads place from a map of few cells and takes long to learn fractions of a pixel; edges right beside
    the guess tell them at once. Source: shape-indexed features, Cao et al. 2012 and Xiong and De la Torre 2013.
    """

    def __init__(self, *, fine: int, coarse: int, hidden: int, width: int, points: int = LANDMARK_COUNT) -> None:
        super().__init__()
        inputs = fine * len(FINE_REACH_PX) ** 2 + coarse * len(COARSE_REACH_PX) ** 2
        self.patch = nn.Linear(inputs, width)
        self.point = nn.Parameter(torch.zeros(points, width))
        self.dense = nn.Sequential(nn.Linear(points * width + hidden, hidden), nn.SiLU())
        self.offsets = nn.Linear(hidden, 2 * points)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)

    def forward(
        self,
        fine: Float[Tensor, "B C H W"],
        coarse: Float[Tensor, "B D I J"],
        hidden: Float[Tensor, "B K"],
        points: Float[Tensor, "B L 2"],
        size_px: int,
    ) -> tuple[Float[Tensor, "B L 2"], Float[Tensor, "B K"]]:
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
        return LOCAL_STEP * self.offsets(features).unflatten(1, (-1, 2)), features


class ConventionMap(nn.Module):
    """From the points of the face model to those of annotated photos, or of another face model.

    A face model has its points at fixed vertices; an annotated jawline follows the visible outline, and brows and nose
    end elsewhere. The shift is read from the layout of the points alone, in the face's own upright frame: whether a
    photo is rendered or real must not decide where its points lie. Starts as no shift at all.
    """

    reference: Float[Tensor, "68 2"]

    def __init__(self) -> None:
        super().__init__()
        # Crop sides around the centre; whoever knows the training points sets it.
        self.register_buffer("reference", 0.1 * torch.ones(LANDMARK_COUNT, 2))
        self.shift = nn.Parameter(torch.zeros(LANDMARK_COUNT, 2))
        self.read = nn.Linear(2 * LANDMARK_COUNT, CONVENTION_RANK, bias=False)
        self.move = nn.Linear(CONVENTION_RANK, 2 * LANDMARK_COUNT, bias=False)
        nn.init.zeros_(self.move.weight)

    def set_reference(self, points: Float[Tensor, "68 2"]) -> None:
        """Mean points of upright faces, in any unit."""
        centred = points - points.mean(0)
        self.reference.copy_(centred / (centred.amax(0) - centred.amin(0)).amax())

    def forward(self, points: Float[Tensor, "B 68 2"]) -> Float[Tensor, "B 68 2"]:
        """Shift of each point, in the points' own unit."""
        centred = points - points.mean(1, keepdim=True)
        # The similarity that takes the reference to the face, in closed form: x' = cosine x - sine y and so on.
        power = self.reference.square().sum() + 1e-6
        cosine = (centred * self.reference).sum((1, 2)) / power
        sine = (centred[..., 1] * self.reference[:, 0] - centred[..., 0] * self.reference[:, 1]).sum(1) / power
        turn = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
        size = (cosine.square() + sine.square() + 1e-6)[:, None, None]
        upright = (centred @ turn) / size
        individual = self.move(self.read((upright - self.reference).flatten(1)))
        shift = self.shift + individual.unflatten(1, (LANDMARK_COUNT, 2))
        return shift @ turn.transpose(1, 2)


class DenseHead(nn.Module):
    """Further vertices of the face model, as coefficients of the principal directions in which they move together.

    `modes`: mean (2D,) and directions (M, 2D) of the vertices in training crops, in crop sides around the centre.
    """

    mean: Float[Tensor, "E"]
    directions: Float[Tensor, "M E"]

    def __init__(self, hidden: int, points: int, modes: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        count = min(2 * points, MAX_DENSE_MODES)
        mean, directions = modes or (torch.zeros(2 * points), torch.zeros(count, 2 * points))
        self.register_buffer("mean", mean.float())
        self.register_buffer("directions", directions.float())
        self.coefficients = nn.Linear(hidden, count)
        self.log_sigma = nn.Linear(hidden, points)
        nn.init.zeros_(self.coefficients.bias)
        nn.init.zeros_(self.log_sigma.weight)
        nn.init.ones_(self.log_sigma.bias)

    def forward(self, hidden: Float[Tensor, "B K"]) -> tuple[Float[Tensor, "B D 2"], Float[Tensor, "B D"]]:
        """Points in crop sides around the centre, and the logarithm of their expected errors."""
        points = (self.mean + self.coefficients(hidden) @ self.directions).unflatten(1, (-1, 2))
        return points, self.log_sigma(hidden.detach()).clamp(-MAX_LOG_SIGMA, MAX_LOG_SIGMA)


class OutlineHead(nn.Module):
    """From the jaw at the face model's vertices to where people put it, on the visible outline; starts as no shift.

    The layout of the points says how far the head is turned, and most of the shift with it; a look around that guess
    says the rest. The network's last features are read as they are: where the outline lies teaches them nothing about
    the points, and its large errors early in training have silenced them for good.
    """

    def __init__(self, *, fine: int, coarse: int, hidden: int, width: int) -> None:
        super().__init__()
        self.guess = nn.Linear(hidden + 2 * LANDMARK_COUNT, 2 * JAW_COUNT)
        nn.init.zeros_(self.guess.weight)
        nn.init.zeros_(self.guess.bias)
        self.look = LocalLook(fine=fine, coarse=coarse, hidden=hidden, width=width, points=JAW_COUNT)

    def forward(
        self,
        fine: Float[Tensor, "B C H W"],
        coarse: Float[Tensor, "B D I J"],
        hidden: Float[Tensor, "B K"],
        points: Float[Tensor, "B 68 2"],
        size_px: int,
    ) -> Float[Tensor, "B 17 2"]:
        """The jaw on the outline; points and result in pixels of the crop."""
        hidden, points = hidden.detach(), points.detach()
        seen = torch.cat([hidden, LAYOUT_SCALE * (points / size_px - 0.5).flatten(1)], 1)
        shift = OUTLINE_STEP * size_px * self.guess(seen).unflatten(1, (JAW_COUNT, 2))
        outline = points[:, :JAW_COUNT] + shift
        offsets, _ = self.look(fine, coarse, hidden, outline.detach(), size_px)
        return outline + size_px * offsets
