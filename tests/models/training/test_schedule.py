from __future__ import annotations

import itertools

import pytest
from torch import nn

from models.training.schedule import parameter_groups, rate_share


def shares(**options: object) -> list[float]:
    return [rate_share(step, steps=20, warmup_steps=4, **options) for step in range(20)]  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_every_schedule_warms_up(schedule: str) -> None:
    assert shares(schedule=schedule)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_the_cosine_falls_to_a_fiftieth() -> None:
    found = shares()
    assert found[12] == pytest.approx(0.51)
    assert all(after < before for before, after in itertools.pairwise(found[4:]))
    assert rate_share(20, steps=20, warmup_steps=4) == pytest.approx(0.02)


def test_the_step_falls_once() -> None:
    found = shares(schedule="step", decay_at=0.75)
    assert found[4:15] == [1.0] * 11
    assert found[15:] == [0.1] * 5


def test_the_constant_rate_stays() -> None:
    assert shares(schedule="constant")[4:] == [1.0] * 16


def test_parameters_are_grouped_by_factor() -> None:
    network = nn.ModuleDict({"geometry": nn.Linear(2, 2), "image": nn.Linear(2, 2), "still": nn.Linear(2, 2)})
    groups = parameter_groups(network, {"geometry.": 0.1, "still.": 0.0})
    assert [(group["factor"], len(group["params"])) for group in groups] == [(0.1, 2), (1.0, 2)]
    assert not any(parameter.requires_grad for parameter in network["still"].parameters())
