"""Backgrounds from photos: the face is gone, the rest is there."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.backdrops import Backdrops


def points(centre: tuple[float, float], side: float) -> np.ndarray:
    """A crude face: jaw below, brows above, the rest in between."""
    jaw = np.linspace(0, np.pi, 17)
    outline = np.stack([-np.cos(jaw), np.sin(jaw)], 1)
    brows = np.stack([np.linspace(-0.7, 0.7, 10), np.full(10, -0.4)], 1)
    rest = np.tile([[0.0, -0.3]], (41, 1))
    return np.array(centre) + side / 2.0 * np.concatenate([outline, brows, rest])


def photo(marker: int = 255) -> np.ndarray:
    image = np.zeros((160, 200, 3), np.uint8)
    image[..., 0], image[..., 2] = 40, np.linspace(60, 200, 200).astype(np.uint8)
    # Green is nowhere but on the face.
    image[68:100, 84:116, 1] = marker
    return image


def test_no_trace_of_the_face() -> None:
    backdrops = Backdrops([(photo(), points((100.0, 80.0), 64.0))])
    for number in range(20):
        drawn = backdrops.draw(np.random.default_rng(number), 96)
        assert drawn.shape == (96, 96, 3)
        assert drawn[..., 1].max() <= 12
        assert drawn[..., 2].max() > 40


def test_draws_differ_and_repeat() -> None:
    backdrops = Backdrops([(photo(), points((100.0, 80.0), 64.0)), (photo()[:, ::-1], points((100.0, 80.0), 64.0))])
    assert len(backdrops) == 2
    drawn = [backdrops.draw(np.random.default_rng(number), 64) for number in (0, 1, 0)]
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 10


def test_nothing_to_draw_from() -> None:
    with pytest.raises(ValueError, match="no photo to cut a background from"):
        Backdrops([]).draw(np.random.default_rng(0), 64)


def test_a_face_that_fills_the_photo() -> None:
    drawn = Backdrops([(photo(), points((100.0, 80.0), 400.0))]).draw(np.random.default_rng(0), 64)
    assert drawn.shape == (64, 64, 3)


def test_a_photo_is_laid_under_a_face_that_is_turned_alike() -> None:
    face = points((100.0, 80.0), 64.0)
    backdrops = Backdrops([(photo(), face)])
    turn = 0.3
    matrix = 1.5 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    wanted = (face - [100.0, 80.0]) @ matrix.T + [64.0, 60.0]
    found = backdrops.draw_around(np.random.default_rng(0), wanted, 128)
    assert found is not None
    assert found.magnification == pytest.approx(1.5)
    assert found.image.shape == (128, 128, 3)
    assert found.image[..., 1].max() < 120
    # Blue grows to the right of the photo, so after the turn the middle row's blue grows, too.
    assert found.image[60, 100:, 2].mean() != pytest.approx(found.image[60, :28, 2].mean(), abs=5)
    np.testing.assert_allclose(found.skin[[0, 1]], [40.0, 255.0], atol=1)


def test_no_photo_fits_a_face_in_another_pose_or_at_the_border() -> None:
    face = points((100.0, 80.0), 64.0)
    backdrops = Backdrops([(photo(), face)])
    narrow = (face - [100.0, 80.0]) * [0.5, 1.0] + [64.0, 64.0]
    assert backdrops.draw_around(np.random.default_rng(0), narrow, 128) is None
    tiny = (face - [100.0, 80.0]) * 0.3 + [64.0, 64.0]
    assert backdrops.draw_around(np.random.default_rng(0), tiny, 128) is None
