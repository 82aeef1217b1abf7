from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import verification
from models.verification import (
    Pairs,
    accept_rate,
    all_pairs,
    area_under_curve,
    best_threshold,
    cosine_distance,
    deal,
    distinctness_interval,
    nearest_other_photo,
    nearest_person,
    verification_intervals,
    verify,
    yaw_pairs,
)


def judged(same: list[bool]) -> Pairs:
    flags = np.array(same)
    places = np.arange(len(flags))
    return Pairs(places, places, flags, deal(flags))


def test_all_pairs_of_a_small_set() -> None:
    pairs = all_pairs(np.array([7, 3, 7, 7]))
    found = {(min(a, b), max(a, b)): same for a, b, same in zip(pairs.first, pairs.second, pairs.same, strict=True)}
    assert found == {(0, 1): False, (0, 2): True, (0, 3): True, (1, 2): False, (1, 3): False, (2, 3): True}
    again = all_pairs(np.array([7, 3, 7, 7]))
    assert np.array_equal(again.first, pairs.first)


def test_many_pairs_are_drawn_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MAX_PAIRS", 100)
    monkeypatch.setattr(verification, "MAX_PAIRS_PER_PERSON", 5)
    pairs = all_pairs(np.repeat(np.arange(20), 6))
    assert (~pairs.same).sum() == 100
    assert pairs.same.sum() == 20 * 5
    assert len({(a, b) for a, b in zip(pairs.first, pairs.second, strict=True)}) == 200
    persons = np.repeat(np.arange(20), 6)
    assert np.array_equal(persons[pairs.first] == persons[pairs.second], pairs.same)


def test_folds_hold_both_kinds_alike() -> None:
    fold = deal(np.arange(50) < 20)
    assert np.bincount(fold[:20]).tolist() == [2] * 10
    assert np.bincount(fold[20:]).tolist() == [3] * 10


def test_what_lies_apart_is_told_without_error() -> None:
    pairs = judged([True] * 20 + [False] * 40)
    found = verify(np.where(pairs.same, 1.0, 3.0) + 0.01 * np.arange(60), pairs)
    assert (found.accuracy, found.auc, found.tar) == (1.0, 1.0, 1.0)
    assert 1.2 < found.threshold < 3.2
    assert found.accuracy_deviation == 0.0


def test_chance_is_one_half_however_many_of_either_there_are() -> None:
    pairs = judged([True] * 300 + [False] * 3000)
    found = verify(np.random.default_rng(0).random(3300), pairs)
    assert found.accuracy == pytest.approx(0.5, abs=0.05)
    assert found.auc == pytest.approx(0.5, abs=0.05)


def test_the_threshold_comes_from_the_other_folds() -> None:
    # One pair of one person lies far apart: its own fold cannot save it.
    pairs = judged([True] * 10 + [False] * 10)
    distance = np.where(pairs.same, 1.0, 3.0)
    distance[0] = 9.0
    found = verify(distance, pairs)
    assert not found.right[0]
    assert found.right[1:].all()
    assert found.accuracy == pytest.approx((0.9 + 1.0) / 2)


def test_without_one_kind_nothing_is_known() -> None:
    found = verify(np.arange(4.0), judged([True] * 4))
    assert math.isnan(found.accuracy)
    assert math.isnan(found.auc)
    assert math.isnan(found.tar)


def test_the_best_threshold_by_hand() -> None:
    same = np.array([True, True, False, True, False])
    distance = np.array([1.0, 2.0, 4.0, 5.0, 8.0])
    # Below 3: two of three accepted, none wrongly; below 6.5: all accepted, one of two wrongly.
    assert best_threshold(distance, same) == 3.0
    assert best_threshold(np.ones(4), np.array([True, False, True, False])) in (1.0, np.nextafter(1.0, 2.0))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.integers(2, 50))
def test_the_area_is_the_share_of_ordered_pairs(seed: int, ties: int) -> None:
    generator = np.random.default_rng(seed)
    distance, same = generator.integers(0, ties, 40).astype(float), np.arange(40) < 15
    first, second = distance[same][:, None], distance[~same]
    expected = (first < second).mean() + (first == second).mean() / 2
    assert area_under_curve(distance, same) == pytest.approx(expected)


def test_a_hundredth_of_the_others_may_pass() -> None:
    same = np.arange(300) >= 200
    distance = np.concatenate([np.arange(200.0), np.arange(100.0)])
    # Two of 200 may pass, those at 0 and 1: so do the pairs of one person at 0 and 1.
    assert accept_rate(distance, same) == pytest.approx(0.02)
    assert accept_rate(distance, same, false_accepts=0.5) == 1.0


def test_intervals_hold_the_number_and_shrink_with_more_persons() -> None:
    widths = []
    for persons in (20, 80):
        person = np.repeat(np.arange(persons), 3)
        generator = np.random.default_rng(1)
        faces = generator.normal(size=(persons, 4))[person] + 0.8 * generator.normal(size=(len(person), 4))
        pairs = all_pairs(person)
        distance = np.linalg.norm(faces[pairs.first] - faces[pairs.second], axis=1)
        found = verify(distance, pairs)
        ends = verification_intervals(distance, pairs, found.right, person)
        assert ends["auc"][0] < found.auc < ends["auc"][1]
        assert ends["accuracy"][0] < found.accuracy < ends["accuracy"][1]
        low, high = distinctness_interval(faces, person)
        assert 0.0 < low < high < 1.0
        widths.append((ends["auc"][1] - ends["auc"][0], high - low))
    assert widths[1][0] < 0.7 * widths[0][0]
    assert widths[1][1] < 0.7 * widths[0][1]


def test_cosines_by_hand() -> None:
    first, second = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    assert cosine_distance(first, second).tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_the_nearest_true_face_and_the_nearest_photo() -> None:
    faces, person = np.array([[0.1], [0.9], [2.0], [5.0]]), np.array([4, 5, 5, 6])
    gallery, owners = np.array([[0.0], [1.0], [2.6]]), np.array([4, 5, 6])
    assert nearest_person(faces, person, gallery, owners).tolist() == [True, True, False, True]
    assert nearest_other_photo(faces, person).tolist() == [False, False, True, False]
    assert nearest_person(faces, person, gallery[:0], owners[:0]).tolist() == [False] * 4


def test_pairs_by_the_larger_angle() -> None:
    pairs = Pairs(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([True, False, False]), np.zeros(3, np.int64))
    found = yaw_pairs(pairs, np.array([5.0, -40.0, 20.0]), (0.0, 30.0, 60.0))
    assert {name: (part.first.tolist(), part.second.tolist()) for name, part in found.items()} == {
        "0-30": ([0], [2]),
        "30-60": ([0, 1], [1, 2]),
    }
