"""Which metrics make a champion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.params import ParamsError
from tasks.promotion import judge, load_policy, number_at

GOOD = {
    "mean_face": {"scan_error_mm_median": 2.0, "landmark_nme": 0.08, "pose_error_deg": 6.0},
    "refusion": {"scan_error_mm_median": 1.6, "landmark_nme": 0.04, "pose_error_deg": 4.0},
}


def changed(**values: float | None) -> dict[str, Any]:
    return {**GOOD, "refusion": {**GOOD["refusion"], **values}}


def outcomes(metrics: dict[str, Any], champion: dict[str, Any] | None = None) -> tuple[bool, dict[str, str]]:
    promoted, verdicts = judge(load_policy(), metrics, champion=champion)
    return promoted, {verdict.rule: verdict.outcome for verdict in verdicts}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "promotion.yaml"
    path.write_text(text)
    return path


def test_first_good_version_is_promoted() -> None:
    promoted, by_rule = outcomes(GOOD)
    assert promoted
    assert by_rule["geometry_beats_mean_face"] == "passed"
    assert by_rule["geometry_keeps_up_with_champion"] == "skipped"


def test_error_near_the_mean_face_is_not_enough() -> None:
    assert outcomes(changed(scan_error_mm_median=1.9)) == (True, outcomes(GOOD)[1])
    promoted, by_rule = outcomes(changed(scan_error_mm_median=1.91))
    assert not promoted
    assert by_rule["geometry_beats_mean_face"] == "failed"


def test_photos_without_scans_are_judged_by_landmarks() -> None:
    metrics = changed(scan_error_mm_median=None)
    promoted, by_rule = outcomes(metrics, champion=GOOD)
    assert promoted
    assert by_rule["geometry_beats_mean_face"] == by_rule["geometry_keeps_up_with_champion"] == "skipped"
    assert not outcomes(changed(scan_error_mm_median=None, landmark_nme=float("nan")))[0]


def test_step_back_from_the_champion_fails() -> None:
    promoted, by_rule = outcomes(changed(scan_error_mm_median=1.64), champion=GOOD)
    assert not promoted
    assert by_rule["geometry_keeps_up_with_champion"] == "failed"
    assert outcomes(changed(scan_error_mm_median=1.63), champion=GOOD)[0]


def test_nothing_measured_is_no_pass(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, "rules: [{name: a, metric: b.c, min: 0.5, when_missing: skip}]"))
    assert not judge(policy, {}, champion=None)[0]
    assert judge(policy, {"b": {"c": 0.5}}, champion=None)[0]
    promoted, (verdict,) = judge(policy, {"b": {"c": 0.25}}, champion=None)
    assert not promoted
    assert verdict.detail == "b.c 0.25, expected at least 0.5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: []", "promotion.yaml: rules: expected"),
        ("rules: [", "promotion.yaml: not valid YAML in line"),
        ("gates: []", "unknown key"),
        ("rules: [{name: a, metric: b, max: x, when_missing: skip}]", r"rules.0.max = 'x': expected"),
        ("rules: [{name: a, metric: b, max: 1, when_missing: never}]", r"when_missing = 'never': expected 'skip'"),
        ("rules: [{name: a, metric: b, max_ratio: 1, when_missing: skip}]", "with `against`"),
        ("rules: [{name: a, metric: b, max: 1, min: 0, when_missing: skip}]", "one of max and min"),
        ("rules: [{name: a, metric: b, max: 1}]", "rules.0.when_missing: missing"),
    ],
)
def test_faulty_policy_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        load_policy(write(tmp_path, text))


def test_missing_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="no such file; restore it"):
        load_policy(tmp_path / "promotion.yaml")


def test_number_at_a_path() -> None:
    assert number_at({"a": {"b": 2}}, "a.b") == 2.0
    assert number_at({"a": {"b": True}}, "a.b") is None
    assert number_at({"a": 1.0}, "a.b") is None
    assert number_at(None, "a") is None
