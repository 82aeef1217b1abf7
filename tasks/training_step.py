"""One step of the three training stages: what is drawn, and what the losses make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Generator, Tensor, nn

from models.face.camera import angles_from_rotation
from models.losses.identity import INVERSE_VARIANCE, frontal_neutral_weight
from models.losses.likelihood import mirror_partners
from models.losses.objective import LAST_SHARES, TERMS, Step, objective
from models.reconstruction.confidence import ConfidenceNetwork
from models.reconstruction.geometry_branch import GeometryBranch
from models.reconstruction.reconstructor import Reconstructor, reconstructor_content
from models.training.data import CropSet, PersonGroups, draw_chance, draw_indices, draw_persons, make_batch
from models.training.identity_map import fit_identity_map
from models.training.learner import Learner
from models.training.loading import Load
from models.training.loop import StepLoss
from models.training.person_memory import PersonMemory
from models.training.processes import portions
from models.types import Batch, FaceCoefficients

COMPANIONS = ("persons", "confidence")
"""Keys of a checkpoint beside those of the reconstructor."""


def companions_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds beside the reconstructor."""
    return {name: content[name] for name in COMPANIONS if name in content}


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
    landmark_map: nn.Linear
    """The encoder's map of identities as it was at the start, which that reading passes, too."""
    identity_embedding: Tensor
    """Turns differences of identity into millimetres."""
    fabric: Fabric
    rasterizer: str = "auto"
    """What draws the photo losses."""
    companions: dict[str, Any] = field(default_factory=dict)
    """What a checkpoint holds beside the network, see `Learner.content`; training replaces it."""

    @cached_property
    def mirror(self) -> Tensor:
        """(V,): the vertex on the other side of the face."""
        return mirror_partners(self.reconstructor.model.mean)

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds: the reconstructor, and what training learned beside it."""
        return {**reconstructor_content(self.reconstructor), **self.companions}

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take weights and companions from a checkpoint's content."""
        self.reconstructor.encoder.load_state_dict(content["weights"])
        self.companions.clear()
        self.companions.update(companions_of(content))

    def step(self, batch: Batch, coefficients: FaceCoefficients, learner: Learner | None = None) -> Step:
        """A batch and its prediction with what the loss terms need beside them."""
        with torch.no_grad():
            _, states = self.landmark_branch(self.reconstructor.normalize(batch.landmarks), batch.confidence)
            identity = states[-1][:, : self.reconstructor.model.identity_size]
            identity = identity + self.landmark_map(identity)
        return Step(
            model=self.reconstructor.model,
            batch=batch,
            coefficients=coefficients,
            shape_weights=self.shape_weights,
            landmark_identity=identity,
            identity_embedding=self.identity_embedding,
            rasterizer=self.rasterizer,
            memory=learner.memory if learner else None,
            confidence=learner.confidence if learner else None,
            mirror=self.mirror if learner and learner.confidence else None,
        )


def needed(losses: Mapping[str, Mapping[str, float]]) -> frozenset[str]:
    """What the losses of all sources need."""
    return frozenset(need for terms in losses.values() for term in terms for need in TERMS[term].needs)


def build_learner(
    trainee: Trainee,
    losses: Mapping[str, Mapping[str, float]],
    *,
    center_rate: float = 1.0,
    confidence_width: int = 16,
    map_steps: int = 0,
    seed: int = 0,
) -> Learner:
    """The trainee's encoder with what its losses need beside it, as the checkpoint left it or fresh.

    A memory of persons has a row for everyone in the sources whose losses need it. New persons begin where the
    landmarks say they are, for which no photo has to be looked at. Where no person is known yet, and there are
    `map_steps`, the encoder's map of identities is found first, see `fit_identity_map`.
    Raises: ValueError naming a source of which no person has several photos.
    """
    crops, reconstructor = trainee.crops, trainee.reconstructor
    memory = confidence = None
    needy = [name for name, terms in losses.items() if any("person" in TERMS[term].needs for term in terms)]
    if needy:
        for name in needy:
            own = crops.person[crops.of_source(name)]
            if len(own) == len(set(own.tolist())):
                raise ValueError(
                    f"source {name}: every photo shows another person, but its losses need several of one; list them "
                    "in persons.csv, or remove separation, center and distribution"
                )
        photos = torch.cat([crops.of_source(name) for name in needy])
        names = [crops.person_names[number] for number in sorted(set(crops.person[photos].tolist()))]
        memory = PersonMemory(names, identity_size=reconstructor.model.identity_size, center_rate=center_rate)
        memory = memory.to(trainee.fabric.device)
        memory.number(crops.person_names)
        known = memory.recall(trainee.companions["persons"]) if "persons" in trainee.companions else ()
        _begin(memory, trainee, photos, known, map_steps=0 if known else map_steps, seed=seed)
    if "confidence" in needed(losses):
        if "confidence" in trainee.companions:
            confidence = ConfidenceNetwork.load(trainee.companions["confidence"])
        else:
            confidence = ConfidenceNetwork(width=confidence_width, size_px=crops.images.shape[-1])
        confidence = confidence.to(trainee.fabric.device)
    return Learner(reconstructor.encoder, memory=memory, confidence=confidence)


@torch.no_grad()
def _begin(
    memory: PersonMemory, trainee: Trainee, photos: Tensor, known: tuple[str, ...], *, map_steps: int, seed: int
) -> None:
    """Start persons, and map and moments where none are known, from what the landmarks alone say of their photos."""
    crops, reconstructor = trainee.crops, trainee.reconstructor
    identities, weights = [], []
    for part in torch.split(photos, 4096):
        landmarks, confidence = (
            values[part].to(trainee.fabric.device) for values in (crops.landmarks, crops.confidence)
        )
        _, states = trainee.landmark_branch(reconstructor.normalize(landmarks), confidence)
        identity, expression, pose = states[-1].split(reconstructor.encoder.sizes, 1)
        rotation, _ = reconstructor.pose(pose)
        identities.append(identity)
        weights.append(frontal_neutral_weight(angles_from_rotation(rotation), expression))
    person = crops.person[photos].to(trainee.fabric.device)
    read = torch.cat(identities)
    if map_steps:
        layer = reconstructor.encoder.identity_map
        fit_identity_map(
            layer,
            read,
            person,
            trainee.identity_embedding,
            steps=map_steps,
            inverse_variance=INVERSE_VARIANCE,
            seed=seed,
        )
        trainee.landmark_map.load_state_dict(layer.state_dict())
    mapped = read + trainee.landmark_map(read)
    memory.begin(person, mapped @ trainee.identity_embedding, torch.cat(weights), known=known)
    if not known:
        memory.begin_moments(mapped)


def build_step(
    trainee: Trainee,
    losses: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int],
    *,
    accumulate: int = 1,
    photos_per_person: Mapping[str, int] | None = None,
    learner: Learner | None = None,
    warmup_steps: int = 0,
    steps: int = 0,
) -> tuple[Load, StepLoss]:
    """What loads a step's batch, and its loss.

    `counts` says how many faces of each source a batch holds; a source in `photos_per_person` has so many of each
    person among them. The batch is cut into `accumulate` portions for each process; what they find adds up to what
    the whole batch would have found, whatever the number of portions. The losses of persons grow to their weights over
    `warmup_steps`, counted by the learner's memory; priors that guide the beginning fall over the `steps` of a stage.
    """
    fabric, reconstructor, crops = trainee.fabric, trainee.reconstructor, trainee.crops
    learner = learner or build_learner(trainee, losses)
    pools = {name: crops.of_source(name) for name in counts}
    groups = {
        name: PersonGroups.build(pools[name], crops.person)
        for name, photos in (photos_per_person or {}).items()
        if photos > 1 and name in counts
    }
    passes = portions(counts, rank=fabric.global_rank, processes=fabric.world_size, accumulate=accumulate)
    batch_size = sum(counts.values())
    unseen = {f"{name}/{term}": torch.zeros((), device=fabric.device) for name in counts for term in losses[name]}

    def load(generator: Generator) -> list[list[Batch]]:
        loaded: list[list[Batch]] = [[] for _ in passes]
        for name, count in counts.items():
            labelled = name in trainee.labelled
            # Every process draws the whole batch, so that its faces do not depend on how many share it.
            if name in groups:
                indices = draw_persons(
                    groups[name],
                    count,
                    photos_per_person=(photos_per_person or {})[name],
                    weights=crops.quality[groups[name].crops] if labelled else None,
                    generator=generator,
                )
            else:
                weights = crops.quality[pools[name]] if labelled else None
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
        warmth = 1.0
        if learner.memory is not None and warmup_steps:
            warmth = min(1.0, (int(learner.memory.steps) + 1) / warmup_steps)
        done = min(1.0, int(learner.steps) / steps) if steps else 0.0
        for batch in batches:
            count, terms = len(batch.image), losses[batch.source]
            step = trainee.step(batch, _part(coefficients, start, start + count), learner)
            value, means = objective(step, _annealed(_warmed(terms, warmth), done))
            if torch.is_grad_enabled():
                step.note(terms)
            total = total + value * (count / batch_size)
            share = count / counts[batch.source]
            named |= {f"{batch.source}/{key}": mean * share for key, mean in means.items()}
            start += count
        return total, named

    return load, loss


def _warmed(terms: Mapping[str, float], warmth: float) -> Mapping[str, float]:
    """The weights of a source's losses while those of persons grow."""
    if warmth >= 1.0:
        return terms
    return {name: weight * warmth if "person" in TERMS[name].needs else weight for name, weight in terms.items()}


def _annealed(terms: Mapping[str, float], done: float) -> Mapping[str, float]:
    """The weights when that share of a stage is done, see `LAST_SHARES`."""
    if not LAST_SHARES.keys() & terms.keys():
        return terms
    return {name: weight * (1.0 + done * (LAST_SHARES.get(name, 1.0) - 1.0)) for name, weight in terms.items()}


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
