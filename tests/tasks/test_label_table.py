from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.label_table import list_lengths, list_matrix, majority_splits, take_rows


def test_lists_become_rows_and_misfits_nan() -> None:
    column = pa.chunked_array([[[1.0, 2.0], None], [[3.0], [], [4.0, None]]], type=pa.list_(pa.float32()))
    assert list_lengths(column).tolist() == [2, 0, 1, 0, 2]
    expected = [[1.0, 2.0], [np.nan, np.nan], [np.nan, np.nan], [np.nan, np.nan], [4.0, np.nan]]
    np.testing.assert_array_equal(list_matrix(column, 2), expected)


def test_no_lists_at_all() -> None:
    column = pa.chunked_array([], type=pa.list_(pa.float32()))
    assert list_matrix(column, 6).shape == (0, 6)


def test_row_minus_one_is_null() -> None:
    table = pa.table({"person": ["a", "b"]})
    assert take_rows(table, np.array([1, -1, 0]))["person"].to_pylist() == ["b", None, "a"]


@pytest.mark.parametrize(
    ("splits", "majority"),
    [
        (["train", "train", "test"], "train"),
        (["train", "test", "test"], "test"),
        (["train", "test"], "test"),
        (["train", "validation"], "validation"),
        (["validation", "test"], "test"),
    ],
)
def test_majority_and_ties(splits: list[str], majority: str) -> None:
    assert majority_splits(["a"] * len(splits), splits) == [majority] * len(splits)


def test_rows_without_a_person_keep_their_split() -> None:
    assert majority_splits([None, None, "a"], ["train", "test", "train"]) == ["train", "test", "train"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "validation", "test"])), max_size=30))
def test_what_agrees_with_its_majority_does_not_leak(rows: list[tuple[str, str]]) -> None:
    persons, splits = [row[0] for row in rows], [row[1] for row in rows]
    kept = {row for row, majority in zip(rows, majority_splits(persons, splits), strict=True) if row[1] == majority}
    # One split for every person, and nobody vanishes.
    assert Counter(person for person, _ in kept) == Counter(set(persons))
