"""The scheduled flow `promote`: the challenger against the champion, and the alias moves if it has earned it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.states import Completed

from flows.champion import decide
from flows.environment import prepare
from flows.notices import show_table, tell, tell_failure

RETRIES, RETRY_DELAY_S = 2, 30.0
"""A registry on another machine may be away for a minute."""


@task(name="judge", retries=RETRIES, retry_delay_seconds=RETRY_DELAY_S, timeout_seconds=600)
def judge_challenger(workspace: str, model: str) -> tuple[bool, str]:
    """Judge, move the alias, and put the verdicts on Prefect's page."""
    decision, sentence = decide(Path(workspace), model)
    if decision is not None:
        rows: list[dict[str, Any]] = [
            {"rule": verdict.rule, "outcome": verdict.outcome, "detail": verdict.detail}
            for verdict in decision.verdicts
        ]
        show_table(f"promote-{model.replace('_', '-')}", rows, sentence)
    return decision is not None and decision.promoted, sentence


@flow(
    name="promote",
    validate_parameters=False,
    on_failure=[tell_failure],
    on_crashed=[tell_failure],
    on_cancellation=[tell_failure],
)
def promote(workspace: str = ".", model: str = "reconstructor", webhook: str | None = None) -> Any:
    """Hold the challenger to the rules of mlflow/promotion.yaml and make it champion if it passes."""
    prepare(Path(workspace))
    promoted, sentence = judge_challenger(str(Path(workspace).resolve()), model)
    if promoted:
        tell(webhook, "promote", workspace, sentence)
    return Completed(message=sentence)
