from __future__ import annotations

import math

import pytest
import torch

from models.animation.lips import (
    ICT_GAPS,
    ClosureCounts,
    LipCalibration,
    calibrate_lips,
    closing_loss,
    count_closures,
    lip_closure,
    lip_distance,
    opening_loss,
    widen,
)
from models.face.procedural_expressions import ARKIT_NAMES
from tests.speaking_face import JAW_MM, speaking_face
from tests.tiny_face import tiny_face

ICT = LipCalibration(torch.tensor([ICT_GAPS.get(name, 0.0) for name in ARKIT_NAMES]), 28.9, "")


def face(**values: float) -> torch.Tensor:
    coefficients = torch.zeros(52)
    for name, value in values.items():
        coefficients[ARKIT_NAMES.index(name)] = value
    return coefficients


def test_calibration_measures_the_inner_lips() -> None:
    found = calibrate_lips(speaking_face())
    gaps = dict(zip(ARKIT_NAMES, found.gaps.tolist(), strict=True))
    assert gaps["jawOpen"] == 1.0
    assert gaps["mouthClose"] == pytest.approx(-0.8)
    assert gaps["mouthFunnel"] == pytest.approx(0.25)
    assert gaps["mouthPucker"] == 0.0
    assert found.jaw_gap_mm == pytest.approx(JAW_MM)
    assert found.meeting_ratio == pytest.approx(1.25)
    assert found.face_model == speaking_face().content_hash()


def test_the_patents_distance_leaves_the_funnel_out() -> None:
    found = calibrate_lips(speaking_face(), mode="patent")
    assert found.gaps[ARKIT_NAMES.index("mouthFunnel")] == 0.0
    assert found.gaps[ARKIT_NAMES.index("mouthClose")] == pytest.approx(-0.8)


def test_a_face_whose_jaw_parts_no_lips_gets_built_in_numbers() -> None:
    found = calibrate_lips(tiny_face())
    assert torch.equal(found.gaps, ICT.gaps)
    assert found.face_model == ""


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="patent, extended"):
        calibrate_lips(tiny_face(), mode="wide")


def test_distance_adds_up_what_shapes_open() -> None:
    value = lip_distance(face(jawOpen=0.5, mouthClose=0.25, mouthFunnel=0.2), ICT.gaps)
    assert float(value) == pytest.approx(0.5 - 1.286 * 0.25 + 0.375 * 0.2)


@pytest.mark.parametrize(
    ("jaw", "close", "expected"),
    [(0.4, 0.0, 0.0), (0.4, 0.1, 0.0), (0.4, 0.2005, 0.5), (0.4, 0.31, 1.0), (0.04, 0.0, 0.0), (0.04, 0.02, 1.0)],
)
def test_closure_follows_the_ratio_and_at_rest_the_distance(jaw: float, close: float, expected: float) -> None:
    assert float(lip_closure(face(jawOpen=jaw, mouthClose=close), ICT)) == pytest.approx(expected, abs=1e-6)


def test_thresholds_scale_with_where_the_lips_of_a_face_meet() -> None:
    wide = LipCalibration(ICT.gaps / 1.286 * torch.where(ICT.gaps == 1.0, 1.286, 1.0), 28.9, "")
    assert wide.meeting_ratio == pytest.approx(1.0)
    # Three quarters of the jaw's opening close ICT's lips, not those of a face that needs all of it.
    coefficients = face(jawOpen=0.4, mouthClose=0.305)
    assert float(lip_closure(coefficients, ICT)) == 1.0
    assert float(lip_closure(coefficients, wide)) < 0.9


def test_losses_by_hand() -> None:
    predicted, closure = torch.tensor([0.12, 0.12, 0.01]), torch.tensor([1.0, 0.5, 1.0])
    bilabial = torch.tensor([True, False, True])
    assert closing_loss(predicted, closure, bilabial=bilabial).tolist() == pytest.approx([0.03, 0.005, 0.0])
    found = opening_loss(torch.tensor([0.3, 0.3]), torch.tensor([0.5, -0.2]), torch.tensor([0.0, 1.0]))
    assert found.tolist() == pytest.approx([math.exp(-0.5) * 0.04, 0.0])


def test_the_losses_have_right_gradients() -> None:
    predicted = torch.tensor([0.2, 0.4], dtype=torch.float64, requires_grad=True)
    closure = torch.tensor([1.0, 0.3], dtype=torch.float64)
    bilabial = torch.tensor([True, False])
    assert torch.autograd.gradcheck(lambda found: closing_loss(found, closure, bilabial=bilabial), predicted)
    assert torch.autograd.gradcheck(lambda found: opening_loss(found, closure, closure), predicted)


def test_closures_may_come_a_frame_early() -> None:
    target = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.5])
    early = torch.tensor([0.5, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0])
    counts = count_closures(early, target)
    assert counts == ClosureCounts(true=2, found=2, predicted=3, right=2)
    assert counts.f1 == pytest.approx(0.8)
    strict = count_closures(early, target, tolerance_frames=0)
    assert (strict.found, strict.right) == (1, 1)
    only = count_closures(early, target, considered=torch.arange(7) < 4)
    assert only.precision == 1.0


def test_counts_without_closures_have_no_score() -> None:
    never = count_closures(torch.ones(3), torch.ones(3))
    assert math.isnan(never.f1)
    missed = count_closures(torch.ones(3), torch.zeros(3))
    assert missed.f1 == 0.0
    assert (missed + never).true == 3


def test_widen() -> None:
    assert widen(torch.tensor([False, False, True, False]), 1).tolist() == [False, True, True, True]
