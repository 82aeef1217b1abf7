"""Errors worked out by hand, invariants of the numbers, and confidences that tell the truth or lie."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.landmarks.accuracy import (
    MeasuredFaces,
    ReliabilityBin,
    accuracy_by_yaw,
    area_under_curve,
    bootstrap_intervals,
    calibration_error,
    face_errors,
    failure_rate,
    measure_accuracy,
    nearest_face,
    reliability_curve,
)
from models.landmarks.detector import confidence_from_sigma, sigma_from_confidence


def annotated_face(eyes_px: float = 40.0) -> np.ndarray:
    """68 points in a box of 100 x 64 px whose outer eye corners are so far apart."""
    points = np.full((68, 2), 50.0)
    points[0], points[8] = (0.0, 20.0), (100.0, 84.0)
    points[36], points[45] = (50.0 - eyes_px / 2.0, 50.0), (50.0 + eyes_px / 2.0, 50.0)
    return points


def measured(*offsets_px: float, confidence: float = 0.5, yaw_deg: list[float] | None = None) -> MeasuredFaces:
    """Faces that were found so far to the right of the annotation; NaN is a missed one."""
    annotated = np.array([annotated_face() for _ in offsets_px]).reshape(-1, 68, 2)
    found = annotated + np.array(offsets_px).reshape(-1, 1, 1) * [1.0, 0.0]
    found[np.isnan(np.array(offsets_px, float))] = np.nan
    level = np.full((len(offsets_px), 68), confidence)
    return MeasuredFaces(annotated, found, level, np.array(yaw_deg or [0.0] * len(offsets_px)))


def noisy(sigma: np.ndarray, told: np.ndarray) -> MeasuredFaces:
    """Faces with Gaussian errors of `sigma` of the box, whose detector tells others."""
    random = np.random.default_rng(0)
    annotated = np.array([annotated_face() for _ in sigma])
    found = annotated + random.normal(size=annotated.shape) * 100.0 * sigma[:, None, None]
    confidence = np.repeat(confidence_from_sigma(told)[:, None], 68, 1)
    return MeasuredFaces(annotated, found, confidence, np.zeros(len(sigma)))


class TestErrors:
    def test_values_by_hand(self) -> None:
        errors = face_errors(measured(2.0))
        assert errors.eyes68[0] == pytest.approx(2.0 / 40.0)
        assert errors.box68[0] == pytest.approx(2.0 / 80.0)

    def test_the_contour_counts_for_68_only(self) -> None:
        faces = measured(0.0)
        faces.found[0, :17] += [0.0, 4.0]
        errors = face_errors(faces)
        assert errors.eyes68[0] == pytest.approx(17 * 4.0 / 68 / 40.0)
        assert errors.eyes51[0] == 0.0

    def test_scale_and_place_do_not_matter(self) -> None:
        faces = measured(3.0)
        moved = MeasuredFaces(7 * faces.annotated + 50, 7 * faces.found + 50, faces.confidence, faces.yaw_deg)
        assert face_errors(moved).eyes68 == pytest.approx(face_errors(faces).eyes68)

    def test_a_missed_face_has_no_error_but_fails(self) -> None:
        accuracy = measure_accuracy(measured(2.0, math.nan))
        assert (accuracy.count, accuracy.missed) == (2, 1)
        assert accuracy.nme68 == pytest.approx(0.05)
        assert accuracy.fr10 == accuracy.fr8 == 0.5
        assert accuracy.auc10 == pytest.approx(0.5 * 0.5)

    def test_coinciding_eyes_make_a_failure_not_a_crash(self) -> None:
        faces = measured(1.0)
        faces.annotated[0, 36] = faces.annotated[0, 45]
        accuracy = measure_accuracy(faces)
        assert accuracy.fr10 == 1.0
        assert accuracy.fr10_box == 0.0

    def test_without_faces_nothing_is_claimed(self) -> None:
        empty = measured(2.0).take(np.array([False]))
        accuracy = measure_accuracy(empty)
        assert accuracy.count == 0
        assert all(math.isnan(value) for value in (accuracy.nme68, accuracy.fr10, accuracy.auc8, accuracy.median68))
        assert math.isnan(calibration_error(reliability_curve(empty)))
        assert math.isnan(bootstrap_intervals(empty)["nme68"][0])


class TestCurve:
    def test_failures_lie_above_the_limit(self) -> None:
        assert failure_rate(np.array([0.05, 0.1, 0.11, math.nan]), limit=0.1) == 0.5

    def test_the_area_is_that_under_the_stair(self) -> None:
        errors = np.array([0.02, 0.06, 0.3, math.nan])
        axis = (np.arange(100_000) + 0.5) / 100_000 * 0.1
        curve = (errors[:, None] <= axis).mean(0)
        assert area_under_curve(errors, limit=0.1) == pytest.approx(curve.mean(), abs=1e-5)
        assert area_under_curve(np.zeros(3), limit=0.08) == 1.0


class TestBins:
    def test_every_face_is_in_one_bin_whatever_its_sign(self) -> None:
        faces = measured(1.0, 2.0, 3.0, 4.0, math.nan, yaw_deg=[0.0, -15.0, 30.0, -59.9, 95.0])
        table = accuracy_by_yaw(faces, [0.0, 15.0, 30.0, 60.0, 90.0])
        assert [(low, high, one.count, one.missed) for low, high, one in table] == [
            (0.0, 15.0, 1, 0),
            (15.0, 30.0, 1, 0),
            (30.0, 60.0, 2, 0),
            (60.0, 90.0, 1, 1),
        ]
        assert table[2][2].nme68 == pytest.approx(3.5 / 40.0)

    @pytest.mark.parametrize("edges", [[0.0], [30.0, 30.0], [-10.0, 20.0]])
    def test_wrong_edges_are_refused(self, edges: list[float]) -> None:
        with pytest.raises(ValueError, match="expected two or more that rise"):
            accuracy_by_yaw(measured(1.0), edges)


class TestIntervals:
    def test_they_hold_the_mean_and_shrink_with_the_number(self) -> None:
        random = np.random.default_rng(1)
        widths = []
        for count in (25, 400):
            faces = measured(*np.abs(random.normal(2.0, 0.8, count)))
            low, high = bootstrap_intervals(faces)["nme68"]
            assert low < measure_accuracy(faces).nme68 < high
            widths.append(high - low)
        # The standard error of the mean falls as one over the root of the number: by four here.
        assert 3.0 < widths[0] / widths[1] < 5.5

    def test_they_agree_with_theory(self) -> None:
        faces = measured(*np.random.default_rng(2).normal(2.0, 0.5, 400))
        low, high = bootstrap_intervals(faces)["nme68"]
        expected = 2 * 1.96 * float(np.std(face_errors(faces).eyes68)) / 20.0
        assert high - low == pytest.approx(expected, rel=0.15)


class TestReliability:
    def test_sigma_is_the_inverse_of_confidence(self) -> None:
        sigma = np.array([0.001, 0.02, 0.3])
        assert sigma_from_confidence(confidence_from_sigma(sigma)) == pytest.approx(sigma)

    def test_true_confidences_lie_on_the_diagonal(self) -> None:
        sigma = np.repeat([0.01, 0.02, 0.04], 100)
        curve = reliability_curve(noisy(sigma, sigma), bins=3)
        assert [one.expected for one in curve] == pytest.approx([0.01, 0.02, 0.04])
        assert [one.observed for one in curve] == pytest.approx([0.01, 0.02, 0.04], rel=0.03)
        assert all(abs(one.within_half - 0.5) < 0.02 and abs(one.within_most - 0.9) < 0.02 for one in curve)
        assert calibration_error(curve) < 0.03

    def test_lies_show(self) -> None:
        sigma = np.repeat([0.01, 0.02, 0.04], 100)
        curve = reliability_curve(noisy(2.0 * sigma, sigma), bins=3)
        assert calibration_error(curve) == pytest.approx(1.0, abs=0.05)
        assert max(one.within_half for one in curve) < 0.2

    def test_bins_weigh_by_their_points(self) -> None:
        curve = [ReliabilityBin(0.01, 0.01, 0.5, 0.9, 300), ReliabilityBin(0.02, 0.03, 0.3, 0.7, 100)]
        assert calibration_error(curve) == pytest.approx(0.25 * 0.5)

    def test_missed_faces_have_no_say(self) -> None:
        assert sum(one.count for one in reliability_curve(measured(1.0, math.nan, 2.0))) == 2 * 68


class TestMatching:
    def test_the_face_that_overlaps_most_is_taken(self) -> None:
        truth = annotated_face()
        assert nearest_face([truth + 60.0, truth + 5.0, truth - 20.0], truth) == 1

    def test_another_face_is_no_match(self) -> None:
        truth = annotated_face()
        assert nearest_face([truth + 200.0], truth) is None
        assert nearest_face([truth + [85.0, 0.0]], truth) is None
        assert nearest_face([], truth) is None

    def test_a_face_of_other_size_is_no_match(self) -> None:
        truth = annotated_face()
        assert nearest_face([truth * 5.0], truth) is None
