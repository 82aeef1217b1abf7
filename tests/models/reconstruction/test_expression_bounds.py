from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.reconstruction.expression_bounds import RIDGE, ExpressionBounds, expression_bounds


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return procedural_face()


def wild(face: MorphableModel, count: int = 6) -> torch.Tensor:
    return 0.4 * torch.randn(count, face.expression_size, generator=torch.Generator().manual_seed(3))


def test_expressions_are_held_as_a_solver_of_bounded_least_squares_holds_them(face: MorphableModel) -> None:
    wanted = wild(face)
    low, high = (bound.double().numpy() for bound in expression_bounds(face, face.mean))
    held = ExpressionBounds(face).hold(wanted).double().numpy()
    assert (held >= low).all()
    assert (held <= high).all()
    shapes = face.expression_basis.flatten(1).double().numpy()
    root = np.sqrt(RIDGE * (shapes**2).sum(1).mean()) * np.eye(len(shapes))
    system = np.vstack([shapes.T, root])
    free = np.array([not name.startswith(("eyeLook", "tongueOut")) for name in face.expression_names])
    for own, aim in zip(held, wanted.double().numpy(), strict=True):
        best = aim.clip(low, high)
        rest = system @ aim - system[:, ~free] @ best[~free]
        best[free] = lsq_linear(system[:, free], rest, bounds=(low[free], high[free]), method="bvls").x
        moved = np.abs((own - best) @ shapes).max()
        assert moved < 0.01, f"a vertex lies {moved:.4f} mm from where it should"


def test_held_faces_are_nearer_than_those_that_are_cut_off(face: MorphableModel) -> None:
    wanted = wild(face)
    low, high = expression_bounds(face, face.mean)
    cut = torch.minimum(torch.maximum(wanted, low), high)
    held = ExpressionBounds(face).hold(wanted)

    def miss(found: torch.Tensor) -> torch.Tensor:
        return torch.einsum("be,evc->bvc", found - wanted, face.expression_basis).square().sum((1, 2)).sqrt()

    assert (miss(held) < 0.9 * miss(cut)).all()


def test_gaze_does_not_speak_for_lids(face: MorphableModel) -> None:
    wanted = wild(face).abs()
    gaze = [name.startswith("eyeLook") for name in face.expression_names]
    wanted[:, gaze] = 0.0
    wanted[:, face.expression_names.index("eyeBlinkLeft")] = -0.4
    assert sum(gaze) == 8
    assert (ExpressionBounds(face).hold(wanted)[:, gaze] == 0.0).all()


def test_what_lies_within_bounds_stays_to_the_bit(face: MorphableModel) -> None:
    wanted = wild(face)
    wanted[2] = wanted[2].abs().clamp_max(1.0)
    held = ExpressionBounds(face).hold(wanted)
    assert torch.equal(held[2], wanted[2])
    assert not torch.equal(held[1], wanted[1])
    assert torch.equal(ExpressionBounds(face).hold(held), held)
