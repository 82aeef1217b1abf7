"""What changes about a training step while a stage runs; the steps themselves are tested with tasks/train.py."""

from __future__ import annotations

import pytest
from torch import nn

from models.training.learner import Learner
from tasks.training_step import _annealed


def test_symmetry_falls_to_a_fifth_and_nothing_else_does() -> None:
    terms = {"symmetry": 0.01, "photo": 1.92}
    for done, expected in ((0.0, 0.01), (0.5, 0.006), (1.0, 0.002)):
        assert _annealed(terms, done) == pytest.approx({"symmetry": expected, "photo": 1.92})
    assert _annealed({"photo": 1.92}, 0.5) == {"photo": 1.92}


def test_a_learner_counts_its_steps_and_keeps_the_count() -> None:
    learner = Learner(nn.Identity())
    for _ in range(3):
        learner.settle()
    other = Learner(nn.Identity())
    other.load_state_dict(learner.state_dict())
    assert int(other.steps) == 3
