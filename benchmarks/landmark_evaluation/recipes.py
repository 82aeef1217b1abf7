"""Recipes for the landmark network that differ in one part each, and their training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from models.landmarks.framing import mean_face_shape
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths
from models.landmarks.learning import (
    AveragedNetwork,
    LandmarkObjective,
    LandmarkSamples,
    ObjectiveSettings,
    coordinate_modes,
)
from models.landmarks.pose_balance import balance_poses
from models.training.loop import LoopSettings, build_fabric, train
from tasks.annotated_photos import AnnotatedPhotos
from tasks.params import Params


@dataclass(frozen=True)
class Variant:
    """One recipe."""

    balanced: bool = True
    copies: bool = True
    attention: Literal["linear", "softmax"] = "linear"


VARIANTS = {
    "as designed": Variant(),
    "unbalanced": Variant(balanced=False),
    "no copies": Variant(copies=False),
    "softmax attention": Variant(attention="softmax"),
}


def fewer_large(yaw_deg: np.ndarray, share: float, *, limit_deg: float, seed: int) -> np.ndarray:
    """Rows of all small poses and of as many large ones as make up `share` of the whole, drawn at random."""
    large = np.abs(yaw_deg) > limit_deg
    kept = round(int((~large).sum()) * share / (1.0 - share))
    some = np.random.default_rng(seed).permutation(np.flatnonzero(large))[:kept]
    return np.sort(np.concatenate([np.flatnonzero(~large), some]))


def training_rows(photos: AnnotatedPhotos, *, balanced: bool, params: Params, seed: int) -> np.ndarray:
    """(index, flipped) of the faces to draw from."""
    if not balanced:
        index = np.tile(np.arange(len(photos.images)), 2)
        return np.stack([index, np.repeat([0, 1], len(photos.images))], 1).astype(np.int64)
    section = params.train_detector
    poses = balance_poses(
        photos.yaw_deg,
        large_pose_deg=section.large_pose_deg,
        bin_deg=section.yaw_bin_deg,
        generator=np.random.default_rng(seed),
    )
    return np.stack([poses.index, poses.flipped], 1).astype(np.int64)


def train_variant(
    variant: Variant,
    photos: AnnotatedPhotos,
    *,
    params: Params,
    steps: int,
    seed: int,
    progress_folder: Path,
    fingerprint: str,
) -> tuple[HierarchicalNetwork, LandmarkSamples, float, int]:
    """The averaged network, what it learned from, and processor seconds and steps of this call, fewer if it resumed."""
    section = params.train_detector
    torch.manual_seed(seed)
    samples = LandmarkSamples(photos.images, photos.points, mean_face_shape(photos.points))
    modes = coordinate_modes(samples, size_px=section.input_size_px, generator=np.random.default_rng(seed))
    network = HierarchicalNetwork(
        section.input_size_px,
        widths=NetworkWidths().times(section.width_factor),
        modes=modes,
        attention=variant.attention,
    )
    averaged = AveragedNetwork(network)
    averaged.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = LandmarkObjective(
        samples,
        training_rows(photos, balanced=variant.balanced, params=params, seed=seed),
        settings=ObjectiveSettings(
            batch_size=section.batch_size,
            wing_width_px=section.wing_width_px,
            wing_curvature_px=section.wing_curvature_px,
            augmented_weight=section.augmented_weight if variant.copies else 0.0,
            consistency_weight=section.consistency_weight if variant.copies else 0.0,
        ),
        size_px=section.input_size_px,
    )
    taken = 0

    def count_step(module: nn.Module, generator: torch.Generator) -> Any:
        nonlocal taken
        taken += 1
        return objective(module, generator)

    started = time.process_time()
    train(
        build_fabric(device="cpu", precision=params.project.precision),
        averaged,
        settings=LoopSettings(
            steps=steps,
            learning_rate=section.learning_rate,
            warmup_steps=min(50, max(1, steps // 10)),
            weight_decay=section.weight_decay,
            clip_norm=section.clip_norm,
            validate_every=max(1, steps // 8),
            patience=1000,
            seed=seed,
            optimizer="muon",
        ),
        loss=count_step,
        validate=lambda _: {"score": -float(averaged.steps_taken())},
        progress_folder=progress_folder,
        fingerprint=fingerprint,
        name="ablation",
    )
    return averaged.average.eval(), samples, time.process_time() - started, taken
