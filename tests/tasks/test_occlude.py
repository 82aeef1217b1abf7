"""What is in the way: it hides a part of the face, and never all of it."""

from __future__ import annotations

import numpy as np
import pytest

from tasks import occlude
from tasks.subjects import draw_subject, person_stream
from tests.outlines import head_outline

SIZE = 200


def canvas() -> np.ndarray:
    return np.random.default_rng(9).integers(60, 200, (SIZE, SIZE, 3)).astype(np.uint8)


def covered(image: np.ndarray) -> np.ndarray:
    """Landmarks whose surroundings have changed much."""
    changed = np.abs(image.astype(int) - canvas()).max(2) > 12
    places = head_outline(size_px=SIZE).landmarks.round().astype(int).clip(1, SIZE - 2)
    return np.array([changed[y - 1 : y + 2, x - 1 : x + 2].mean() > 0.5 for x, y in places])


@pytest.mark.parametrize("roll", [0.0, -0.5])
def test_obstacles_cover_some_points(roll: float) -> None:
    shares = []
    for number in range(16):
        image = canvas()
        occlude.draw_obstacle(image, head_outline(size_px=SIZE, roll=roll), np.random.default_rng(number))
        assert image.shape == (SIZE, SIZE, 3)
        shares.append(covered(image).mean())
    assert 0.1 < np.mean(shares) < 0.6
    assert np.mean(np.array(shares) > 0.9) < 0.1


def test_masks_leave_the_eyes_and_spectacles_are_at_them() -> None:
    for number in range(5):
        image = canvas()
        occlude._mask(image, head_outline(size_px=SIZE), np.random.default_rng(number))
        hidden = covered(image)
        assert hidden[48:68].mean() > 0.9
        assert not hidden[36:48].any()
        image = canvas()
        occlude.draw_spectacles(image, head_outline(size_px=SIZE), np.random.default_rng(number), yaw=0.0)
        changed = np.abs(image.astype(int) - canvas()).max(2) > 12
        rows = np.flatnonzero(changed.any(1))
        assert 60 < rows.mean() < 115
        assert not covered(image)[48:68].any()


@pytest.mark.parametrize("name", ["_hat", "_headscarf"])
def test_hats_leave_the_face(name: str) -> None:
    for number in range(5):
        image = canvas()
        getattr(occlude, name)(image, head_outline(size_px=SIZE), np.random.default_rng(number))
        assert np.abs(image[:40].astype(int) - canvas()[:40]).mean() > 3
        assert covered(image)[27:68].mean() < 0.3


def test_wear_is_an_exception() -> None:
    head = head_outline(size_px=SIZE)
    subject = draw_subject(person_stream(0, "photos", 0), identity_size=0, albedo_size=0)
    changed = []
    for number in range(40):
        image = canvas()
        occlude.draw_wear(image, head, subject, np.random.default_rng(number), yaw=0.0)
        changed.append((image != canvas()).any())
    assert 0.1 < np.mean(changed) < 0.7 or subject.wears_glasses
