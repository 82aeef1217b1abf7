"""The rules of `mlflow/promotion.yaml`: what a challenger must reach to become champion."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from tasks.artifacts import read_json
from tasks.params import ParamsError
from tasks.shipped import SHIPPED
from tasks.source_params import Section

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from tasks.tracking import TrackedRun

CHAMPION = "champion"

POLICY_PATH = SHIPPED / "mlflow" / "promotion.yaml"
"""Beside the code, so that every workspace is held to the same policy."""

MetricPath = Annotated[str, Field(pattern=r"^[a-z][\w.@-]*$")]


class Rule(Section):
    """One bound on one number."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    metric: MetricPath
    against: MetricPath | None = None
    max_ratio: float | None = None
    min_ratio: float | None = None
    max: float | None = None
    min: float | None = None
    when_missing: Literal["skip", "fail"]

    @model_validator(mode="after")
    def _one_bound(self) -> Rule:
        ratios = [name for name in ("max_ratio", "min_ratio") if getattr(self, name) is not None]
        fixed = [name for name in ("max", "min") if getattr(self, name) is not None]
        if len(ratios) + len(fixed) != 1 or bool(ratios) != (self.against is not None):
            raise ValueError("one of max_ratio and min_ratio with `against`, or one of max and min without it")
        return self


class PromotionPolicy(Section):
    """All rules; every one counts."""

    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> PromotionPolicy:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("rules with names that differ from each other")
        return self


@dataclass(frozen=True)
class Verdict:
    """What became of one rule."""

    rule: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str


def load_policy(path: Path = POLICY_PATH) -> PromotionPolicy:
    """Read a promotion policy.

    Raises: ParamsError naming the file, the key, what was found and what was expected, one line per fault.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; restore it from the repository") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise ParamsError(f"{path.name}: not valid YAML{place}; check indentation and brackets") from None
    try:
        return PromotionPolicy.model_validate(data)
    except ValidationError as error:
        raise ParamsError("\n".join(_fault(path.name, fault) for fault in error.errors())) from None


def judge(
    policy: PromotionPolicy, metrics: Mapping[str, Any], *, champion: Mapping[str, Any] | None
) -> tuple[bool, list[Verdict]]:
    """Whether a version may become champion, and what became of every rule.

    `champion` holds the metrics of the present champion, None where there is none or it was measured on other photos.
    A version of which nothing could be measured is not promoted.
    """
    verdicts = [_judge(rule, metrics, champion) for rule in policy.rules]
    outcomes = {verdict.outcome for verdict in verdicts}
    return "failed" not in outcomes and "passed" in outcomes, verdicts


def number_at(metrics: Mapping[str, Any] | None, path: str) -> float | None:
    """The finite number at a dotted path, else None."""
    value: Any = metrics
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _judge(rule: Rule, metrics: Mapping[str, Any], champion: Mapping[str, Any] | None) -> Verdict:
    value = number_at(metrics, rule.metric)
    if value is None:
        return _missing(rule, f"{rule.metric} was not measured")
    bound, origin = rule.max if rule.max is not None else rule.min, ""
    if rule.against is not None:
        if rule.against == CHAMPION:
            reference = number_at(champion, rule.metric)
            absent = "there is no champion measured on the same photos"
        else:
            reference = number_at(metrics, rule.against)
            absent = f"{rule.against} was not measured"
        if reference is None:
            return _missing(rule, absent)
        ratio = rule.max_ratio if rule.max_ratio is not None else rule.min_ratio
        assert ratio is not None  # by Rule._one_bound
        bound, origin = ratio * reference, f" ({ratio:g} x {rule.against} {reference:.4g})"
    assert bound is not None  # by Rule._one_bound
    upper = rule.max is not None or rule.max_ratio is not None
    passed = value <= bound if upper else value >= bound
    detail = f"{rule.metric} {value:.4g}, expected at {'most' if upper else 'least'} {bound:.4g}{origin}"
    return Verdict(rule.name, "passed" if passed else "failed", detail)


def _missing(rule: Rule, detail: str) -> Verdict:
    return Verdict(rule.name, "skipped" if rule.when_missing == "skip" else "failed", detail)


def _fault(name: str, fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"]) or "(top level)"
    if fault["type"] == "extra_forbidden":
        return f"{name}: {key} = {fault['input']!r}: unknown key; remove it or check its spelling"
    if fault["type"] == "missing":
        return f"{name}: {key}: missing, expected a value"
    expected = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = "" if isinstance(fault["input"], (dict, list)) else f" = {fault['input']!r}"
    return f"{name}: {key}{found}: expected {expected}"


def comparable_metrics(run: TrackedRun, champion: ModelVersion | None, test_set: str) -> dict[str, Any] | None:
    """Metrics of the champion, if they were measured on the same test set and its run still has them."""
    from mlflow.exceptions import MlflowException

    if champion is None or champion.tags.get("test_set") != test_set or not champion.run_id:
        return None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = run.client.download_artifacts(champion.run_id, "evaluate/metrics.json", scratch)
            found: dict[str, Any] = read_json(Path(path))
            return found
    except (MlflowException, OSError):
        return None
