"""Which metrics make a champion."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tasks.params import ParamsError
from tasks.promotion import judge, judge_provenance, load_policy, number_at
from tasks.provenance import Known

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


BINS: dict[str, Any] = {
    block: {"by_yaw": {"0-30": {"landmark_nme": low, "photos": 90}, "30-60": {"landmark_nme": high, "photos": 40}}}
    for block, low, high in (("mean_face", 0.08, 0.09), ("refusion", 0.04, 0.05))
}


def bins_rule(tmp_path: Path, bound: str, against: str = "mean_face.by_yaw.*.landmark_nme") -> Any:
    rule = f"{{name: a, metric: refusion.by_yaw.*.landmark_nme, against: {against}, {bound}, when_missing: skip}}"
    return load_policy(write(tmp_path, f"rules: [{rule}]"))


def spoiled(yaw: str, nme: float, photos: int = 40) -> dict[str, Any]:
    found = deepcopy(BINS)
    found["refusion"]["by_yaw"][yaw] = {"landmark_nme": nme, "photos": photos}
    return found


def test_one_bad_bin_fails_a_rule_for_every_bin(tmp_path: Path) -> None:
    policy = bins_rule(tmp_path, "max_ratio: 1.0")
    assert judge(policy, BINS, champion=None)[0]
    promoted, (verdict,) = judge(policy, spoiled("30-60", 0.1), champion=None)
    assert not promoted
    assert verdict.detail == (
        "refusion.by_yaw.30-60.landmark_nme 0.1, expected at most 0.09 (1 x mean_face.by_yaw.30-60.landmark_nme 0.09)"
    )


def test_bins_of_few_photos_are_left_out(tmp_path: Path) -> None:
    policy = bins_rule(tmp_path, "max_ratio: 1.0, min_photos: 41")
    assert judge(policy, spoiled("30-60", 0.1, photos=40), champion=None)[0]
    assert not judge(policy, spoiled("30-60", 0.1, photos=41), champion=None)[0]
    # With no bin left there is nothing that could pass.
    policy = bins_rule(tmp_path, "max_ratio: 1.0, min_photos: 1000")
    assert judge(policy, BINS, champion=None)[1][0].outcome == "skipped"


def test_bins_against_those_of_the_champion(tmp_path: Path) -> None:
    policy = bins_rule(tmp_path, "max_difference: -0.01", against="champion")
    assert not judge(policy, spoiled("30-60", 0.041), champion=BINS)[0]
    both = spoiled("30-60", 0.04)
    both["refusion"]["by_yaw"]["0-30"]["landmark_nme"] = 0.03
    assert judge(policy, both, champion=BINS)[0]
    assert judge(policy, BINS, champion=None)[1][0].outcome == "skipped"


@pytest.mark.parametrize("text", ["against: mean_face.landmark_nme, max_ratio: 1", "max_difference: 1"])
def test_a_star_needs_its_partner_and_a_difference_its_reference(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParamsError, match="expected"):
        load_policy(write(tmp_path, f"rules: [{{name: a, metric: b.*.c, {text}, when_missing: skip}}]"))


def known(**states: str) -> dict[Any, Known]:
    return {aspect: Known(states.get(aspect, "yes"), aspect) for aspect in ("code", "data", "params")}


@pytest.mark.parametrize(
    ("states", "first", "expected"),
    [
        ({}, False, "passed passed passed"),
        ({"code": "no"}, False, "failed passed passed"),
        ({"code": "no"}, True, "skipped passed passed"),
        ({"data": "unknown", "params": "unknown"}, False, "passed skipped skipped"),
    ],
)
def test_what_cannot_be_made_again_is_not_used(states: dict[str, str], first: bool, expected: str) -> None:
    verdicts = judge_provenance(load_policy(), known(**states), first=first)
    assert [verdict.rule for verdict in verdicts] == ["reproducible_code", "reproducible_data", "reproducible_params"]
    assert " ".join(verdict.outcome for verdict in verdicts) == expected


def test_a_strict_team_wants_to_know_everything(tmp_path: Path) -> None:
    strict = "{code: ignore, when_unknown: fail, when_first: fail}"
    text = f"{{reproducible: {strict}, rules: [{{name: a, metric: b, max: 1, when_missing: skip}}]}}"
    policy = load_policy(write(tmp_path, text))
    verdicts = judge_provenance(policy, known(code="no", data="unknown", params="no"), first=True)
    assert [(verdict.rule, verdict.outcome) for verdict in verdicts] == [
        ("reproducible_data", "failed"),
        ("reproducible_params", "failed"),
    ]
