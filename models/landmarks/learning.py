"""What the landmark network minimises: errors on real crops and warped copies, its own doubt, presence of a face."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn

from models.landmarks.augment import (
    Augmentation,
    faceless_crops,
    jitter_colours,
    points_in_frames,
    tight_crops,
    tight_noise,
    wide_crops,
    wide_noise,
)
from models.landmarks.framing import FLIP_PERMUTATION, frame_affine
from models.landmarks.heads import MAX_DENSE_MODES
from models.landmarks.hierarchical import LandmarkOutput
from models.losses.landmarks import error_likelihood, presence_loss, wing_loss
from models.types import JAW_COUNT

Network = TypeVar("Network", bound=nn.Module)

MODE_CROPS = 2000
"""Crops of each kind from which the principal directions are found."""

MODE_FLOOR = 0.003
"""Shortest direction, in crop sides: finer motions than a third of a pixel are learned at this pace."""


@dataclass(frozen=True)
class LandmarkSamples:
    """Annotated photos in memory."""

    images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    points: Float[np.ndarray, "M 68 2"]
    """Pixels of the photos."""
    mean_shape: Float[np.ndarray, "68 2"]
    convention: Int[np.ndarray, "M"] | None = None
    """Where each photo has its points: 0 where the face model has them, 1 where annotated photos do, 2 and up where
    other face models do; None: all alike."""
    weight: Float[np.ndarray, "M"] | None = None
    """How far the points can be trusted, 1 fully; None: all fully."""
    dense: Float[np.ndarray, "M D 2"] | None = None
    """Further vertices of the face model, pixels of the photos; NaN where they are not known."""
    dense_mirror: Int[np.ndarray, "D"] | None = None
    """Index of the mirror image of every dense point."""
    outline: Float[np.ndarray, "M 17 2"] | None = None
    """The jaw where people put it, on the visible outline, pixels of the photos; NaN where it is not known."""
    annotated: Float[np.ndarray, "M 68 2"] | None = None
    """Points of rendered photos where annotated photos would have them, pixels of the photos; NaN where not known.
    With them renders alone teach the shift between the two; without, photos teach it, and bend it to their liking."""

    def mixed(self) -> bool:
        """Whether there is more than one convention."""
        return self.convention is not None and bool((self.convention != self.convention[0]).any())


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the terms and make-up of a batch."""

    batch_size: int
    """Real crops; the warped copies and the crops without a face come on top."""
    wing_width_px: float = 10.0
    wing_curvature_px: float = 2.0
    augmented_weight: float = 1.0
    augmented_share: float = 0.5
    """Warped copies per real crop."""
    consistency_weight: float = 0.0
    likelihood_weight: float = 0.1
    presence_weight: float = 0.5
    faceless_share: float = 0.125
    """Crops without a face per real crop."""
    annotated_share: float = 0.25
    """Real crops of annotated photos in a batch, where there are rendered ones beside them."""
    dense_weight: float = 0.5
    outline_weight: float = 0.5
    shift_weight: float = 0.5


class LandmarkObjective:
    """Loss of one step: Wing on tight crops, λ Wing on warped copies, likelihood of the errors, presence.

    `rows` lists the faces to draw from, as the pose balance chose them; (index, flipped) each.
    """

    def __init__(
        self,
        samples: LandmarkSamples,
        rows: Int[np.ndarray, "R 2"],
        *,
        settings: ObjectiveSettings,
        size_px: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.samples = samples
        self.rows = rows
        self.settings = settings
        self.size_px = size_px
        self.augmentation = augmentation or Augmentation()

    def __call__(self, network: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a batch and measure it; all randomness comes from the generator's seed."""
        settings = self.settings
        device = next(network.parameters()).device
        batch = self._batch(np.random.default_rng(generator.initial_seed()))
        points = batch.points.to(device)
        output: LandmarkOutput = network(batch.images.to(device, memory_format=torch.channels_last))
        # Annotated points are compared with what the network makes of the model's, guess by guess.
        found, guesses = output.points[: batch.faces], output.guesses[:, : batch.faces]
        if batch.convention is not None:
            shifts = output.shifts[:, : batch.faces]
            if batch.annotated is not None:
                shifts = torch.cat([shifts[:1].detach(), shifts[1:]])
            shift = _shift(shifts, batch.convention.to(device))
            found, guesses = found + shift, guesses + shift
        # The first guess and the looks around it learn side by side, from the same loss.
        errors = [
            wing_loss(guess, points, width=settings.wing_width_px, curvature=settings.wing_curvature_px)
            for guess in guesses
        ]
        error = torch.stack(errors).sum(0)
        if batch.weight is not None:
            error = error * batch.weight.to(device)
        face = (torch.arange(len(batch.images), device=device) < batch.faces).float()
        doubt = presence_loss(output.presence, face)
        named = {
            "wing": error[: batch.real].mean(),
            "wing_augmented": error[batch.real :].mean(),
            "likelihood": error_likelihood(output.log_sigma[: batch.faces], found, points).mean(),
            # Both kinds count alike, whatever their numbers, or a doubtful crop would pass for a face.
            "presence": (doubt[: batch.faces].mean() + doubt[batch.faces :].mean()) / 2.0,
        }
        total = (
            named["wing"]
            + settings.augmented_weight * named["wing_augmented"]
            + settings.likelihood_weight * named["likelihood"]
            + settings.presence_weight * named["presence"]
        )
        if settings.consistency_weight:
            named["consistency"] = copy_distance(
                found[: batch.faces - batch.real], found[batch.real :], warp=batch.warp.to(device)
            ).mean()
            total = total + settings.consistency_weight * named["consistency"]
        if batch.dense is not None:
            named["dense"] = self._dense_loss(output, batch.dense.to(device), batch.faces)
            total = total + settings.dense_weight * named["dense"]
        if batch.outline is not None:
            named["outline"] = self._known_loss(output.outline[: batch.faces], batch.outline.to(device))
            total = total + settings.outline_weight * named["outline"]
        if batch.annotated is not None:
            moved = points + output.shifts[0, : batch.faces]
            named["shift"] = self._known_loss(moved, batch.annotated.to(device))
            total = total + settings.shift_weight * named["shift"]
        named["error_px"] = (found[: batch.real] - points[: batch.real]).norm(dim=2).mean()
        return total, {name: value.detach() for name, value in named.items()}

    def _dense_loss(self, output: LandmarkOutput, dense: Float[Tensor, "F D 2"], faces: int) -> Tensor:
        """Wing and likelihood of the dense points of those faces whose are known."""
        settings = self.settings
        known = dense.isfinite().all(2).all(1)
        if not known.any():
            return output.dense.sum() * 0.0
        found, target = output.dense[:faces][known], dense[known]
        error = wing_loss(found, target, width=settings.wing_width_px, curvature=settings.wing_curvature_px)
        doubt = error_likelihood(output.dense_log_sigma[:faces][known], found, target)
        return error.mean() + settings.likelihood_weight * doubt.mean()

    def _known_loss(self, found: Float[Tensor, "F L 2"], target: Float[Tensor, "F L 2"]) -> Tensor:
        """Wing of the faces whose target is known."""
        settings = self.settings
        known = target.isfinite().all(2).all(1)
        if not known.any():
            return found.sum() * 0.0
        return wing_loss(
            found[known], target[known], width=settings.wing_width_px, curvature=settings.wing_curvature_px
        ).mean()

    def _draw(self, count: int, random: np.random.Generator) -> Int[np.ndarray, "N 2"]:
        """Rows of a batch: from all alike, or from annotated and rendered photos in their shares."""
        kind = None if self.samples.convention is None else self.samples.convention[self.rows[:, 0]] == 1
        if kind is None or kind.all() or not kind.any():
            return self.rows[random.choice(len(self.rows), count, replace=len(self.rows) < count)]
        share = round(count * self.settings.annotated_share)
        parts = []
        for rows, size in ((np.flatnonzero(~kind), count - share), (np.flatnonzero(kind), share)):
            parts.append(rows[random.choice(len(rows), size, replace=len(rows) < size)])
        # Shuffled, because the first rows of a batch also become its warped copies.
        return self.rows[random.permutation(np.concatenate(parts))]

    def _batch(self, random: np.random.Generator) -> _TrainingBatch:
        settings, samples = self.settings, self.samples
        count = settings.batch_size
        drawn = self._draw(count, random)
        copies = max(1, round(count * settings.augmented_share))
        flip = drawn[:, 1].astype(bool)
        tight = tight_crops(
            samples.images,
            samples.points,
            drawn[:, 0],
            shape=samples.mean_shape,
            size_px=self.size_px,
            flip=flip,
            augmentation=self.augmentation,
            generator=random,
        )
        # The balance decides whether a row is mirrored; the warped copy is mirrored the other way.
        wide = wide_crops(
            samples.images,
            samples.points,
            drawn[:copies, 0],
            size_px=self.size_px,
            flip=~flip[:copies],
            augmentation=self.augmentation,
            generator=random,
        )
        without = faceless_crops(
            samples.images,
            samples.points,
            drawn[: max(1, round(count * settings.faceless_share)), 0],
            size_px=self.size_px,
            generator=random,
        )
        pixels = torch.from_numpy(np.concatenate([tight.images, wide.images, without]))
        warp = np.linalg.inv(tight.affine[:copies]) @ wide.affine
        which = np.concatenate([drawn[:, 0], drawn[:copies, 0]])
        dense = outline = annotated = None
        affine, flipped = np.concatenate([tight.affine, wide.affine]), np.concatenate([flip, ~flip[:copies]])
        if samples.dense is not None and samples.dense_mirror is not None:
            inside = points_in_frames(samples.dense[which], affine, flipped, mirror=samples.dense_mirror)
            dense = torch.from_numpy(inside)
        if samples.outline is not None:
            inside = points_in_frames(samples.outline[which], affine, flipped, mirror=FLIP_PERMUTATION[:JAW_COUNT])
            outline = torch.from_numpy(inside)
        if samples.annotated is not None:
            inside = points_in_frames(samples.annotated[which], affine, flipped, mirror=FLIP_PERMUTATION)
            annotated = torch.from_numpy(inside)
        return _TrainingBatch(
            images=jitter_colours(pixels, augmentation=self.augmentation, generator=random),
            points=torch.from_numpy(np.concatenate([tight.points, wide.points])),
            warp=torch.from_numpy(warp.astype(np.float32)),
            real=count,
            faces=count + copies,
            convention=torch.from_numpy(samples.convention[which]) if samples.mixed() else None,  # type: ignore[index]
            weight=None if samples.weight is None else torch.from_numpy(samples.weight[which]).float(),
            dense=dense,
            outline=outline,
            annotated=annotated,
        )


@dataclass(frozen=True)
class _TrainingBatch:
    """Tight crops, then warped copies of the first of them, then crops without a face."""

    images: Float[Tensor, "N 3 S S"]
    points: Float[Tensor, "F 68 2"]
    warp: Float[Tensor, "C 3 3"]
    """Pixels of each copy to pixels of its tight crop; it mirrors."""
    real: int
    faces: int
    convention: Int[Tensor, "F"] | None
    weight: Float[Tensor, "F"] | None
    dense: Float[Tensor, "F D 2"] | None
    outline: Float[Tensor, "F 17 2"] | None
    annotated: Float[Tensor, "F 68 2"] | None


def _shift(shifts: Float[Tensor, "K F 68 2"], convention: Int[Tensor, "F"]) -> Float[Tensor, "F 68 2"]:
    """Of each face the shift to its own convention; none to the face model's."""
    every = torch.cat([torch.zeros_like(shifts[:1]), shifts])
    return every[convention, torch.arange(len(convention), device=shifts.device)]


def copy_distance(
    real: Float[Tensor, "C 68 2"], copies: Float[Tensor, "C 68 2"], *, warp: Float[Tensor, "C 3 3"]
) -> Float[Tensor, "C"]:
    """Mean absolute difference between the points of mirrored copies, warped back, and those of the real crops.

    Convention: pixels of the real crop. Only the copies' points get a gradient: the real crop is the better teacher.
    """
    back = copies @ warp[:, :2, :2].transpose(1, 2) + warp[:, None, :2, 2]
    return (back[:, torch.from_numpy(FLIP_PERMUTATION)] - real.detach()).abs().mean((1, 2))


def coordinate_modes(
    samples: LandmarkSamples,
    *,
    size_px: int,
    generator: np.random.Generator,
    augmentation: Augmentation | None = None,
) -> tuple[Float[Tensor, "136"], Float[Tensor, "136 136"]]:
    """Mean and principal directions of the points in training crops, in crop sides around the crop's centre.

    Each direction is as long as the points' standard deviation along it, but at least `MODE_FLOOR`.
    """
    which = generator.integers(0, len(samples.points), MODE_CROPS)
    return _principal_modes(samples, which, samples.points, FLIP_PERMUTATION, size_px, generator, augmentation)


def dense_modes(
    samples: LandmarkSamples,
    *,
    size_px: int,
    generator: np.random.Generator,
    augmentation: Augmentation | None = None,
) -> tuple[Float[Tensor, "E"], Float[Tensor, "M E"]]:
    """The same of the dense points, E = 2D, of those photos whose are known; the M longest directions only.

    Raises: ValueError if no photo has dense points.
    """
    if samples.dense is None or samples.dense_mirror is None:
        raise ValueError("landmark samples: no dense points, expected some and their mirror images")
    known = np.flatnonzero(np.isfinite(samples.dense).all((1, 2)))
    if not len(known):
        raise ValueError("landmark samples: dense points of no photo are known, expected those of one at least")
    which = known[generator.integers(0, len(known), MODE_CROPS)]
    mean, directions = _principal_modes(
        samples, which, samples.dense, samples.dense_mirror, size_px, generator, augmentation
    )
    return mean, directions[:MAX_DENSE_MODES]


def _principal_modes(
    samples: LandmarkSamples,
    which: Int[np.ndarray, "N"],
    points: Float[np.ndarray, "M L 2"],
    mirror: Int[np.ndarray, "L"],
    size_px: int,
    generator: np.random.Generator,
    augmentation: Augmentation | None,
) -> tuple[Float[Tensor, "E"], Float[Tensor, "K E"]]:
    """Mean and directions of points of the faces `which`, in crops that are framed by their landmarks."""
    augmentation = augmentation or Augmentation()
    flip = generator.random(len(which)) < 0.5
    frames = (
        tight_noise(samples.points[which], samples.mean_shape, augmentation, generator),
        wide_noise(samples.points[which], augmentation, generator),
    )
    inside = [
        points_in_frames(
            points[which], frame_affine(centre, side, angle, size_px=size_px, flip=flip), flip, mirror=mirror
        )
        for centre, side, angle in frames
    ]
    offsets = (np.concatenate(inside) / size_px - 0.5).reshape(2 * len(which), -1)
    mean = offsets.mean(0)
    _, singular, directions = np.linalg.svd(offsets - mean, full_matrices=False)
    length = np.maximum(singular / np.sqrt(len(offsets)), MODE_FLOOR)
    return torch.from_numpy(mean).float(), torch.from_numpy(length[:, None] * directions).float()


class AveragedNetwork(nn.Module, Generic[Network]):
    """A network beside the moving average of its weights: trains the one, evaluates the other.

    Both are in the state dict, so a run that was killed goes on with the same average.
    """

    steps: Int[Tensor, ""]

    def __init__(self, network: Network, *, decay: float = 0.995) -> None:
        super().__init__()
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Any:
        """The training network's answer while training, else that of the average."""
        if not self.training:
            return self.average(image)
        self._follow()
        return self.network(image)

    def steps_taken(self) -> int:
        """Training steps so far, also those before a kill."""
        return int(self.steps)

    @torch.no_grad()
    def _follow(self) -> None:
        self.steps += 1
        # Young averages forget faster, or the random start would stay in them.
        decay = min(self.decay, (1.0 + float(self.steps)) / (10.0 + float(self.steps)))
        ours, theirs = self.average.state_dict(), self.network.state_dict()
        floats = [key for key, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[key] for key in floats], [theirs[key] for key in floats], 1.0 - decay)
