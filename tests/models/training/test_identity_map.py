from __future__ import annotations

import torch
from torch import nn

from models.metrics import distinctness
from models.training.identity_map import fit_identity_map

SIZE = 4
MM = 2.0
"""Of a coefficient, as in a face."""


def photos(persons: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three photos each; two coefficients say who it is, the other two differ from photo to photo."""
    generator = torch.Generator().manual_seed(seed)
    person = torch.arange(3 * persons) // 3
    identity = torch.randn(persons, SIZE, generator=generator)[person]
    noise = torch.randn(3 * persons, SIZE, generator=generator) * torch.tensor([0.2, 0.2, 1.0, 1.0])
    keep = torch.tensor([1.0, 1.0, 0.2, 0.2])
    return keep * identity + noise, person


def fitted(identity: torch.Tensor, person: torch.Tensor, *, steps: int = 60) -> nn.Linear:
    layer = nn.Linear(SIZE, SIZE)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    fit_identity_map(layer, identity, person, MM * torch.eye(SIZE), steps=steps, inverse_variance=0.5, seed=1)
    return layer


def test_it_makes_strangers_distinct() -> None:
    layer = fitted(*photos(80, seed=0))
    others, person = photos(60, seed=1)
    with torch.no_grad():
        mapped = others + layer(others)
    assert distinctness(mapped, person) > 1.3 * distinctness(others, person)
    # It shrinks what differs from photo to photo more than what does not.
    spread = mapped.std(0) / others.std(0)
    assert spread[:2].min() > 1.2 * spread[2:].max()
    # And faces stay what they were, by and large.
    assert (mapped - others).square().sum(1).mean() < 0.5 * others.square().sum(1).mean()


def test_it_is_the_same_every_time_and_leaves_no_gradients() -> None:
    first, again = fitted(*photos(20, seed=2)), fitted(*photos(20, seed=2))
    assert torch.equal(first.weight, again.weight)
    assert first.weight.grad is None or not first.weight.grad.any()


def test_names_of_persons_do_not_matter() -> None:
    identity, person = photos(20, seed=3)
    torch.testing.assert_close(fitted(identity, person).weight, fitted(identity, 10 * person + 7).weight)


def test_persons_of_one_photo_do_not_count() -> None:
    identity, person = photos(20, seed=4)
    strangers = torch.cat([identity, 100 * torch.ones(5, SIZE)])
    numbers = torch.cat([person, torch.arange(90, 95)])
    torch.testing.assert_close(fitted(strangers, numbers).weight, fitted(identity, person).weight)


def test_without_two_persons_nothing_happens() -> None:
    assert not fitted(torch.randn(3, SIZE), torch.zeros(3, dtype=torch.int64)).weight.any()
    assert not fitted(torch.randn(3, SIZE), torch.arange(3)).weight.any()


def test_how_many_photos_a_person_has_hardly_matters() -> None:
    identity, person = photos(80, seed=5)
    two = torch.arange(len(person)) % 3 != 2
    all_of_them, fewer = (fitted(identity[rows], person[rows]) for rows in (torch.ones_like(two), two))
    others, owner = photos(60, seed=6)
    with torch.no_grad():
        found = [distinctness(others + layer(others), owner) for layer in (all_of_them, fewer)]
    assert abs(found[0] - found[1]) < 0.1 * found[0]
