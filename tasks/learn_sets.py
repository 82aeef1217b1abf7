"""Learns how much each photo of a set deserves to be heard: on simulated sets, without any photo.

A person's faces are projected as the geometry branch is trained, several of each, with a detector that errs alike on
one face; the branch answers each, and a head learns factors of their evidence by which the fused shape comes closest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Generator, Tensor, nn

from models.face.camera import crop_camera
from models.face.lighting import ambient_light
from models.reconstruction.aggregate import (
    Evidence,
    fuse_identities,
    landmark_evidence,
    photo_trust,
    relative_trust,
    weighted_evidence,
)
from models.reconstruction.geometry_branch import SimulatedFaces
from models.reconstruction.reconstructor import Reconstructor
from models.reconstruction.set_confidence import SetConfidence
from models.training.loop import LoopResult, LoopSettings, seeded, train
from models.types import Batch, FaceCoefficients

SET_SIZES = (2, 4, 8, 16)
FACES_PER_STEP = 96
VALIDATION_SETS = 64
VALIDATION_SIZE = 8

SHARED_NOISE = 0.07
"""Share of a detector's squared errors that it repeats on other photos of the person, where the pose allows; measured
on rendered sets, 0.05 for turned heads to 0.08 for frontal ones."""

Simulate = Callable[[int, int, Generator], SimulatedFaces]
"""(faces, photos per person, generator) -> faces, person by person."""


class SimulatedSets:
    """What the branch says of simulated faces, and what their landmarks can tell; without gradient."""

    def __init__(self, reconstructor: Reconstructor, faces: SimulatedFaces, *, size: int) -> None:
        self.group = torch.arange(len(faces.identity), device=faces.identity.device) // size
        self.truth = faces.identity[::size]
        with torch.no_grad():
            self.features, states = reconstructor.encoder.geometry(
                reconstructor.normalize(faces.landmarks), faces.confidence
            )
            coefficients = _coefficients(reconstructor, states[-1])
            batch = _batch(reconstructor, faces, self.group)
            self.identity = coefficients.identity
            self.evidence: Evidence = landmark_evidence(reconstructor.model, batch, coefficients)
            self.trust = self._trust(batch, coefficients)

    def _trust(self, batch: Batch, coefficients: FaceCoefficients) -> Tensor:
        return relative_trust(photo_trust(batch, coefficients, self.evidence.misfit, self.group), self.group)

    def squared_error(self, confidence: Tensor, embedding: Tensor) -> Tensor:
        """Squared RMS vertex distance in mm² of each person's fused shape under factors (B, I) of the evidence."""
        information = weighted_evidence(self.evidence.information, confidence)
        fused, _ = fuse_identities(self.identity, information, self.trust, self.group)
        return ((fused - self.truth) @ embedding).square().sum(1)


def learn_set_confidence(
    reconstructor: Reconstructor,
    simulate: Simulate,
    *,
    embedding: Tensor,
    fabric: Fabric,
    steps: int,
    seed: int,
    progress_folder: Path,
    fingerprint: str,
    sizes: Sequence[int] = SET_SIZES,
) -> LoopResult:
    """Train a head and leave it in `reconstructor.sets`; it is the plain evidence where learning does not help."""
    branch = reconstructor.encoder.geometry
    head = SetConfidence(features=branch.width, identity_size=reconstructor.model.identity_size)

    def loss(network: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        drawn = simulate(max(1, FACES_PER_STEP // size) * size, size, generator)
        sets = SimulatedSets(reconstructor, drawn, size=size)
        error = sets.squared_error(network(sets.features), embedding).mean()
        return error, {"set_error": error.detach().sqrt()}

    held_out = SimulatedSets(
        reconstructor,
        simulate(VALIDATION_SETS * VALIDATION_SIZE, VALIDATION_SIZE, seeded(seed, -2)),
        size=VALIDATION_SIZE,
    )

    def validate(network: nn.Module) -> dict[str, float]:
        error = held_out.squared_error(network(held_out.features), embedding).mean()
        return {"score": float(error), "set_error_mm": float(error) ** 0.5}

    result = train(
        fabric,
        head.to(fabric.device),
        settings=LoopSettings(
            steps=steps,
            learning_rate=2e-3,
            warmup_steps=min(10, steps // 5 + 1),
            weight_decay=1e-2,
            clip_norm=10.0,
            validate_every=max(1, steps // 4),
            patience=4,
            seed=seed,
        ),
        loss=loss,
        validate=validate,
        progress_folder=progress_folder,
        fingerprint=fingerprint,
        name="photo sets",
    )
    reconstructor.sets = head.eval()
    return result


def _coefficients(reconstructor: Reconstructor, state: Tensor) -> FaceCoefficients:
    identity, expression, pose = torch.split(state, list(reconstructor.encoder.sizes), 1)
    rotation, translation = reconstructor.pose(pose)
    return FaceCoefficients(
        identity=identity,
        expression=expression,
        albedo=identity.new_zeros(len(identity), reconstructor.model.albedo_size),
        lighting=ambient_light(len(identity), device=identity.device),
        rotation=rotation,
        translation=translation,
    )


def _batch(reconstructor: Reconstructor, faces: SimulatedFaces, group: Tensor) -> Batch:
    """The faces as photos without pixels."""
    count = len(faces.identity)
    size_px = reconstructor.settings.crop_size_px
    nothing = faces.landmarks.new_zeros(count, 3, 1, 1)
    return Batch(
        source="simulated",
        sample_ids=tuple(map(str, range(count))),
        camera=crop_camera(count, size_px, device=faces.landmarks.device),
        image=nothing,
        mask=torch.ones_like(nothing[:, 0], dtype=torch.bool),
        landmarks=faces.landmarks,
        confidence=faces.confidence,
        person=group,
    )
