"""The scheduled run: walks DVC's own graph, the only one, and reproduces stage after stage, with retries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import networkx
from dvc.repo import Repo
from prefect import flow, task
from prefect.states import Completed, Failed

from flows.failures import REFUSED, Failure, StageError, failure_path
from flows.processes import run_child

REFUSAL = "refused: "
"""Marks a message of a stage that would fail again."""


def stage_order(workspace: Path) -> list[str]:
    """Names of the stages of `dvc.yaml`, every stage after those that it reads; ties in the order of the file."""
    with Repo(str(workspace)) as repo:
        graph = repo.index.graph
        listed = {stage: number for number, stage in enumerate(repo.index.stages)}
        # DVC's edges point from a stage to what it depends on.
        order = networkx.lexicographical_topological_sort(graph.reverse(copy=True), key=listed.__getitem__)
        return [stage.name for stage in order if getattr(stage, "name", None)]


def may_help(_task: Any, _run: Any, state: Any) -> bool:
    """Whether trying a stage again can help; refused parameters or data stay refused."""
    return REFUSAL not in str(state.message or "")


@task(retry_condition_fn=may_help)
def reproduce(workspace: str, name: str) -> None:
    """Bring one stage up to date; DVC decides whether there is anything to do.

    Raises: StageError with the stage's own message.
    """
    kept = failure_path(Path(workspace), name)
    kept.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
    code = run_child(command, cwd=Path(workspace))
    if code == 0:
        return
    failure = Failure.load(kept)
    if failure is None:
        raise StageError(f"{name}: dvc repro ended with code {code}")
    raise StageError(f"{name}: {REFUSAL if failure.exit_code == REFUSED else ''}{failure.message}")


@flow(name="pipeline", validate_parameters=False)
def pipeline(workspace: str, retries: int = 2, retry_delay_s: float = 10.0) -> Any:
    """Reproduce every stage in the order of DVC's graph; the first that fails for good stops the run."""
    for name in stage_order(Path(workspace)):
        attempt = reproduce.with_options(
            name=name, task_run_name=name, retries=retries, retry_delay_seconds=retry_delay_s
        )
        state = cast(Any, attempt(workspace, name, return_state=True))
        if not state.is_completed():
            return Failed(message=str(state.message).split("StageError: ")[-1])
    return Completed(message="every stage is up to date")


def run_pipeline(workspace: Path, *, retries: int, retry_delay_s: float) -> None:
    """Run the pipeline once.

    Raises: StageError naming the stage and its message.
    """
    state = cast(Any, pipeline(str(workspace.resolve()), retries, retry_delay_s, return_state=True))
    if not state.is_completed():
        raise StageError(state.message or "the pipeline did not complete")


def serve_pipeline(workspace: Path, *, cron: str, retries: int) -> None:
    """Run the pipeline at the given times until the process is stopped."""
    parameters = {"workspace": str(workspace.resolve()), "retries": retries}
    pipeline.serve(name=workspace.resolve().name, cron=cron, parameters=parameters)
