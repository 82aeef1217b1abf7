"""Bootstrap intervals against theory and against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from models.statistics import (
    bootstrap_interval,
    paired_difference,
    percentiles,
    pooled_median_interval,
    resamples,
)


def normal(count: int, *, seed: int = 0, mean: float = 2.0, spread: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, count)


class TestInterval:
    def test_of_a_mean_agrees_with_theory(self) -> None:
        values = normal(400)
        low, high = bootstrap_interval(values)
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / 20.0, rel=0.15)

    def test_a_lower_level_is_narrower(self) -> None:
        values = normal(200)
        low, high = bootstrap_interval(values, level=0.5)
        wide_low, wide_high = bootstrap_interval(values, level=0.99)
        assert wide_low < low < values.mean() < high < wide_high

    def test_photos_of_one_person_are_no_independent_proof(self) -> None:
        persons = normal(30)
        photos, groups = np.repeat(persons, 10), np.repeat(np.arange(30), 10)
        low, high = bootstrap_interval(photos, groups)
        narrow_low, narrow_high = bootstrap_interval(photos)
        assert (low, high) == pytest.approx(bootstrap_interval(persons), abs=1e-12)
        # Ten times as many photos would seem to make it sqrt(10) times surer.
        assert (high - low) / (narrow_high - narrow_low) == pytest.approx(np.sqrt(10), rel=0.15)

    @pytest.mark.parametrize("count", [40, 41])
    def test_short_ways_equal_the_long_way(self, count: int) -> None:
        values, groups = normal(count), np.random.default_rng(1).integers(0, 12, count)
        for statistic in (np.mean, np.median):
            short = bootstrap_interval(values, groups, statistic=statistic, draws=200)
            plain = bootstrap_interval(values, groups, statistic=lambda part, of=statistic: of(part), draws=200)
            assert short == pytest.approx(plain, abs=1e-12)

    def test_names_of_groups_do_not_matter(self) -> None:
        values, groups = normal(20), np.arange(20) // 2
        named = np.array([f"person{chr(97 + group)}" for group in groups])
        assert bootstrap_interval(values, named) == bootstrap_interval(values, groups)

    def test_unknown_values_do_not_count(self) -> None:
        values = normal(30)
        holes = np.concatenate([values, [np.nan, np.inf]])
        assert bootstrap_interval(holes, np.arange(32)) == bootstrap_interval(values, np.arange(30))

    def test_nothing_known_and_one_person(self) -> None:
        assert np.isnan(bootstrap_interval(np.array([np.nan]))).all()
        assert np.isnan(bootstrap_interval(np.zeros(0))).all()
        assert bootstrap_interval(np.array([1.0, 3.0]), np.array([7, 7])) == (2.0, 2.0)

    def test_wrong_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match="2 groups, expected one for each of 3 values"):
            bootstrap_interval(np.zeros(3), np.zeros(2))
        with pytest.raises(ValueError, match=r"level is 95.0.*expected a share"):
            bootstrap_interval(np.zeros(3), level=95.0)

    def test_it_holds_the_truth_as_often_as_it_says(self) -> None:
        hits = 0
        for seed in range(200):
            groups = np.repeat(np.arange(40), 2)
            values = normal(40, seed=seed)[groups] + normal(80, seed=1000 + seed, mean=0.0, spread=0.2)
            low, high = bootstrap_interval(values, groups, level=0.9, draws=400)
            hits += low < 2.0 < high
        # 180 expected; its standard deviation is 4.
        assert 165 <= hits <= 195


class TestPaired:
    def test_a_small_steady_gain_is_seen_where_the_spread_is_large(self) -> None:
        worse = normal(100, spread=2.0)
        better = worse - 0.1 + normal(100, seed=1, mean=0.0, spread=0.05)
        difference, low, high = paired_difference(better, worse)
        assert difference == pytest.approx(np.mean(better - worse))
        assert low < difference < high < 0.0
        assert bootstrap_interval(better)[1] > bootstrap_interval(worse)[0]

    def test_equal_methods_differ_by_nothing(self) -> None:
        assert paired_difference(normal(10), normal(10)) == (0.0, 0.0, 0.0)

    def test_only_photos_that_both_have_count(self) -> None:
        first, second = np.array([1.0, np.nan, 3.0]), np.array([0.0, 5.0, np.nan])
        assert paired_difference(first, second) == (1.0, 1.0, 1.0)
        assert np.isnan(paired_difference(first[:1], second[2:])).all()


class TestPooled:
    def test_agrees_with_drawing_the_points_themselves(self) -> None:
        random = np.random.default_rng(5)
        persons = np.repeat(np.arange(25), 2)
        parts = [random.gamma(2.0, 0.5 + 0.02 * person, int(random.integers(80, 200))) for person in persons]
        found = pooled_median_interval(parts, persons, draws=300)
        points, owner = np.concatenate(parts), np.repeat(persons, [len(part) for part in parts])
        exact = bootstrap_interval(points, owner, statistic=np.median, draws=300)
        assert found == pytest.approx(exact, abs=0.01)

    def test_photos_without_points_do_not_count(self) -> None:
        parts = [normal(50), np.zeros(0), normal(50, seed=2)]
        with_hole = pooled_median_interval(parts, np.array([0, 1, 2]))
        assert with_hole == pooled_median_interval([parts[0], parts[2]], np.array([0, 2]))
        assert np.isnan(pooled_median_interval([np.zeros(0)], np.array([0]))).all()

    def test_of_one_person_is_that_persons_median(self) -> None:
        points = normal(501)
        low, high = pooled_median_interval([points], np.array([4]))
        assert low == high == pytest.approx(np.median(points), abs=0.01)


def test_resamples_draw_as_many_as_there_are() -> None:
    drawn = resamples(7, draws=50, seed=3)
    assert drawn.shape == (50, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert (drawn == resamples(7, draws=50, seed=3)).all()


def test_percentiles_leave_out_what_is_no_number() -> None:
    assert percentiles(np.array([np.nan, *range(101)]), level=0.9) == pytest.approx((5.0, 95.0))
