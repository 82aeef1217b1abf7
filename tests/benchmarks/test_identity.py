from __future__ import annotations

import pytest

from benchmarks.identity import SHOWN, bias_rows, summarize, table_of


def test_small_batches_are_biased_and_running_moments_are_not() -> None:
    rows = bias_rows(draws=150, dimensions=8, sizes=(10, 64))
    for size, (expected, measured, running, pull, running_pull) in rows.items():
        assert running_pull < 0.7 * pull
        assert measured == pytest.approx(expected, rel=0.15), size
        assert running < 0.35 * rows[10][0]
    assert rows[64][0] < 0.2 * rows[10][0]


def test_gains_are_against_the_first_seed_by_seed() -> None:
    def row(value: float) -> dict[str, float]:
        return dict.fromkeys(SHOWN, value)

    found = summarize({"one": [row(0.5), row(0.6)], "two": [row(0.6), row(0.9)]})
    numbers = found["two"]["distinctness"]
    assert numbers["mean"] == pytest.approx(0.75)
    assert numbers["gain"] == pytest.approx([0.1, 0.3])
    assert numbers["of_first"] == pytest.approx((1.2 + 1.5) / 2)
    assert found["one"]["distinctness"]["gain"] == [0.0, 0.0]
    assert table_of(found).row_count == 2
