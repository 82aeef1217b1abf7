"""The linear map of identities that tells persons apart, found from all persons at once before a stage trains.

What the landmarks say of a face is known for every photo without looking at one. So the part of the losses of identity
that a linear map can answer, which directions of shape photos of one person agree on, is solved with all persons in
every step, in seconds; batches of a few persons would need thousands of steps for it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.losses.identity import squared_distances

PERSONS = 2000
"""Persons that are looked at; more change the map no further."""

PHOTOS_PER_STEP = 700
"""Whose distances to all persons are compared in a step."""

LEARNING_RATE = 0.03
DISTINCTNESS_WEIGHT = 10.0
ANCHOR_WEIGHT = 0.6
"""Of `models.metrics.distinctness` and of the shape moved in mm², against one unit of cross-entropy: more of the first
shrinks what photos do not agree on, less of the second makes faces wrong. Photos of a person could also be drawn
together by their squared distance, but that makes all faces small, those of different persons, too."""

SMALLEST_SQUARE = 1e-6
"""Of distances in mm², whose roots have no slope at zero."""


def fit_identity_map(
    layer: nn.Linear,
    identity: Float[Tensor, "N I"],
    person: Int[Tensor, "N"],
    embedding: Float[Tensor, "I I"],
    *,
    steps: int,
    inverse_variance: float,
    seed: int,
) -> None:
    """Train a residual map z = α + layer(α) in place so that z tells persons apart by distance and stays near α.

    Every photo is compared with the mean of its person's other photos and with the means of all other persons. That
    tells the nearest persons apart; distinctness asks that all persons lie apart by more than their own photos do.
    `identity`: coefficients of photos, persons of one photo alone do not count. Nothing happens without two persons.
    """
    generator = torch.Generator().manual_seed(seed)
    _, owner, count = person.unique(return_inverse=True, return_counts=True)
    chosen = torch.nonzero(count > 1)[:, 0]
    chosen = chosen[torch.randperm(len(chosen), generator=generator).to(chosen.device)[:PERSONS]]
    kept = torch.isin(owner, chosen)
    identity = identity[kept].detach()
    _, owner, count = owner[kept].unique(return_inverse=True, return_counts=True)
    if len(count) < 2:
        return
    start = identity @ embedding
    size = count[owner][:, None].to(start.dtype)
    # From the squared distance to the mean of the others to that between two photos.
    pairwise = 2.0 * (size[:, 0] - 1.0) / size[:, 0]
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(steps):
            places = start + layer(identity) @ embedding
            means = torch.zeros_like(places[: len(count)]).index_add(0, owner, places) / count[:, None]
            others = (means[owner] * size - places) / (size - 1.0)
            apart = (places - others).square().sum(1)
            rows = torch.randperm(len(places), generator=generator).to(owner.device)[:PHOTOS_PER_STEP]
            squares = squared_distances(places[rows], means).scatter(1, owner[rows, None], apart[rows, None])
            told = functional.cross_entropy(-inverse_variance * squares, owner[rows])
            own = (apart * pairwise + SMALLEST_SQUARE).sqrt().mean()
            strangers = owner[rows][:, None] != owner[rows]
            other = (squared_distances(places[rows], places[rows]) + SMALLEST_SQUARE).sqrt()[strangers].mean()
            distinct = (other - own) / (other + own)
            moved = (places - start).square().sum(1).mean()
            loss = told - DISTINCTNESS_WEIGHT * distinct + ANCHOR_WEIGHT * moved
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    layer.zero_grad()
