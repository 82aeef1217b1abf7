"""Heads turned to the poses that annotated photos lack, and the trust in annotations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from tasks.annotated_photos import AnnotatedPhotos
from tasks.fill_poses import annotation_trust, choose_turns, fill_poses
from tasks.params import TrainDetectorParams
from tasks.turn import reachable_yaw
from tests.tasks.test_turn import photo_of

SECTION = TrainDetectorParams(turned_copies=2)


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return procedural_face(identity_modes=4)


@pytest.fixture(scope="module")
def portraits(face: MorphableModel) -> AnnotatedPhotos:
    """Twelve annotated photos near the front and one rendered one."""
    yaw = np.concatenate([np.linspace(-20.0, 20.0, 12), [70.0]])
    drawn = [photo_of(face, angle) for angle in yaw.tolist()]
    return AnnotatedPhotos(
        [image for image, _ in drawn],
        np.array([points for _, points in drawn], np.float32),
        yaw,
        np.array([1] * 12 + [0]),
    )


class TestChooseTurns:
    def test_large_poses_become_as_many_as_small_ones(self) -> None:
        yaw = np.random.default_rng(0).uniform(-25.0, 25.0, 240)
        source, wanted = choose_turns(yaw, SECTION, np.random.default_rng(1))
        # Only heads beyond 20 degrees reach 80; some of the last places stay empty.
        assert 230 <= len(wanted) <= 240
        counts = np.histogram(wanted, bins=[-85, -80, -70, -60, -50, -40, -30, 30, 40, 50, 60, 70, 80, 85])[0]
        assert counts[1:-1].tolist() == [20] * 5 + [0] + [20] * 5
        assert np.bincount(source).max() <= 2
        np.testing.assert_allclose(reachable_yaw(yaw[source], wanted), wanted)

    def test_photos_of_large_poses_are_counted(self) -> None:
        yaw = np.concatenate([np.zeros(24), np.full(5, 45.0)])
        _, wanted = choose_turns(yaw, SECTION, np.random.default_rng(1))
        # Two to a bin were wanted; the bin from 40 to 50 holds five.
        assert not ((wanted > 40.0) & (wanted <= 50.0)).any()
        assert ((wanted < -40.0) & (wanted >= -50.0)).sum() == 2

    def test_a_photo_is_turned_so_often_only(self) -> None:
        yaw = np.concatenate([np.zeros(2), np.full(100, -29.0)])
        source, wanted = choose_turns(yaw, SECTION, np.random.default_rng(1))
        # Only the two frontal heads can be turned to the other side.
        assert (wanted > 0.0).sum() == 4
        assert set(source[wanted > 0.0].tolist()) == {0, 1}

    def test_nothing_to_turn(self) -> None:
        source, wanted = choose_turns(np.full(10, 60.0), SECTION, np.random.default_rng(1))
        assert len(source) == len(wanted) == 0


class TestFillPoses:
    def test_turned_copies_come_after_the_photos(self, portraits: AnnotatedPhotos, face: MorphableModel) -> None:
        filled = fill_poses(portraits, face, SECTION, seed=0)
        added = len(filled.images) - 13
        assert filled.dense is filled.outline is None
        assert 8 <= added <= 12
        assert filled.convention.tolist() == [1] * 12 + [0] + [1] * added
        assert (np.abs(filled.yaw_deg[13:]) > 30.0).all()
        assert all(image.shape == portraits.images[0].shape for image in filled.images[13:])
        # A head turned to the subject's right or left carries its nose to that side of the eyes.
        eyes, nose = filled.points[13:, 36:48, 0].mean(1), filled.points[13:, 30, 0]
        assert (
            np.sign(nose - eyes) == np.sign(nose - eyes)[0] * np.sign(filled.yaw_deg[13:] * filled.yaw_deg[13])
        ).all()

    def test_turned_copies_have_no_dense_points_and_no_outline(
        self, portraits: AnnotatedPhotos, face: MorphableModel
    ) -> None:
        dense = np.full((13, 5, 2), np.nan, np.float32)
        dense[12] = 7.0
        outline = np.full((13, 17, 2), 3.0, np.float32)
        filled = fill_poses(replace(portraits, dense=dense, outline=outline), face, SECTION, seed=0)
        assert filled.dense is not None
        assert filled.outline is not None
        np.testing.assert_array_equal(filled.outline[:13], outline)
        assert np.isnan(filled.outline[13:]).all()
        np.testing.assert_array_equal(filled.dense[:13], dense)
        assert np.isnan(filled.dense[13:]).all()
        assert len(filled.dense) == len(filled.images) > 13

    def test_without_annotated_photos_or_wish_nothing_changes(
        self, portraits: AnnotatedPhotos, face: MorphableModel
    ) -> None:
        assert fill_poses(portraits, face, TrainDetectorParams(turned_copies=0), seed=0) is portraits
        rendered = portraits.take(np.array([12]))
        assert fill_poses(rendered, face, SECTION, seed=0) is rendered


class TestAnnotationTrust:
    def test_points_that_are_no_face_count_less(self, portraits: AnnotatedPhotos, face: MorphableModel) -> None:
        points = portraits.points.copy()
        points += np.random.default_rng(0).normal(0.0, 0.5, points.shape).astype(np.float32)
        points[3, 17:] += np.random.default_rng(1).normal(0.0, 8.0, (51, 2)).astype(np.float32)
        noisy = AnnotatedPhotos(portraits.images, points, portraits.yaw_deg, portraits.convention)
        trust = annotation_trust(noisy, face)
        assert trust[3] < 0.2
        assert (trust[[0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]] > 0.9).all()
        assert trust[12] == 1.0

    def test_few_photos_are_all_believed(self, portraits: AnnotatedPhotos, face: MorphableModel) -> None:
        assert annotation_trust(portraits.take(np.arange(5)), face).tolist() == [1.0] * 5
