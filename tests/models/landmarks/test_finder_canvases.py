"""Training pictures of the face finder: faces lie where they are said to."""

from __future__ import annotations

import numpy as np
import pytest

from models.landmarks.finder_canvases import CanvasComposer, Canvases, CanvasSettings
from models.landmarks.framing import tight_frame
from models.landmarks.learning import LandmarkSamples

PLAIN = CanvasSettings(
    decoys=0.0, occluders=0.0, soft_share=0.0, bars_share=0.0, coarse_share=0.0, compressed_share=0.0, noise_share=0.0
)


@pytest.fixture(scope="module")
def canvases(drawn_faces: LandmarkSamples) -> Canvases:
    return CanvasComposer(drawn_faces, size_px=128, settings=PLAIN).compose(60, np.random.default_rng(1))


def colours_at(canvases: Canvases, samples: LandmarkSamples, points: list[int]) -> np.ndarray:
    """Colour in the middle of some of the mean shape's points, placed in every face's frame."""
    centre, side, angle = tight_frame(samples.mean_shape[None], samples.mean_shape)
    offset = (samples.mean_shape[points].mean(0) - centre[0]) / side[0]
    assert abs(angle[0]) < 1e-6
    cosine, sine = np.cos(canvases.angle), np.sin(canvases.angle)
    turned = np.stack([cosine * offset[0] - sine * offset[1], sine * offset[0] + cosine * offset[1]], 1)
    place = np.floor(canvases.centre + turned * canvases.side[:, None]).astype(int)
    return canvases.images[canvases.canvas, place[:, 1].clip(0, 127), place[:, 0].clip(0, 127)].astype(float)


def test_eyes_and_mouth_are_where_the_frames_say(canvases: Canvases, drawn_faces: LandmarkSamples) -> None:
    """Of any size, roll and mirror image: eyes are white, the mouth is red, the forehead's corner is neither."""
    clear = (canvases.visible > 0.95) & (canvases.side > 24.0)
    assert clear.sum() > 20
    assert (np.abs(canvases.angle[clear]) > 1.0).sum() > 3
    eyes = [colours_at(canvases, drawn_faces, list(range(start, start + 6)))[clear] for start in (36, 42)]
    assert np.mean([(eye.min(1) > 225).mean() for eye in eyes]) > 0.95
    mouth = colours_at(canvases, drawn_faces, list(range(48, 60)))[clear]
    assert ((mouth[:, 0] - mouth[:, 1]) > 80).mean() > 0.95


def test_faces_come_in_all_sizes_and_any_turn(canvases: Canvases) -> None:
    assert canvases.side.min() < 20.0 < 120.0 < canvases.side.max()
    assert (np.abs(canvases.angle) > 2.0).any()
    assert len(np.unique(canvases.canvas)) < len(canvases.canvas)


def test_cut_faces_are_seen_in_part(canvases: Canvases) -> None:
    inside = (np.abs(canvases.centre - 64.0) + 0.75 * canvases.side[:, None] < 64.0).all(1)
    alone = np.bincount(canvases.canvas, minlength=60)[canvases.canvas] == 1
    assert (inside & alone).any()
    np.testing.assert_allclose(canvases.visible[inside & alone], 1.0)
    assert (canvases.visible[canvases.side > 170.0] < 1.0).any()


def test_covered_faces_are_not_seen(drawn_faces: LandmarkSamples) -> None:
    settings = CanvasSettings(face_shares=(0.0, 1.0), occluders=8.0, bars_share=1.0)
    hidden = CanvasComposer(drawn_faces, size_px=64, settings=settings).compose(40, np.random.default_rng(0))
    assert len(hidden.side) == 40
    assert 0.1 < hidden.visible.mean() < 0.8
    assert (hidden.visible >= 0.0).all()
    assert (hidden.visible <= 1.0).all()


def test_everything_follows_the_seed(drawn_faces: LandmarkSamples) -> None:
    composer = CanvasComposer(drawn_faces, size_px=64)
    first, same, other = (composer.compose(4, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.images, same.images)
    np.testing.assert_array_equal(first.centre, same.centre)
    assert not np.array_equal(first.images, other.images)


def test_canvases_may_be_empty(drawn_faces: LandmarkSamples) -> None:
    settings = CanvasSettings(face_shares=(1.0,))
    empty = CanvasComposer(drawn_faces, size_px=64, settings=settings).compose(3, np.random.default_rng(0))
    assert empty.images.shape == (3, 64, 64, 3)
    assert empty.centre.shape == (0, 2)
