"""Mirroring, frames and crops."""

from __future__ import annotations

import numpy as np
import pytest

from models.landmarks.framing import (
    FLIP_PERMUTATION,
    FRAME_SCALE,
    cut_frames,
    frame_affine,
    frame_distance,
    mean_face_shape,
    mirror_frames,
    mirror_points,
    tight_frame,
    transform_points,
    upright_angle,
)


@pytest.fixture
def shape() -> np.ndarray:
    """A symmetric face: random right half, mirrored."""
    points = np.random.default_rng(3).uniform(-0.5, 0.5, (1, 68, 2))
    return mean_face_shape(np.concatenate([points, mirror_points(points, 0.0)]))


def rotate(points: np.ndarray, angle: float) -> np.ndarray:
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ matrix.T


class TestMirror:
    def test_permutation_is_an_involution(self) -> None:
        assert sorted(FLIP_PERMUTATION) == list(range(68))
        np.testing.assert_array_equal(FLIP_PERMUTATION[FLIP_PERMUTATION], np.arange(68))

    def test_known_pairs(self) -> None:
        # Jaw ends, brow ends, nostrils, outer and inner eye corners, mouth corners, midline points.
        pairs = {
            0: 16,
            17: 26,
            31: 35,
            36: 45,
            39: 42,
            37: 44,
            41: 46,
            48: 54,
            60: 64,
            59: 55,
            67: 65,
            8: 8,
            30: 30,
            51: 51,
            66: 66,
        }
        assert {point: int(FLIP_PERMUTATION[point]) for point in pairs} == pairs

    def test_symmetric_face_is_its_own_mirror_image(self, shape: np.ndarray) -> None:
        np.testing.assert_allclose(mirror_points(shape, 0.0), shape, atol=1e-12)

    def test_twice_is_nothing(self) -> None:
        points = np.random.default_rng(0).uniform(0, 100, (4, 68, 2))
        np.testing.assert_allclose(mirror_points(mirror_points(points, 100.0), 100.0), points)


class TestFrames:
    @pytest.mark.parametrize("angle", [-0.6, 0.0, 0.3])
    def test_upright_angle_is_the_turn_of_the_head(self, shape: np.ndarray, angle: float) -> None:
        points = rotate(shape * 80.0, angle) + [30.0, 50.0]
        np.testing.assert_allclose(upright_angle(points[None], shape), [angle], atol=1e-9)

    def test_tight_frame_shows_the_head_upright_and_centred(self, shape: np.ndarray) -> None:
        points = (rotate(shape * 80.0, 0.4) + [30.0, 50.0])[None]
        affine = frame_affine(*tight_frame(points, shape), size_px=100)
        inside = transform_points(np.linalg.inv(affine), points)[0]
        np.testing.assert_allclose((inside.min(0) + inside.max(0)) / 2, [50.0, 50.0], atol=1e-6)
        np.testing.assert_allclose(np.ptp(inside, axis=0).max(), 100 / FRAME_SCALE, atol=1e-6)
        np.testing.assert_allclose(inside - inside.mean(0), (shape - shape.mean(0)) * 80.0, atol=1e-6)

    def test_flipped_frame_reads_from_right_to_left(self) -> None:
        affine = frame_affine(np.array([[8.0, 8.0]]), np.array([16.0]), np.zeros(1), size_px=16, flip=np.array([True]))
        np.testing.assert_allclose(transform_points(affine, np.array([[[1.0, 2.0]]])), [[[15.0, 2.0]]])


class TestCut:
    def test_identity_frame_copies_pixels(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        affine = frame_affine(np.array([[8.0, 8.0]]), np.array([16.0]), np.zeros(1), size_px=16)
        np.testing.assert_array_equal(cut_frames([image], np.array([0]), affine, size_px=16)[0], image)

    def test_flip_mirrors_pixels(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        affine = frame_affine(np.array([[8.0, 8.0]]), np.array([16.0]), np.zeros(1), size_px=16, flip=np.array([True]))
        np.testing.assert_array_equal(cut_frames([image], np.array([0]), affine, size_px=16)[0], image[:, ::-1])

    @pytest.mark.parametrize("side", [20.0, 64.0, 200.0])
    def test_a_bright_spot_lands_where_the_affine_says(self, side: float) -> None:
        image = np.zeros((256, 256, 3), np.uint8)
        image[90:102, 130:142] = 255  # centre (136, 96)
        affine = frame_affine(np.array([[132.0, 100.0]]), np.array([max(side, 40.0)]), np.array([0.3]), size_px=48)
        crop = cut_frames([image], np.array([0]), affine, size_px=48)[0, ..., 0].astype(float)
        rows, columns = np.mgrid[:48, :48] + 0.5
        centre = np.array([(columns * crop).sum(), (rows * crop).sum()]) / crop.sum()
        expected = transform_points(np.linalg.inv(affine), np.array([[[136.0, 96.0]]]))[0, 0]
        np.testing.assert_allclose(centre, expected, atol=0.1)

    def test_black_outside(self) -> None:
        image = np.full((8, 8, 3), 200, np.uint8)
        affine = frame_affine(np.array([[0.0, 4.0]]), np.array([8.0]), np.zeros(1), size_px=8)
        crop = cut_frames([image], np.array([0]), affine, size_px=8)[0]
        assert crop[:, :3].max() == 0
        assert crop[:, 5:].min() == 200


def test_distance_of_frames_is_that_of_their_corners() -> None:
    centre, side, angle = np.array([[50.0, 60.0]]), np.array([40.0]), np.array([0.3])
    frame = frame_affine(centre, side, angle, size_px=64)
    moved = frame_affine(centre + [[3.0, 4.0]], side, angle, size_px=64)
    larger = frame_affine(centre, 1.5 * side, angle, size_px=64)
    turned = frame_affine(centre, side, angle + np.pi / 2.0, size_px=64)
    distances = [frame_distance(other, frame, size_px=64)[0] for other in (frame, moved, larger, turned)]
    # Corners lie half a diagonal from the centre; a quarter turn takes each to its neighbour's place.
    np.testing.assert_allclose(distances, [0.0, 5.0 / 40.0, 0.25 * np.sqrt(2.0), 1.0], atol=1e-12)


def test_mirrored_frames_are_flipped_ones() -> None:
    place = {"centre": np.array([[50.0, 60.0]]), "side": np.array([40.0]), "angle": np.array([0.3])}
    flipped = frame_affine(**place, size_px=64, flip=np.array([True]))
    np.testing.assert_allclose(mirror_frames(frame_affine(**place, size_px=64), size_px=64), flipped, atol=1e-12)
