"""How the networks of the detector are trained: the finder of faces, and the network that places the points."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from models.landmarks.augment import Augmentation
from models.landmarks.finder import FaceFinder
from models.landmarks.finder_training import FinderObjective
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths
from models.landmarks.learning import (
    AveragedNetwork,
    LandmarkObjective,
    LandmarkSamples,
    ObjectiveSettings,
    coordinate_modes,
    dense_modes,
)
from models.landmarks.pose_balance import BalancedPoses, balance_poses
from models.training.loop import LoopResult, LoopSettings, StepLoss, build_fabric, train
from tasks.annotated_photos import AnnotatedPhotos
from tasks.artifacts import Workspace, load_checkpoint, save_checkpoint
from tasks.params import Params, TrainDetectorParams

CHECKS = 8
"""How often a training saves what it needs to go on after a kill."""


def balance_photos(photos: AnnotatedPhotos, section: TrainDetectorParams, *, seed: int) -> BalancedPoses:
    """Rows to train on; photos of each convention are balanced for themselves."""
    generator = np.random.default_rng(seed)
    parts = []
    for convention in np.unique(photos.convention):
        rows = np.flatnonzero(photos.convention == convention)
        part = balance_poses(
            photos.yaw_deg[rows],
            large_pose_deg=section.large_pose_deg,
            bin_deg=section.yaw_bin_deg,
            generator=generator,
        )
        parts.append(replace(part, index=rows[part.index]))
    return BalancedPoses(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(BalancedPoses))
    )


def train_landmarks(
    params: Params, workspace: Workspace, samples: LandmarkSamples, balanced: BalancedPoses, *, identity: str
) -> tuple[AveragedNetwork[HierarchicalNetwork], LoopResult]:
    """Train the network that places points; `identity` tells the samples from others when a killed run goes on."""
    section, seed = params.train_detector, params.project.seed
    dense_points, modes_of_dense = 0, None
    if samples.dense is not None:
        dense_points = samples.dense.shape[1]
        modes_of_dense = dense_modes(samples, size_px=section.input_size_px, generator=np.random.default_rng(seed))
        # The photos are the same with and without dense points, the network is not.
        identity = f"{identity} with {dense_points} dense points"
    if samples.outline is not None:
        identity = f"{identity} with outlines"
    if samples.annotated is not None:
        identity = f"{identity} with known shifts"
    torch.manual_seed(seed)
    network = HierarchicalNetwork(
        section.input_size_px,
        widths=NetworkWidths().times(section.width_factor),
        modes=coordinate_modes(samples, size_px=section.input_size_px, generator=np.random.default_rng(seed)),
        attention=section.attention,
        conventions=1 if samples.convention is None else max(1, int(samples.convention.max())),
        dense_points=dense_points,
        dense_modes=modes_of_dense,
        outline=samples.outline is not None,
    )
    objective = LandmarkObjective(
        samples,
        np.stack([balanced.index, balanced.flipped], 1).astype(np.int64),
        settings=ObjectiveSettings(
            batch_size=section.batch_size,
            wing_width_px=section.wing_width_px,
            wing_curvature_px=section.wing_curvature_px,
            augmented_weight=section.augmented_weight,
            consistency_weight=section.consistency_weight,
            annotated_share=section.annotated_share,
        ),
        size_px=section.input_size_px,
        augmentation=Augmentation.strong() if section.augmentation == "strong" else Augmentation(),
    )
    averaged = AveragedNetwork(network)
    steps = max(1, round(section.epochs * len(samples.images) / section.batch_size))
    result = _run(
        params,
        workspace,
        averaged,
        objective,
        steps=steps,
        rate=section.learning_rate,
        name="points",
        identity=identity,
    )
    return averaged, result


def train_finder(
    params: Params, workspace: Workspace, samples: LandmarkSamples, *, identity: str
) -> tuple[FaceFinder, list[dict[str, Any]]]:
    """Train the network that finds faces in whole photos; returns it with its curve.

    Finished weights wait beside the progress of the other training, so that a kill there does not cost this one again.
    """
    section = params.train_detector
    fingerprint = _fingerprint(params, "finder", identity)
    finished = workspace.progress("train_detector") / "finder_finished.pt"
    averaged = AveragedNetwork(FaceFinder())
    if finished.exists():
        content = load_checkpoint(finished)
        if content["fingerprint"] == fingerprint:
            averaged.load_state_dict(content["weights"])
            return averaged.average.eval(), content["curve"]
    torch.manual_seed(params.project.seed)
    averaged = AveragedNetwork(FaceFinder())
    result = _run(
        params,
        workspace,
        averaged,
        FinderObjective(samples),
        steps=section.finder_steps,
        rate=section.finder_learning_rate,
        name="finder",
        identity=identity,
    )
    finished.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(finished, {"fingerprint": fingerprint, "weights": averaged.state_dict(), "curve": result.curve})
    return averaged.average, result.curve


def forget_progress(workspace: Workspace) -> None:
    """Remove what a finished stage no longer needs."""
    (workspace.progress("train_detector") / "finder_finished.pt").unlink(missing_ok=True)


def _run(
    params: Params,
    workspace: Workspace,
    averaged: AveragedNetwork[Any],
    objective: StepLoss,
    *,
    steps: int,
    rate: float,
    name: str,
    identity: str,
) -> LoopResult:
    averaged.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def validate(_: nn.Module) -> dict[str, float]:
        # The schedule ends at the best weights; a choice among earlier ones would fit the validation photos.
        return {"score": -float(averaged.steps_taken())}

    result = train(
        build_fabric(device=params.project.device, precision=params.project.precision),
        averaged,
        settings=LoopSettings(
            steps=steps,
            learning_rate=rate,
            warmup_steps=min(50, steps // 10),
            weight_decay=params.train_detector.weight_decay,
            clip_norm=params.train_detector.clip_norm,
            validate_every=max(1, steps // CHECKS),
            patience=1000,
            seed=params.project.seed,
            optimizer="muon",
        ),
        loss=objective,
        validate=validate,
        progress_folder=workspace.progress("train_detector") / name,
        fingerprint=_fingerprint(params, name, identity),
        name=f"train_detector {name}",
    )
    averaged.eval()
    return result


def _fingerprint(params: Params, name: str, identity: str) -> str:
    return hashlib.sha256(repr((params.project, params.train_detector, name, identity)).encode()).hexdigest()
