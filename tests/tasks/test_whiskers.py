"""Beards hide the mouth's surroundings and the jaw, reach beyond it, and leave the eyes alone."""

from __future__ import annotations

import numpy as np
import pytest

from tasks import whiskers
from tasks.subjects import draw_subject
from tests.outlines import head_outline

SIZE = 200
SKIN = 170


def drawn(number: int, monkeypatch: pytest.MonkeyPatch, *, roll: float = 0.0) -> np.ndarray:
    """(SIZE, SIZE) where the picture has changed."""
    monkeypatch.setattr(whiskers, "SHARE", 1.0)
    stream = np.random.default_rng(number)
    image = np.full((SIZE, SIZE, 3), SKIN, np.uint8)
    subject = draw_subject(stream, identity_size=2, albedo_size=2)
    whiskers.draw_whiskers(image, head_outline(size_px=SIZE, roll=roll), subject, stream)
    return np.abs(image.astype(int) - SKIN).max(2) > 12


@pytest.mark.parametrize("roll", [0.0, 0.5])
def test_whiskers_lie_around_the_mouth(roll: float, monkeypatch: pytest.MonkeyPatch) -> None:
    points = head_outline(size_px=SIZE, roll=roll).landmarks.round().astype(int).clip(0, SIZE - 1)
    hidden = np.stack([drawn(number, monkeypatch, roll=roll)[points[:, 1], points[:, 0]] for number in range(24)])
    assert hidden[:, 48:68].mean() > 0.25
    assert hidden[:, 6:11].mean() > 0.3
    assert not hidden[:, 17:31].any()
    assert not hidden[:, 36:48].any()


def test_some_beards_are_longer_than_the_face(monkeypatch: pytest.MonkeyPatch) -> None:
    chin = head_outline(size_px=SIZE).landmarks[8, 1]
    lowest = np.array([np.flatnonzero(drawn(number, monkeypatch).any(1)).max() for number in range(24)])
    assert (lowest > chin + 8).any()
    assert (lowest < chin).any()


def test_most_faces_have_none() -> None:
    clean = 0
    for number in range(60):
        image = np.full((SIZE, SIZE, 3), SKIN, np.uint8)
        stream = np.random.default_rng(number)
        subject = draw_subject(stream, identity_size=2, albedo_size=2)
        whiskers.draw_whiskers(image, head_outline(size_px=SIZE), subject, stream)
        clean += bool((image == SKIN).all())
    assert 40 <= clean <= 56


def test_the_same_stream_gives_the_same_beard(monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(drawn(5, monkeypatch), drawn(5, monkeypatch))
