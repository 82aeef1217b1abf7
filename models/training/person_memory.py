"""What training remembers of persons from step to step: a direction, a centre, and how all faces are spread."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.losses.identity import move_centers
from models.training.processes import gather_rows

FACES_REMEMBERED = 1000
"""Faces over which the running moments reach back: enough that their divergence is hardly biased, see `batch_bias`."""

ABSENT = -1

MIN_LENGTH_MM = 1e-3
"""Shapes nearer to the mean face have no direction."""


def hashed(name: str) -> str:
    """A person's mark in a checkpoint."""
    return hashlib.sha256(name.encode()).hexdigest()[:24]


class PersonMemory(nn.Module):
    """One row for each person that the losses of identity tell apart.

    The class weights learn as parameters do. Centres and moments are statistics: a step notes its faces, and `settle`,
    after the step, adds up what all processes noted, so that portions and processes change nothing.
    """

    centers: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor
    rows: Tensor

    def __init__(self, persons: Sequence[str], *, identity_size: int, center_rate: float) -> None:
        super().__init__()
        self.persons = tuple(persons)
        self.center_rate = center_rate
        self.class_weights = nn.Parameter(torch.zeros(len(self.persons), identity_size))
        self.register_buffer("centers", torch.zeros(len(self.persons), identity_size))
        self.register_buffer("mean", torch.zeros(identity_size))
        self.register_buffer("square", torch.ones(identity_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._centers_noted: list[Tensor] = []
        self._moments_noted: list[Tensor] = []

    def number(self, names: Sequence[str]) -> None:
        """Say which persons the numbers in batches mean: place in `names`."""
        places = {name: place for place, name in enumerate(self.persons)}
        self.rows = torch.tensor([places.get(name, ABSENT) for name in names], device=self.centers.device)

    def rows_of(self, person: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Rows of the persons of a batch.

        Raises: KeyError for a person who has none.
        """
        rows = self.rows[person]
        if bool((rows < 0).any()):
            raise KeyError(f"person {int(person[rows < 0][0])} has no row in the memory of {len(self.persons)} persons")
        return rows

    @torch.no_grad()
    def begin(
        self,
        person: Int[Tensor, "N"],
        embedding: Float[Tensor, "N K"],
        weight: Float[Tensor, "N"],
        *,
        known: Sequence[str] = (),
    ) -> None:
        """Start every person from the weighted mean of their faces, but those `known` already.

        A class weight begins as the direction of its centre, so that the first step tells persons apart: from random
        directions thousands of persons would take thousands of steps.
        Source: the imprinting of weights, Qi et al. 2018.
        """
        rows = self.rows_of(person)
        # A person seen only from behind still has a centre.
        weight = weight.clamp_min(1e-3)
        total = weight.new_zeros(len(self.centers)).index_add(0, rows, weight)
        sums = torch.zeros_like(self.centers).index_add(0, rows, weight[:, None] * embedding)
        fresh = total > 0.0
        kept = set(known)
        if kept:
            fresh &= torch.tensor([name not in kept for name in self.persons], device=fresh.device)
        means = sums / total.clamp_min(1e-9)[:, None]
        self.centers[fresh] = means[fresh]
        # Where the landmarks say nothing, as when they are hidden, any direction is as good, but none is not.
        drawn = torch.randn(means.shape, generator=torch.Generator().manual_seed(0)).to(means)
        found = torch.where(means.norm(dim=1, keepdim=True) > MIN_LENGTH_MM, means, drawn)
        self.class_weights[fresh] = nn.functional.normalize(found, dim=1)[fresh]

    @torch.no_grad()
    def begin_moments(self, coefficients: Float[Tensor, "N K"]) -> None:
        """Start the running moments from these faces."""
        if len(coefficients):
            self.mean.copy_(coefficients.mean(0))
            self.square.copy_(coefficients.square().mean(0))

    def note_centers(self, rows: Int[Tensor, "B"], embedding: Float[Tensor, "B K"], weight: Float[Tensor, "B"]) -> None:
        """Faces that will move their persons' centres when the step is done."""
        packed = torch.cat([rows[:, None].double(), weight[:, None].double(), embedding.double()], 1)
        self._centers_noted.append(packed.detach())

    def note_moments(self, coefficients: Float[Tensor, "B K"]) -> None:
        """Faces that will move the running moments when the step is done."""
        self._moments_noted.append(coefficients.detach().double())

    @torch.no_grad()
    def settle(self) -> None:
        """End a step: move centres and moments by the faces that all processes noted, and count it."""
        size = self.centers.shape[1]
        noted = self._gathered(self._centers_noted, size + 2)
        if len(noted):
            rows, weight, embedding = noted[:, 0].long(), noted[:, 1].float(), noted[:, 2:].float()
            self.centers.copy_(move_centers(self.centers, rows, embedding, weight, rate=self.center_rate))
        noted = self._gathered(self._moments_noted, size)
        if len(noted):
            share = len(noted) / max(FACES_REMEMBERED, len(noted))
            self.mean.lerp_(noted.mean(0).float(), share)
            self.square.lerp_(noted.square().mean(0).float(), share)
        self._centers_noted.clear()
        self._moments_noted.clear()
        self.steps += 1

    def _gathered(self, noted: list[Tensor], width: int) -> Tensor:
        rows = torch.cat(noted) if noted else self.centers.new_zeros(0, width, dtype=torch.float64)
        return gather_rows(rows)

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of it; persons by a hash, since a checkpoint is handed on and names are not."""
        state = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        return {"persons": [hashed(name) for name in self.persons], "state": state}

    @torch.no_grad()
    def recall(self, content: dict[str, Any]) -> tuple[str, ...]:
        """Take over the rows of persons known from a checkpoint, and its moments; gives their names.

        A memory of other coefficients has nothing to say and is left alone.
        """
        state = content["state"]
        if state["centers"].shape[1] != self.centers.shape[1]:
            return ()
        places = {name: place for place, name in enumerate(content["persons"])}
        here = [place for place, name in enumerate(self.persons) if hashed(name) in places]
        names = tuple(self.persons[place] for place in here)
        there = [places[hashed(name)] for name in names]
        for name in ("centers", "class_weights"):
            getattr(self, name)[here] = state[name][there].to(self.centers)
        for name in ("mean", "square", "steps"):
            getattr(self, name).copy_(state[name])
        return names
