"""What the experiment about the priors of method B trains: the three stages with each of them, and with all."""

from __future__ import annotations

from tasks.params import Params, TrainingParams
from tasks.variants import STAGES, Variant

SYMMETRY, ALBEDO_VARIANCE = 0.01, 5.0
"""Weights: 0.1 per cm, which falls to a fifth over a stage, and that of Deng et al. 2019. Source: method B and A.5."""

PRIORS = {
    "symmetry": "halves that mirror each other",
    "albedo_variance": "skin of even albedo",
    "skin_photo": "the photo compared where it shows skin",
}


def prior_variants(params: Params) -> list[Variant]:
    """The stages as they are, with each prior on the sources without meshes, and with all."""
    return [
        Variant("mean_face", "mean face, best pose", params, (), baseline=True),
        Variant("without", "no priors of method B", params, STAGES),
        *(Variant(name, title, with_priors(params, (name,)), STAGES) for name, title in PRIORS.items()),
        Variant("all", "all three", with_priors(params, tuple(PRIORS)), STAGES),
    ]


def with_priors(params: Params, names: tuple[str, ...]) -> Params:
    """The same with these priors wherever a photo is compared with the predicted face.

    `skin_photo` takes the place and the weight of `photo`.
    """
    update: dict[str, object] = {}
    for stage in STAGES:
        section: TrainingParams = getattr(params, stage)
        sources = []
        for source in section.sources:
            losses = dict(source.losses)
            if "photo" in losses:
                if "symmetry" in names:
                    losses["symmetry"] = SYMMETRY
                if "albedo_variance" in names:
                    losses["albedo_variance"] = ALBEDO_VARIANCE
                if "skin_photo" in names:
                    losses["skin_photo"] = losses.pop("photo")
            sources.append(source.model_copy(update={"losses": losses}))
        update[stage] = section.model_copy(update={"sources": tuple(sources)})
    return params.model_copy(update=update)
