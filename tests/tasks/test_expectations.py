from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.expectations import label_expectations
from tasks.params import Params, parse_params
from tasks.verdict import open_context, validate_table

VERTICES = 70
NAMES = {"stage": "validate_labels", "asset": "detect_landmarks"}

GOOD: dict[str, Any] = {
    "source": "photos",
    "person": "photos/a",
    "split": "train",
    "person_split": "train",
    "mesh_split": "train",
    "path": "a.jpg",
    "manifest_rows": 1,
    "manifest_gaps": 0.0,
    "image_rows": 1,
    "landmark_numbers": 136,
    "landmark_not_finite": 0.0,
    "confidence_numbers": 68,
    "confidence_not_finite": 0.0,
    "box_numbers": 4,
    "box_not_finite": 0.0,
    "pose_not_finite": 0,
    "yaw_deg": 10.0,
    "pitch_deg": 0.0,
    "roll_deg": 0.0,
    "face_score": 0.9,
    "lowest_confidence": 0.4,
    "highest_confidence": 1.0,
    "mean_confidence": 0.8,
    "box_short_side_px": 60.0,
    "landmark_box_px": 80.0,
    "landmark_box_aspect": 0.8,
    "outside_photo_share": 0.0,
    "distinct_points": 68.0,
    "annotation_numbers": np.nan,
    "annotation_not_finite": np.nan,
    "rotation_numbers": np.nan,
    "rotation_not_finite": np.nan,
    "has_mesh": True,
    "mesh_rows": 1.0,
    "mesh_numbers": 3.0 * VERTICES,
    "neutral_numbers": np.nan,
    "mesh_not_finite": 0.0,
    "mesh_long_side_mm": 220.0,
    "mesh_short_side_mm": 90.0,
    "mesh_fit_error_mm": 0.2,
    "mesh_coverage": 1.0,
    "label_quality": 0.7,
}

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"manifest_rows": 0}, "not_one_manifest_row"),
    ({"manifest_rows": 2}, "not_one_manifest_row"),
    ({"manifest_gaps": 1.0}, "manifest_incomplete"),
    ({"image_rows": 0}, "not_one_image"),
    ({"person_split": "test"}, "person_in_two_splits"),
    ({"mesh_split": "validation"}, "mesh_in_two_splits"),
    ({"landmark_numbers": 134, "landmark_not_finite": np.nan}, "landmark_count"),
    ({"landmark_not_finite": 1.0}, "landmarks_not_finite"),
    ({"confidence_numbers": 0}, "confidence_count"),
    ({"confidence_not_finite": 2.0}, "confidence_not_finite"),
    ({"lowest_confidence": -0.01}, "confidence_range"),
    ({"highest_confidence": 1.01}, "confidence_range"),
    ({"box_numbers": 3}, "box_malformed"),
    ({"box_not_finite": 1.0}, "box_malformed"),
    ({"box_short_side_px": 0.0}, "box_malformed"),
    ({"pose_not_finite": 1}, "pose_not_finite"),
    ({"landmark_box_px": 5.0}, "box_collapsed"),
    ({"landmark_box_aspect": 0.01}, "box_collapsed"),
    ({"distinct_points": 3.0}, "points_coincide"),
    ({"outside_photo_share": 0.16}, "points_outside_photo"),
    ({"mean_confidence": 0.29}, "confidence_low"),
    ({"yaw_deg": 111.0}, "yaw_range"),
    ({"yaw_deg": -111.0}, "yaw_range"),
    ({"pitch_deg": 61.0}, "pitch_range"),
    ({"roll_deg": -61.0}, "roll_range"),
    ({"face_score": 1.2}, "face_score_range"),
    ({"annotation_numbers": 10.0}, "annotation_malformed"),
    ({"annotation_not_finite": 1.0}, "annotation_malformed"),
    ({"rotation_numbers": 4.0}, "rotation_malformed"),
    ({"rotation_not_finite": 1.0}, "rotation_malformed"),
    ({"mesh_rows": 0.0}, "not_one_mesh"),
    ({"mesh_numbers": 3.0}, "mesh_vertex_count"),
    ({"neutral_numbers": 3.0}, "mesh_vertex_count"),
    ({"mesh_not_finite": 1.0}, "mesh_not_finite"),
    ({"mesh_long_side_mm": 22.0}, "mesh_size"),
    ({"mesh_long_side_mm": 2200.0}, "mesh_size"),
    ({"mesh_short_side_mm": 0.0}, "mesh_size"),
    ({"mesh_fit_error_mm": -0.1}, "mesh_fit_error"),
    ({"mesh_coverage": 1.5}, "mesh_coverage"),
    ({"label_quality": 0.05}, "label_quality_low"),
    ({"label_quality": np.nan}, "label_quality_unknown"),
]


def make_params(**limits: float) -> Params:
    training = {
        "init": "train_geometry",
        "steps": 1,
        "sources": [{"source": "photos", "share": 1.0, "losses": {"photo": 1.0}}],
    }
    return parse_params(
        {
            "ingest": {"sources": [{"kind": "synthetic", "name": "photos", "persons": 3}]},
            "validate_labels": {"min_label_quality": 0.1, **limits},
            **{f"train_{stage}": training for stage in ("self_supervised", "supervised", "fused")},
        }
    )


def table_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{"row": row, "sample_id": f"s{row}", **GOOD, **change} for row, change in enumerate(rows)])


def validate(rows: list[dict[str, Any]]) -> Any:
    return validate_table(open_context(), table_of(rows), label_expectations(make_params(), VERTICES), **NAMES)


@pytest.fixture(scope="module")
def broken() -> Any:
    return validate([change for change, _ in BROKEN] + [{}])


@pytest.mark.parametrize("row", range(len(BROKEN)), ids=[f"{next(iter(change))}-{reason}" for change, reason in BROKEN])
def test_each_fault_is_the_reason_of_its_row(broken: Any, row: int) -> None:
    change, reason = BROKEN[row]
    failure = broken.failures[row]
    assert failure.reason == reason
    column, value = next(iter(change.items()))
    found = (
        "missing" if isinstance(value, float) and np.isnan(value) else f"{value:g}" if value != str(value) else value
    )
    assert f"{column} is {found}" in failure.detail


def test_good_row_passes(broken: Any) -> None:
    assert set(broken.failures) == set(range(len(BROKEN)))


def test_every_expectation_can_fail(broken: Any) -> None:
    passed = {item.expectation_config.meta["reason"] for item in broken.result.results if item.success}
    assert passed == {"no_sample_id", "duplicate_sample"}


def test_duplicates_and_missing_names() -> None:
    rows = [{}, {"sample_id": "s0"}, {"sample_id": None}, {}]
    failures = validate(rows).failures
    assert {row: failure.reason for row, failure in failures.items()} == {
        0: "duplicate_sample",
        1: "duplicate_sample",
        2: "no_sample_id",
    }


def test_the_first_reason_counts_and_the_others_are_told() -> None:
    failures = validate([{"yaw_deg": 150.0, "landmark_not_finite": 3.0, "label_quality": np.nan}]).failures
    assert failures[0].reason == "landmarks_not_finite"
    assert "also yaw_range (yaw_deg is 150)" in failures[0].detail
    assert "label_quality_unknown" in failures[0].detail


def test_a_photo_without_mesh_needs_no_label() -> None:
    absent = {name: np.nan for name in GOOD if name.startswith("mesh_") and name != "mesh_split"}
    rows = [{**absent, "has_mesh": False, "label_quality": np.nan}]
    assert validate(rows).failures == {}


def test_limits_themselves_are_allowed() -> None:
    rows = [{"yaw_deg": 110.0, "outside_photo_share": 0.15, "mean_confidence": 0.3, "label_quality": 0.1}]
    assert validate(rows).failures == {}


def test_an_expectation_that_cannot_be_evaluated_stops() -> None:
    table = table_of([{}]).drop(columns=["distinct_points"])
    with pytest.raises(RuntimeError, match=r"on distinct_points could not be evaluated: .*distinct_points"):
        validate_table(open_context(), table, label_expectations(make_params(), VERTICES), **NAMES)
