from __future__ import annotations

import numpy as np
import torch

from models.face.procedural import procedural_face
from tasks.set_evaluation import SetBench, compare, draw_sets, summarize


def test_sets_are_disjoint_and_of_one_person_each() -> None:
    person = torch.tensor([0] * 5 + [1] * 4 + [2])
    sets, owners = draw_sets(person, 2, most=2, seed=3)
    assert owners.tolist() == [0, 0, 1, 1]
    assert (person[sets] == torch.from_numpy(owners)[:, None]).all()
    assert len(set(sets.flatten().tolist())) == sets.numel()
    larger, _ = draw_sets(person, 4, most=1, seed=3)
    assert set(sets[0].tolist()) < set(larger[0].tolist())
    assert draw_sets(person, 9, most=1)[0].shape == (0, 9)


def test_the_truth_has_no_error_and_a_better_guess_less_than_a_worse() -> None:
    model = procedural_face(identity_modes=4)
    identity = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    bench, persons = SetBench(model, model.vertices(identity)), np.arange(3)
    truth, near, far = (bench.errors(model.vertices(factor * identity), persons) for factor in (1.0, 0.8, 0.2))
    assert truth.vertex_mm.max() < 1e-3
    assert truth.scan_mm.max() < 1e-2
    assert (near.vertex_mm < far.vertex_mm).all()
    assert compare(near, far, 3)["scan_error_mm_high"] < 0.0
    found = summarize(far)
    assert (found["sets"], found["persons"]) == (3, 3)
    assert found["vertex_error_mm_low"] <= found["vertex_error_mm"] <= found["vertex_error_mm_high"]
    distances = bench.distances(model.vertices(0.2 * identity), persons)
    np.testing.assert_allclose(distances.mean(1).numpy(), far.vertex_mm, rtol=1e-5)
