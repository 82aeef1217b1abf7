"""One step of the three training stages: what is drawn, and what the losses make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import Generator, Tensor, nn

from models.losses.objective import Step, objective
from models.reconstruction.geometry_branch import GeometryBranch
from models.reconstruction.reconstructor import Reconstructor
from models.training.data import CropSet, draw_chance, draw_indices, make_batch
from models.training.loading import Load
from models.training.loop import StepLoss
from models.training.processes import portions
from models.types import Batch, FaceCoefficients


@dataclass(frozen=True)
class Trainee:
    """A reconstructor with the data it learns from and is judged by."""

    reconstructor: Reconstructor
    crops: CropSet
    validation: CropSet
    labelled: frozenset[str]
    """Sources with meshes."""
    shape_weights: Tensor
    landmark_branch: GeometryBranch
    """The geometry branch as it was at the start, whose reading of the landmarks anchors identity."""
    identity_embedding: Tensor
    """Turns differences of identity into millimetres."""
    fabric: Fabric
    rasterizer: str = "auto"
    """What draws the photo losses."""

    def step(self, batch: Batch, coefficients: FaceCoefficients) -> Step:
        """A batch and its prediction with what the loss terms need beside them."""
        with torch.no_grad():
            _, states = self.landmark_branch(self.reconstructor.normalize(batch.landmarks), batch.confidence)
        return Step(
            model=self.reconstructor.model,
            batch=batch,
            coefficients=coefficients,
            shape_weights=self.shape_weights,
            landmark_identity=states[-1][:, : self.reconstructor.model.identity_size],
            identity_embedding=self.identity_embedding,
            rasterizer=self.rasterizer,
        )


def build_step(
    trainee: Trainee, losses: Mapping[str, Mapping[str, float]], counts: Mapping[str, int], *, accumulate: int = 1
) -> tuple[Load, StepLoss]:
    """What loads a step's batch, and its loss.

    `counts` says how many faces of each source a batch holds. The batch is cut into `accumulate` portions for each
    process; what they find adds up to what the whole batch would have found, whatever the number of portions.
    """
    fabric, reconstructor, crops = trainee.fabric, trainee.reconstructor, trainee.crops
    pools = {name: crops.of_source(name) for name in counts}
    passes = portions(counts, rank=fabric.global_rank, processes=fabric.world_size, accumulate=accumulate)
    batch_size = sum(counts.values())
    unseen = {f"{name}/{term}": torch.zeros((), device=fabric.device) for name in counts for term in losses[name]}

    def load(generator: Generator) -> list[list[Batch]]:
        loaded: list[list[Batch]] = [[] for _ in passes]
        for name, count in counts.items():
            labelled = name in trainee.labelled
            weights = crops.quality[pools[name]] if labelled else None
            # Every process draws the whole batch, so that its faces do not depend on how many share it.
            indices = draw_indices(pools[name], count, weights=weights, generator=generator)
            chance = draw_chance(count, labelled=labelled, generator=generator)
            for batches, parts in zip(loaded, passes, strict=True):
                part = parts[name]
                if part.start < part.stop:
                    batch = make_batch(
                        crops,
                        indices[part],
                        model=reconstructor.model,
                        source=name,
                        labelled=labelled,
                        chance=chance[:, part],
                        device=fabric.device,
                    )
                    batches.append(batch)
        return loaded

    def loss(encoder: nn.Module, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        # One pass for all sources: batch statistics see the mixture, and the processor a full batch.
        coefficients = encode(
            reconstructor,
            encoder,
            torch.cat([batch.image for batch in batches]),
            torch.cat([batch.landmarks for batch in batches]),
            torch.cat([batch.confidence for batch in batches]),
        )
        total, start = torch.zeros((), device=fabric.device), 0
        named = dict(unseen)
        for batch in batches:
            count = len(batch.image)
            value, means = objective(
                trainee.step(batch, _part(coefficients, start, start + count)), losses[batch.source]
            )
            total = total + value * (count / batch_size)
            share = count / counts[batch.source]
            named |= {f"{batch.source}/{key}": mean * share for key, mean in means.items()}
            start += count
        return total, named

    return load, loss


def encode(
    reconstructor: Reconstructor, encoder: nn.Module, image: Tensor, landmarks: Tensor, confidence: Tensor
) -> FaceCoefficients:
    """Run the encoder as Fabric wrapped it, so that precision and processes are its business."""
    image = image.contiguous(memory_format=torch.channels_last)
    raw = encoder(image, reconstructor.normalize(landmarks), confidence)
    return reconstructor.decode(raw)


def _part(coefficients: FaceCoefficients, start: int, stop: int) -> FaceCoefficients:
    fields = ("identity", "expression", "albedo", "lighting", "rotation", "translation")
    return FaceCoefficients(**{field: getattr(coefficients, field)[start:stop] for field in fields})
