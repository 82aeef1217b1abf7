"""What an experiment trains: the three stages of method A and what is compared with them, as parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from models.face.morphable import MorphableModel
from models.losses.objective import TERMS
from models.reconstruction.label_quality import FIT_ERROR_SCALE_MM
from models.training.data import CropSet
from tasks.params import Params, TrainingParams
from tasks.source_params import is_labelled

STAGES = ("train_self_supervised", "train_supervised", "train_fused")
"""The three stages in their order; each starts from the one before."""

LOSSES = {
    "L1": "photo",
    "L2": "landmark",
    "L3": "vertex",
    "L4": "normal",
    "L5": "photo_on_scan",
    "L6": "landmark_on_scan",
}
"""The losses of method A.1 and the names of their terms."""

RATIOS = {"1:1": 1 / 2, "2:1": 1 / 3, "3:1": 1 / 4}
"""Unlabelled to labelled samples in a batch, and the labelled share. Source: method A.2."""

LABEL_COUNTS = (10, 20, 50, 100, 500)
NOISE_MM = (0.0, 1.0, 2.0, 4.0)

PLAIN_IDENTITY_PRIOR = 3e-4
"""Weight of the squared coefficients of identity where nothing else holds them. Source: method A.5."""

PERSON_TERMS = tuple(name for name, term in TERMS.items() if "person" in term.needs)

LEFT_OUT = "(left out)"
"""Source of crops that no stage draws."""

NOISE_WAVES = 12
NOISE_WAVELENGTH_MM = (40.0, 160.0)
"""Errors of a registration vary over parts of a face; noise of single vertices would average out."""


@dataclass(frozen=True)
class LabelChange:
    """What is done to the labels before training."""

    persons: int | None = None
    """Only so many labelled persons are left; None leaves all."""
    noise_mm: float = 0.0
    """Root mean square of the smooth errors that are added to label meshes."""


@dataclass(frozen=True)
class Variant:
    """One way to train, with a name for files and a title for people."""

    name: str
    title: str
    params: Params
    stages: tuple[str, ...]
    """What is trained one after the other from the geometry branch; may end with refusion. None at all: a baseline."""
    labels: LabelChange = LabelChange()
    baseline: bool = False
    """No training and no seeds: measured once."""
    line: str = ""
    """Variants that differ in their labels alone share a line of the plot."""
    landmarks: bool = True
    """Whether the network sees the landmarks beside the image."""


def scaled(params: Params, factor: float) -> Params:
    """The same stages with other numbers of steps, validated as often as before."""

    def number(value: int) -> int:
        return max(1, round(value * factor))

    update: dict[str, object] = {}
    for stage in STAGES:
        section: TrainingParams = getattr(params, stage)
        steps = {name: number(getattr(section, name)) for name in ("steps", "validate_every", "warmup_steps")}
        update[stage] = section.model_copy(update=steps)
    update["refusion"] = params.refusion.model_copy(update={"steps": number(params.refusion.steps)})
    return params.model_copy(update=update)


def seeded(params: Params, seed: int) -> Params:
    """The same with another seed."""
    return params.model_copy(update={"project": params.project.model_copy(update={"seed": seed})})


def without_landmarks(params: Params) -> Params:
    """The same for an image branch that stands alone, as in method A: no landmarks say who the face is.

    What anchored identity to their reading becomes the plain prior of Deng et al. 2019.
    """
    update = {}
    for stage in STAGES:
        section: TrainingParams = getattr(params, stage)
        sources = []
        for source in section.sources:
            losses = {name: weight for name, weight in source.losses.items() if name != "identity_anchor"}
            if len(losses) < len(source.losses):
                losses["identity_prior"] = max(losses.get("identity_prior", 0.0), PLAIN_IDENTITY_PRIOR)
            sources.append(source.model_copy(update={"losses": losses}))
        update[stage] = section.model_copy(update={"geometry_rate": 0.0, "sources": tuple(sources)})
    return params.model_copy(update=update)


def ablation_variants(params: Params, seconds_per_step: dict[str, float]) -> list[Variant]:
    """Either kind of data alone for the time of the three stages, the three stages, re-fusion, and each loss left out.

    `seconds_per_step` of each stage makes times equal; without it numbers of steps are.
    """
    variants = [
        *_baselines(params),
        _self_supervised(params, seconds_per_step),
        _supervised(params, seconds_per_step),
        Variant("three_stages", "three stages", params, STAGES),
        Variant("refusion", "three stages + re-fusion", params, (*STAGES, "refusion")),
    ]
    for short, loss in LOSSES.items():
        if any(loss in source.losses for stage in STAGES for source in getattr(params, stage).sources):
            title = f"three stages without {short} ({loss})"
            variants.append(Variant(f"without_{short}", title, _without(params, loss), STAGES))
    return variants


def label_variants(
    params: Params, seconds_per_step: dict[str, float], *, available: int, counts: Sequence[int] = LABEL_COUNTS
) -> list[Variant]:
    """The three stages with few labelled persons and with more, as many as there are, beside no labels at all."""
    kept = sorted({min(count, available) for count in counts})
    return [
        *_baselines(params),
        _self_supervised(params, seconds_per_step),
        *(
            Variant(
                f"labels_{count}",
                f"three stages, {count} labelled persons",
                params,
                STAGES,
                LabelChange(count),
                line="three stages",
            )
            for count in kept
        ),
    ]


def fusion_variants(
    params: Params, seconds_per_step: dict[str, float], *, noise_mm: Sequence[float] = NOISE_MM
) -> list[Variant]:
    """Every ratio of unlabelled to labelled samples in stage 3 with every quality of labels."""
    variants = [*_baselines(params), _self_supervised(params, seconds_per_step)]
    for noise in noise_mm:
        for ratio, share in RATIOS.items():
            section = params.train_fused.model_copy(update={"labelled_share": share})
            changed = params.model_copy(update={"train_fused": section})
            name = f"ratio_{ratio.replace(':', '_')}_noise_{noise:g}"
            title = f"{ratio}, labels {noise:g} mm off" if noise else f"{ratio}, exact labels"
            variants.append(Variant(name, title, changed, STAGES, LabelChange(noise_mm=noise), line=ratio))
    return variants


def identity_variants(params: Params) -> list[Variant]:
    """The three stages without and with what makes persons distinct, and with each part of it alone."""
    everything = ("map", *PERSON_TERMS)
    parts = [("map",), *((term,) for term in PERSON_TERMS if _used(params, term))]
    return [
        *_baselines(params)[::2],
        Variant("without", "no losses of persons", _of_persons(params, ()), STAGES),
        *(
            Variant(
                f"only_{part}",
                f"only {'the linear map' if part == 'map' else part}",
                _of_persons(params, (part,)),
                STAGES,
            )
            for (part,) in parts
        ),
        Variant("no_map", "all but the linear map", _of_persons(params, PERSON_TERMS), STAGES),
        Variant("all", "all", _of_persons(params, everything), STAGES),
    ]


def _used(params: Params, term: str) -> bool:
    return any(term in source.losses for source in params.train_fused.sources)


def _of_persons(params: Params, kept: Sequence[str]) -> Params:
    """Stage 3 with these of the losses of persons; `map` is the linear map that is found before.

    The map needs the others' persons, so alone it stands beside a loss of no weight.
    """
    section = params.train_fused
    sources = []
    for source in section.sources:
        losses = {name: weight for name, weight in source.losses.items() if name not in PERSON_TERMS or name in kept}
        update: dict[str, object] = {"losses": losses}
        if len(losses) < len(source.losses) and kept == ("map",):
            update["losses"] = {**losses, "center": 0.0}
        if not kept:
            update["photos_per_person"] = 1
        sources.append(source.model_copy(update=update))
    changed: dict[str, object] = {"sources": tuple(sources)}
    if "map" not in kept:
        changed["identity_map_steps"] = 0
    return params.model_copy(update={"train_fused": section.model_copy(update=changed)})


def with_changed_labels(
    crops: CropSet, change: LabelChange, *, labelled: Sequence[str], model: MorphableModel, seed: int
) -> CropSet:
    """Crops whose labels are as the change says; those of other sources stay as they are."""
    of_label = torch.tensor([source in labelled for source in crops.source])
    if change.persons is not None:
        everyone = torch.tensor(sorted(set(crops.person[of_label].tolist())), dtype=crops.person.dtype)
        order = torch.randperm(len(everyone), generator=Generator().manual_seed(seed))
        # A smaller set is part of every larger one of the same seed.
        kept = torch.isin(crops.person, everyone[order[: change.persons]]) | ~of_label
        sources = [source if keep else LEFT_OUT for source, keep in zip(crops.source, kept.tolist(), strict=True)]
        crops = replace(crops, source=tuple(sources))
    if change.noise_mm:
        moved = crops.vertices + change.noise_mm * smooth_noise(model.mean.cpu(), len(crops.vertices), seed=seed)
        # As if the registration had told the truth about its error.
        doubt = float(torch.exp(torch.tensor(-change.noise_mm / FIT_ERROR_SCALE_MM)))
        crops = replace(crops, vertices=moved, quality=torch.where(of_label, crops.quality * doubt, crops.quality))
    return crops


def smooth_noise(points: Tensor, count: int, *, seed: int) -> Tensor:
    """(count, V, 3): displacements of the points (V, 3) by random waves, each of root mean square 1 mm."""
    generator = Generator().manual_seed(seed)
    low, high = NOISE_WAVELENGTH_MM
    fields = []
    for _ in range(count):
        direction = torch.nn.functional.normalize(torch.randn(NOISE_WAVES, 3, generator=generator), dim=1)
        length = low * (high / low) ** torch.rand(NOISE_WAVES, 1, generator=generator)
        phase = 2 * torch.pi * torch.rand(NOISE_WAVES, generator=generator)
        amplitude = torch.randn(NOISE_WAVES, 3, generator=generator)
        field = torch.sin(points @ (2 * torch.pi * direction / length).T + phase) @ amplitude
        fields.append(field / field.square().sum(1).mean().sqrt())
    return torch.stack(fields) if fields else points.new_zeros(0, *points.shape)


def labelled_sources(params: Params) -> list[str]:
    """Names of the sources with label meshes that stage 3 trains on."""
    known = {source.name: source for source in params.ingest.sources}
    return [item.source for item in params.train_fused.sources if is_labelled(known[item.source])]


def _baselines(params: Params) -> list[Variant]:
    return [
        Variant("mean_face", "mean face, best pose", params, (), baseline=True),
        Variant("optimised", "fitted to the landmarks photo by photo", params, (), baseline=True),
        Variant("geometry", "landmarks alone, before the stages", params, (), baseline=True),
    ]


def _self_supervised(params: Params, seconds_per_step: dict[str, float]) -> Variant:
    section = params.train_self_supervised
    section = section.model_copy(update={"steps": _equal_steps(params, "train_self_supervised", seconds_per_step)})
    changed = params.model_copy(update={"train_self_supervised": section})
    return Variant(
        "self_supervised", f"self-supervised only, {_measure_of_length(seconds_per_step)}", changed, STAGES[:1]
    )


def _supervised(params: Params, seconds_per_step: dict[str, float]) -> Variant:
    first = params.train_self_supervised
    section = params.train_supervised.model_copy(
        update={
            "steps": _equal_steps(params, "train_supervised", seconds_per_step),
            # It begins where stage 1 does, with an image branch that has not seen a photo.
            "learning_rate": first.learning_rate,
            "validate_every": first.validate_every,
            "freeze_batch_norm": False,
        }
    )
    changed = params.model_copy(update={"train_supervised": section})
    return Variant("supervised", f"supervised only, {_measure_of_length(seconds_per_step)}", changed, STAGES[1:2])


def _measure_of_length(seconds_per_step: dict[str, float]) -> str:
    return "equal time" if len(seconds_per_step) == len(STAGES) else "as many steps"


def _equal_steps(params: Params, stage: str, seconds_per_step: dict[str, float]) -> int:
    """Steps of one stage that take as long as all three together."""
    whole: float = 0.0
    for name in STAGES:
        cost = seconds_per_step[name] / seconds_per_step[stage] if len(seconds_per_step) == len(STAGES) else 1.0
        whole += cost * getattr(params, name).steps
    return round(whole)


def _without(params: Params, loss: str) -> Params:
    update = {}
    for stage in STAGES:
        section: TrainingParams = getattr(params, stage)
        sources = []
        for source in section.sources:
            losses = {name: weight for name, weight in source.losses.items() if name != loss}
            if not losses:
                raise ValueError(f"{stage}.sources: source {source.source!r} has no loss but {loss}, nothing is left")
            sources.append(source.model_copy(update={"losses": losses}))
        update[stage] = section.model_copy(update={"sources": tuple(sources)})
    return params.model_copy(update=update)
