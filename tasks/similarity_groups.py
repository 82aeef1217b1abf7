"""Which photos reconstructions resemble least, by pose, skin tone and source, and how labelled samples answer it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Generator, Tensor

from models.reconstruction.reconstructor import Reconstructor
from models.training.data import CropSet, make_batch
from models.types import to_device
from tasks.measure import join_coefficients, person_tone_deg, tone_groups
from tasks.train import batches_of
from tasks.training_step import encode

YAW_EDGES_DEG = (0.0, 30.0, 60.0, 90.0)
PROBE_PHOTOS = 240
"""Training photos that are looked at to see which groups need labels; drawn once, the same in every round."""

PRIOR_PHOTOS = 10
"""A group counts as if so many photos of average similarity were among its own, so that a few cannot sway the draw."""

WEIGHT_RANGE = (0.5, 2.0)
"""How much less or more often labelled samples of a group may be drawn."""

SAMPLES = pa.schema(
    [
        ("round", pa.int32()),
        ("split", pa.string()),  # validation, or train for the photos that move the draw
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("yaw", pa.string()),  # a bin such as 0-30
        ("tone", pa.string()),
        ("similarity", pa.float32()),
        ("landmark_nme", pa.float32()),
        ("vertex_error_mm", pa.float32()),  # null where no mesh is known
    ]
)
"""`refusion/samples.parquet`: one row per photo and round."""


@dataclass(frozen=True)
class Groups:
    """The group of every crop of a split."""

    yaw: tuple[str, ...]
    tone: tuple[str, ...]
    source: tuple[str, ...]

    def items(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Kind and the groups of that kind, one for each crop."""
        return ("yaw", self.yaw), ("tone", self.tone), ("source", self.source)


@torch.no_grad()
def group_crops(reconstructor: Reconstructor, crops: CropSet) -> Groups:
    """Yaw bin of the detected pose, skin tone of the person as the network sees it, source."""
    model, found = reconstructor.model, []
    for indices in batches_of(len(crops)):
        batch = make_batch(crops, indices, model=model, source="any", labelled=False)
        batch = to_device(batch, model.mean.device)
        found.append(encode(reconstructor, reconstructor.encoder, batch.image, batch.landmarks, batch.confidence))
    angles = person_tone_deg(model, join_coefficients(found), crops.person.numpy())
    tones = np.empty(len(crops), dtype=object)
    for name, members in tone_groups(angles).items():
        tones[members] = name
    return Groups(
        yaw=tuple(yaw_bin(yaw) for yaw in crops.yaw_deg.tolist()), tone=tuple(tones.tolist()), source=crops.source
    )


def yaw_bin(yaw_deg: float) -> str:
    """Name of the bin of |yaw|; beyond the last edge counts as the last bin."""
    size = abs(yaw_deg)
    place = max(number for number, edge in enumerate(YAW_EDGES_DEG[:-1]) if size >= edge)
    return f"{YAW_EDGES_DEG[place]:g}-{YAW_EDGES_DEG[place + 1]:g}"


def probe(crops: CropSet, unlabelled: Sequence[str], *, seed: int) -> Tensor:
    """Indices of the training photos without labels that are looked at in every round."""
    pool = torch.cat([crops.of_source(name) for name in unlabelled]) if unlabelled else torch.arange(len(crops))
    order = torch.randperm(len(pool), generator=Generator().manual_seed(seed))
    return pool[order[:PROBE_PHOTOS]].sort().values


def sample_rows(
    found: Mapping[str, Tensor],
    crops: CropSet,
    groups: Groups,
    *,
    number: int,
    split: str,
    chosen: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Rows of `samples.parquet` for what was measured of some photos; all of them without `chosen`."""
    places = range(len(crops)) if chosen is None else chosen.tolist()
    values = {name: found[name].tolist() for name in ("similarity", "landmark_nme", "vertex_error_mm")}
    return [
        {
            "round": number,
            "split": split,
            "sample_id": crops.sample_ids[place],
            "source": groups.source[place],
            "yaw": groups.yaw[place],
            "tone": groups.tone[place],
            **{name: value[row] if math.isfinite(value[row]) else None for name, value in values.items()},
        }
        for row, place in enumerate(places)
    ]


def group_rows(samples: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """Per split and group of every kind: photos, median similarity, mean errors, weight of its labelled samples.

    `samples` are of one round; `weights` are those with which that round drew, 1 where none is named.
    """
    rows = []
    for split in dict.fromkeys(str(row["split"]) for row in samples):
        for kind in ("yaw", "tone", "source"):
            members: dict[str, list[Mapping[str, Any]]] = {}
            for row in samples:
                if row["split"] == split:
                    members.setdefault(str(row[kind]), []).append(row)
            for name, found in sorted(members.items()):
                numbers = {key: _known(found, key) for key in ("similarity", "landmark_nme", "vertex_error_mm")}
                error = numbers["vertex_error_mm"]
                rows.append(
                    {
                        "round": found[0]["round"],
                        "split": split,
                        "kind": kind,
                        "group": name,
                        "photos": len(found),
                        "similarity": float(numbers["similarity"].median()),
                        "landmark_nme": float(numbers["landmark_nme"].mean()),
                        "vertex_error_mm": float(error.mean()) if len(error) else None,
                        "label_weight": weights.get(f"{kind} {name}", 1.0),
                    }
                )
    return rows


def group_weights(
    now: Sequence[Mapping[str, Any]], tried: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """How often labelled samples of each group of yaw and tone are drawn relative to the average, by `kind group`.

    All are rows of `group_rows`: `now` of the best weights so far, `tried` of the last round, `base` of the weights
    from which that round began. A group counts by how far its training photos are from 1 in similarity, relative to
    all of them. One that was raised in the last round and then resembled its photos no more goes back to 1: there
    labels do not help.
    """
    began = {(row["kind"], row["group"]): row for row in base if row["split"] == "train"}
    in_vain = {
        (row["kind"], row["group"])
        for row in tried
        if row["split"] == "train"
        and row["label_weight"] > 1.0
        and row["similarity"] <= began[row["kind"], row["group"]]["similarity"]
    }
    weights = {}
    for kind in ("yaw", "tone"):
        rows = [row for row in now if row["split"] == "train" and row["kind"] == kind]
        average = sum(row["photos"] * row["similarity"] for row in rows) / sum(row["photos"] for row in rows)
        for row in rows:
            own = (row["photos"] * row["similarity"] + PRIOR_PHOTOS * average) / (row["photos"] + PRIOR_PHOTOS)
            lowest, highest = WEIGHT_RANGE
            weight = min(max((1.0 - own) / max(1.0 - average, 1e-6), lowest), highest)
            weights[f"{kind} {row['group']}"] = 1.0 if (kind, row["group"]) in in_vain else weight
    return weights


def weighted_quality(crops: CropSet, groups: Groups, weights: Mapping[str, float]) -> Tensor:
    """Label quality (N,) times the weights of each crop's groups: in proportion to it labelled samples are drawn."""
    factors = torch.ones(len(crops))
    for kind, names in groups.items():
        factors *= torch.tensor([weights.get(f"{kind} {name}", 1.0) for name in names])
    return crops.quality * factors


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    return torch.tensor([row[name] for row in rows if row[name] is not None])
