"""The scheduled flow `refresh`: new photos are taken in, detected and validated, with the detector that is there.

The detector is not trained again, and nothing after validation: that is what `pipeline` is for.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Completed, Failed

from flows.environment import prepare
from flows.notices import show_table, tell_failure
from flows.pipeline import alone, reproduce_all, stage_order, workspace_limit
from flows.processes import run_child
from flows.workspace import allow_without_git, refresh_graph

REFRESHED = ("ingest", "detect_landmarks", "validate_labels")


@flow(
    name="refresh",
    validate_parameters=False,
    on_failure=[tell_failure],
    on_crashed=[tell_failure],
    on_cancellation=[tell_failure],
)
def refresh(
    workspace: str = ".",
    retries: int = 2,
    retry_delay_s: float = 60.0,
    timeout_s: float | None = None,
    push: bool = False,
    webhook: str | None = None,  # noqa: ARG001 - read by the hook that tells of failures
) -> Any:
    """Take in what is new in the sources; with `push` send it to DVC's remote."""
    folder = Path(workspace).resolve()
    prepare(folder)
    with alone(workspace_limit(folder)):
        allow_without_git(folder)
        refresh_graph(folder)
        before, started = summaries(folder), time.monotonic()
        names = [name for name in stage_order(folder) if name in REFRESHED]
        failed = reproduce_all(folder, names, retries=retries, retry_delay_s=retry_delay_s, timeout_s=timeout_s)
        if failed is not None:
            return Failed(message=failed)
        if push and run_child([sys.executable, "-m", "dvc", "push", "--quiet", *names], cwd=folder):
            return Failed(message="dvc push failed; look whether the remote is there")
    rows = compare_summaries(before, summaries(folder))
    show_table("refresh", rows, f"{time.monotonic() - started:.1f} s")
    changed = [f"{row['stage']} {row['before']} -> {row['now']}" for row in rows if row["before"] != row["now"]]
    return Completed(message="; ".join(changed) or "nothing new")


def summaries(workspace: Path) -> dict[str, dict[str, Any]]:
    """What each of the stages says about its result, as far as there is one."""
    found = {}
    for name in REFRESHED:
        path = workspace / "artifacts" / name / "summary.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def compare_summaries(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Photos that each stage let through, before and now, with what it refused and why."""
    rows = []
    for name, summary in now.items():
        old = before.get(name, {})
        rows.append(
            {
                "stage": name,
                "before": _passed(old),
                "now": _passed(summary),
                "refused": summary.get("quarantined", summary.get("total", {}).get("quarantined")),
                "reasons": summary.get("reasons", summary.get("total", {}).get("reasons", {})),
            }
        )
    return rows


def _passed(summary: dict[str, Any]) -> int | None:
    for place, key in ((summary.get("total", {}), "accepted"), (summary, "found"), (summary, "clean")):
        if isinstance(place.get(key), int):
            return int(place[key])
    return None
