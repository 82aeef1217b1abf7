"""Drift starts one training, not two."""

from __future__ import annotations

from typing import Any

import pytest

from flows import drift
from flows.monitor import TRAIN, start_training
from tasks.monitor import DriftReport


def report(reasons: tuple[str, ...] = (), new_photos: int = 80, measured: int = 80) -> DriftReport:
    return DriftReport(3, 1000, new_photos, measured, (), reasons, "abcd")


SINCE = "new photos since version 3 (1000 photos) was trained"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (report(), f"80 {SINCE}; no limit is passed"),
        (report(new_photos=4, measured=0), f"4 {SINCE}; too few to say anything"),
        (report(("yaw_deg: PSI 0.9",)), f"80 {SINCE}; time to train again: yaw_deg: PSI 0.9"),
    ],
)
def test_a_sentence_for_every_finding(found: DriftReport, text: str) -> None:
    assert drift.describe(found) == text


def test_the_same_finding_asks_for_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("prefect.deployments.run_deployment", lambda name, **options: asked.append((name, options)))
    start_training(TRAIN, report(("x",)))
    ((name, options),) = asked
    assert name == "pipeline/train"
    assert options["idempotency_key"] == "drift-abcd"
    # The training goes on when the run that asked for it has ended.
    assert (options["timeout"], options["as_subflow"]) == (0, False)
