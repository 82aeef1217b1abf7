from __future__ import annotations

import numpy as np
import pytest
import torch

from models.animation.rig import arkit_basis, resample_curves
from models.face.procedural_expressions import ARKIT_NAMES
from tests.speaking_face import NAMES, speaking_face
from tests.tiny_face import tiny_face


def test_shapes_come_in_our_order_and_halves_are_added() -> None:
    model = speaking_face()
    basis = arkit_basis(model)
    assert basis.shape == (52, 68, 3)
    assert torch.equal(basis[ARKIT_NAMES.index("jawOpen")], model.expression_basis[0])
    halves = model.expression_basis[NAMES.index("browInnerUpLeft")] + model.expression_basis[5]
    assert torch.equal(basis[ARKIT_NAMES.index("browInnerUp")], halves)
    assert not basis[ARKIT_NAMES.index("tongueOut")].any()


def test_a_face_that_cannot_speak_is_refused() -> None:
    with pytest.raises(ValueError, match="face model tiny: has no expressions mouthClose, mouthFunnel, mouthPucker"):
        arkit_basis(tiny_face())


def test_resampling_keeps_times() -> None:
    curves = np.stack([(np.arange(50) + 0.5) / 50, np.ones(50)], 1).astype(np.float32)
    found = resample_curves(curves, rate=50, new_rate=30)
    assert found.shape == (30, 2)
    assert np.allclose(found[:, 0], (np.arange(30) + 0.5) / 30, atol=1e-6)
    assert np.allclose(found[:, 1], 1.0)
    # Held beyond the first and the last frame.
    fine = resample_curves(curves, rate=50, new_rate=200, frames=201)
    assert fine[0, 0] == pytest.approx(0.01)
    assert fine[-1, 0] == pytest.approx(0.99)
    assert len(resample_curves(curves[:1], rate=50, new_rate=30)) == 1
