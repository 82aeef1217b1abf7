"""The rules of `mlflow/promotion.yaml`: what a challenger must reach to become champion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from tasks.params import ParamsError
from tasks.provenance import ASPECTS, Aspect, Known
from tasks.shipped import SHIPPED
from tasks.source_params import Section
from tasks.yaml_file import YamlError, read_yaml

CHAMPION = "champion"

POLICY_PATH = SHIPPED / "mlflow" / "promotion.yaml"
"""Beside the code, so that every workspace is held to the same policy."""

ANIMATOR_POLICY_PATH = POLICY_PATH.with_name("animator_promotion.yaml")

MetricPath = Annotated[str, Field(pattern=r"^[a-z][\w.@*-]*$")]

EVERY = "*"
"""In a path: every key that is there, such as every bin of yaw."""

RELATIVE = ("max_ratio", "min_ratio", "max_difference", "min_difference")


class Rule(Section):
    """One bound on one number, or on the same number of every bin."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    metric: MetricPath
    against: MetricPath | None = None
    max_ratio: float | None = None
    min_ratio: float | None = None
    max_difference: float | None = None
    """At most the reference plus this; a negative one is a margin that must be won."""
    min_difference: float | None = None
    max: float | None = None
    min: float | None = None
    min_photos: Annotated[int, Field(ge=1)] = 1
    """Bins with fewer are left out, where the block says how many it has."""
    when_missing: Literal["skip", "fail"]

    @model_validator(mode="after")
    def _one_bound(self) -> Rule:
        relative = [name for name in RELATIVE if getattr(self, name) is not None]
        fixed = [name for name in ("max", "min") if getattr(self, name) is not None]
        if len(relative) + len(fixed) != 1 or bool(relative) != (self.against is not None):
            raise ValueError(f"one of {', '.join(RELATIVE)} with `against`, or one of max and min without it")
        if self.against is not None and self.against != CHAMPION and (EVERY in self.against) != (EVERY in self.metric):
            raise ValueError(f"{EVERY} in both of `metric` and `against`, or in none")
        return self


class Reproducibility(Section):
    """What git and DVC must know of a version before it may be used."""

    code: Literal["require", "ignore"] = "require"
    data: Literal["require", "ignore"] = "require"
    params: Literal["require", "ignore"] = "require"
    when_unknown: Literal["skip", "fail"] = "skip"
    """Where there is no git or no DVC at all, such as in an unpacked archive."""
    when_first: Literal["skip", "fail"] = "skip"
    """Where no version is in use yet, so that nothing can be lost."""


class PromotionPolicy(Section):
    """All rules; every one counts."""

    reproducible: Reproducibility = Reproducibility()
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
    return read_policy(path, PromotionPolicy)


Policy = TypeVar("Policy", bound=Section)


def read_policy(path: Path, kind: type[Policy]) -> Policy:
    """Read a file of rules or limits that comes with the repository.

    Raises: ParamsError naming the file, the key, what was found and what was expected, one line per fault.
    """
    try:
        data = read_yaml(path)
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; restore it from the repository") from None
    except YamlError as error:
        raise ParamsError(str(error)) from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ParamsError("\n".join(_fault_line(path.name, fault) for fault in error.errors())) from None


def judge(
    policy: PromotionPolicy, metrics: Mapping[str, Any], *, champion: Mapping[str, Any] | None
) -> tuple[bool, list[Verdict]]:
    """Whether a version may become champion by its metrics, and what became of every rule.

    `champion` holds the metrics of the present champion, None where there is none or it was measured on other photos.
    A version of which nothing could be measured is not promoted.
    """
    verdicts = [_judge(rule, metrics, champion) for rule in policy.rules]
    outcomes = {verdict.outcome for verdict in verdicts}
    return "failed" not in outcomes and "passed" in outcomes, verdicts


def judge_provenance(policy: PromotionPolicy, known: Mapping[Aspect, Known], *, first: bool) -> list[Verdict]:
    """What became of the demand that a version can be made again; `first`: no version is in use yet."""
    section, verdicts = policy.reproducible, []
    for aspect in ASPECTS:
        if getattr(section, aspect) == "ignore":
            continue
        state, detail = known[aspect].state, known[aspect].detail
        outcome: Literal["passed", "failed", "skipped"] = "passed" if state == "yes" else "failed"
        if state == "unknown" and section.when_unknown == "skip":
            outcome = "skipped"
        elif outcome == "failed" and first and section.when_first == "skip":
            outcome, detail = "skipped", f"{detail}; let through, because no version was in use"
        verdicts.append(Verdict(f"reproducible_{aspect}", outcome, detail))
    return verdicts


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
    if EVERY not in rule.metric:
        return _judge_one(rule, metrics, champion, rule.metric, rule.against)
    found = []
    for keys in _matches(metrics, rule.metric.split(".")):
        photos = _at(metrics, [*keys[:-1], "photos"])
        if not isinstance(photos, int) or photos >= rule.min_photos:
            stars = [key for key, part in zip(keys, rule.metric.split("."), strict=True) if part == EVERY]
            against = None if rule.against is None else _filled(rule.against, stars)
            found.append(_judge_one(rule, metrics, champion, ".".join(keys), against))
    judged = [verdict for verdict in found if verdict.outcome != "skipped"]
    if not judged:
        return _missing(rule, found[0].detail if found else f"{rule.metric} was not measured")
    failed = [verdict for verdict in judged if verdict.outcome == "failed"]
    if failed:
        return Verdict(rule.name, "failed", "; ".join(verdict.detail for verdict in failed))
    return Verdict(rule.name, "passed", "; ".join(verdict.detail for verdict in judged))


def _judge_one(
    rule: Rule, metrics: Mapping[str, Any], champion: Mapping[str, Any] | None, path: str, against: str | None
) -> Verdict:
    value = number_at(metrics, path)
    if value is None:
        return _missing(rule, f"{path} was not measured")
    bound, origin = rule.max if rule.max is not None else rule.min, ""
    if against is not None:
        if against == CHAMPION:
            reference = number_at(champion, path)
            absent = "there is no champion measured on the same photos"
        else:
            reference = number_at(metrics, against)
            absent = f"{against} was not measured"
        if reference is None:
            return _missing(rule, absent)
        bound, origin = _bound(rule, reference, against)
    assert bound is not None  # by Rule._one_bound
    upper = any(getattr(rule, name) is not None for name in ("max", "max_ratio", "max_difference"))
    passed = value <= bound if upper else value >= bound
    detail = f"{path} {value:.4g}, expected at {'most' if upper else 'least'} {bound:.4g}{origin}"
    return Verdict(rule.name, "passed" if passed else "failed", detail)


def _bound(rule: Rule, reference: float, against: str) -> tuple[float, str]:
    ratio = rule.max_ratio if rule.max_ratio is not None else rule.min_ratio
    if ratio is not None:
        return ratio * reference, f" ({ratio:g} x {against} {reference:.4g})"
    difference = rule.max_difference if rule.max_difference is not None else rule.min_difference
    assert difference is not None  # by Rule._one_bound
    return reference + difference, f" ({against} {reference:.4g} {difference:+g})"


def _matches(metrics: Any, parts: list[str]) -> Iterator[list[str]]:
    """Keys of every number that a path with stars means."""
    if not parts:
        yield []
    elif isinstance(metrics, Mapping):
        for key in sorted(metrics) if parts[0] == EVERY else [parts[0]] if parts[0] in metrics else []:
            for rest in _matches(metrics[key], parts[1:]):
                yield [str(key), *rest]


def _filled(path: str, keys: list[str]) -> str:
    waiting = iter(keys)
    return ".".join(next(waiting) if part == EVERY else part for part in path.split("."))


def _at(metrics: Any, keys: list[str]) -> Any:
    for key in keys:
        metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
    return metrics


def _missing(rule: Rule, detail: str) -> Verdict:
    return Verdict(rule.name, "skipped" if rule.when_missing == "skip" else "failed", detail)


def _fault_line(name: str, fault: Any) -> str:
    """One fault that pydantic found in a file, in a line."""
    key = ".".join(str(part) for part in fault["loc"]) or "(top level)"
    if fault["type"] == "extra_forbidden":
        return f"{name}: {key} = {fault['input']!r}: unknown key; remove it or check its spelling"
    if fault["type"] == "missing":
        return f"{name}: {key}: missing, expected a value"
    expected = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = "" if isinstance(fault["input"], (dict, list)) else f" = {fault['input']!r}"
    return f"{name}: {key}{found}: expected {expected}"
