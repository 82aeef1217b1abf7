from __future__ import annotations

import numpy as np
import pytest
import torch

from models.animation.one_identity import filled, smoothed, with_one_identity
from models.face.procedural import procedural_face


def test_landmarks_are_kept_when_identity_is_shared() -> None:
    face = procedural_face(identity_modes=6)
    stream = torch.Generator().manual_seed(0)
    identity = torch.randn(8, 6, generator=stream) * 0.3 + torch.tensor([1.0, 0, 0, 0, 0, 0])
    expression = torch.rand(8, 52, generator=stream) * 0.3
    person, kept = with_one_identity(face, identity, expression, confidence=torch.ones(8))
    assert kept.shape == (8, 52)
    assert kept.min() >= 0.0
    assert kept.max() <= 1.0
    torch.testing.assert_close(person, identity.mean(0))

    def points(shape: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        return face.landmarks(face.vertices(shape, motion))

    target = points(identity, expression)
    shared = person.expand(8, -1)
    before = (points(shared, expression) - target).norm(dim=2).mean()
    after = (points(shared, kept) - target).norm(dim=2).mean()
    assert after < 0.9 * before


def test_frames_that_agree_stay_as_they_are() -> None:
    face = procedural_face(identity_modes=4)
    identity, expression = torch.ones(3, 4), torch.full((3, 52), 0.25)
    _, kept = with_one_identity(face, identity, expression, confidence=torch.zeros(3))
    torch.testing.assert_close(kept, expression)


def test_gaps_are_filled_by_lines() -> None:
    values = np.array([[0.0], [9.0], [9.0], [3.0], [9.0]])
    seen = np.array([True, False, False, True, False])
    assert filled(values, seen)[:, 0].tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0, 3.0])
    with pytest.raises(ValueError, match="no frame shows a face"):
        filled(values, np.zeros(5, bool))


def test_smoothing_takes_jitter_and_leaves_motion() -> None:
    times = np.arange(90) / 30
    motion = np.sin(2 * np.pi * 2 * times)
    jitter = 0.2 * (-1.0) ** np.arange(90)
    result = smoothed((motion + jitter)[:, None], rate_hz=30.0, cutoff_hz=8.0)[:, 0]
    assert np.abs(result - motion)[5:-5].max() < 0.05
    short = np.ones((4, 2))
    assert smoothed(short, rate_hz=30.0, cutoff_hz=8.0) is short
