from __future__ import annotations

import pytest
import torch

from models.animation.accuracy import SpeakingFace, jitter, lip_vertex_error, upper_face_deviation
from models.face.procedural_expressions import ARKIT_NAMES
from tests.speaking_face import JAW_MM, speaking_face

JAW, BROW = ARKIT_NAMES.index("jawOpen"), ARKIT_NAMES.index("browInnerUp")


def curves(frames: int, **columns: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(frames, 52)
    for name, values in columns.items():
        found[:, ARKIT_NAMES.index(name)] = values
    return found


def test_regions() -> None:
    face = SpeakingFace.of(speaking_face())
    assert face.lips.shape == (52, 20, 3)
    assert not face.upper[JAW].any()
    assert face.upper[BROW].any()
    assert not face.lips[BROW].any()


def test_lip_error_is_that_of_the_worst_lip_vertex() -> None:
    face = SpeakingFace.of(speaking_face())
    squared, plain = lip_vertex_error(
        curves(2, jawOpen=torch.tensor([0.5, 0.2])), curves(2, jawOpen=torch.tensor([0.5, 0.3])), face
    )
    assert plain.tolist() == pytest.approx([0.0, 0.1 * JAW_MM], abs=1e-5)
    assert squared.tolist() == pytest.approx([0.0, (0.1 * JAW_MM) ** 2], abs=1e-4)


def test_a_still_brow_deviates_by_the_motion_it_lacks() -> None:
    face = SpeakingFace.of(speaking_face())
    moving = curves(4, browInnerUp=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    count = face.upper.shape[1]
    # Ten brow points rise by 4 mm and back: squared motion 0, 16, 0, 16.
    expected = 10 / count * float(torch.tensor([0.0, 16.0, 0.0, 16.0]).std())
    assert upper_face_deviation(curves(4), moving, face) == pytest.approx(expected, rel=1e-5)
    assert upper_face_deviation(moving, curves(4), face) == pytest.approx(-expected, rel=1e-5)
    assert upper_face_deviation(moving[:1], moving[:1], face) == 0.0


def test_jitter() -> None:
    known = torch.zeros(52, dtype=torch.bool)
    known[JAW] = True
    straight = curves(5, jawOpen=torch.linspace(0, 1, 5))
    assert jitter(straight, known) == pytest.approx(0.0, abs=1e-6)
    assert jitter(curves(3, jawOpen=torch.tensor([0.0, 0.5, 0.0])), known) == pytest.approx(1.0)
    assert jitter(straight[:2], known) == 0.0
