"""The scheduled run: walks DVC's own graph, the only one, and reproduces stage after stage, with retries and limits."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import networkx
from dvc.repo import Repo
from prefect import flow, task
from prefect.concurrency.sync import concurrency
from prefect.states import Completed, Failed

from flows.environment import prepare
from flows.failures import REFUSED, Failure, StageError, failure_path
from flows.notices import tell_failure
from flows.processes import run_child
from flows.workspace import allow_without_git, refresh_graph

REFUSAL = "refused: "
"""Marks a message of a stage that would fail again."""

TRAINING_LIMIT = "mien-training"
"""Concurrency limit on Prefect's server that keeps trainings apart, on whatever machine they run."""


def workspace_limit(workspace: Path) -> str:
    """Concurrency limit that keeps runs in one workspace apart; DVC would stop the second one."""
    root = workspace.resolve()
    name = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-")
    return f"mien-workspace-{name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"


@contextmanager
def alone(*limits: str) -> Iterator[None]:
    """Wait for a place in each limit, and keep it; a limit that the server does not know keeps nobody away."""
    # A lost connection is no reason to break off hours of work.
    with concurrency(list(limits), occupy=1, raise_on_lease_renewal_failure=False):
        yield


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
def reproduce(workspace: str, name: str, timeout_s: float | None = None) -> None:
    """Bring one stage up to date; DVC decides whether there is anything to do.

    Raises: StageError with the stage's own message.
    """
    folder = Path(workspace)
    failure_path(folder, name).unlink(missing_ok=True)
    try:
        code = run_child([sys.executable, "-m", "dvc", "repro", "-s", name], cwd=folder, timeout_s=timeout_s)
    except TimeoutError as error:
        raise StageError(f"{name}: {error}; give it more time or less to do") from None
    if code == 0:
        return
    failure = Failure.load(failure_path(folder, name))
    if failure is None:
        raise StageError(f"{name}: dvc repro ended with code {code}")
    raise StageError(f"{name}: {REFUSAL if failure.exit_code == REFUSED else ''}{failure.message}")


def reproduce_all(
    workspace: Path,
    names: list[str],
    *,
    retries: int,
    retry_delay_s: float,
    timeout_s: float | None = None,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
) -> str | None:
    """Reproduce stages in this order, showing how far it is; the message of the first that fails for good, or None.

    `stages` has other `retries`, `retry_delay_s` and `timeout_s` for single stages.
    """
    show = _progress(workspace.resolve().name)
    for done, name in enumerate(names):
        own = dict((stages or {}).get(name, {}))
        attempt = reproduce.with_options(
            name=name,
            task_run_name=name,
            retries=int(own.get("retries", retries)),
            retry_delay_seconds=float(own.get("retry_delay_s", retry_delay_s)),
        )
        state = cast(Any, attempt(str(workspace), name, own.get("timeout_s", timeout_s), return_state=True))
        if not state.is_completed():
            return str(state.message).split("StageError: ")[-1]
        show(100.0 * (done + 1) / len(names))
    return None


@flow(
    name="pipeline",
    validate_parameters=False,
    on_failure=[tell_failure],
    on_crashed=[tell_failure],
    on_cancellation=[tell_failure],
)
def pipeline(
    workspace: str = ".",
    retries: int = 2,
    retry_delay_s: float = 10.0,
    timeout_s: float | None = None,
    stages: dict[str, dict[str, Any]] | None = None,
    webhook: str | None = None,  # noqa: ARG001 - read by the hook that tells of failures
) -> Any:
    """Reproduce every stage in the order of DVC's graph; the first that fails for good stops the run."""
    folder = Path(workspace).resolve()
    prepare(folder)
    with alone(TRAINING_LIMIT, workspace_limit(folder)):
        allow_without_git(folder)
        refresh_graph(folder)
        names = stage_order(folder)
        failed = reproduce_all(
            folder, names, retries=retries, retry_delay_s=retry_delay_s, timeout_s=timeout_s, stages=stages
        )
    if failed is not None:
        return Failed(message=failed)
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


def _progress(name: str) -> Any:
    """A bar on Prefect's page; gives the function that moves it."""
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    bar = cast(Any, create_progress_artifact(0.0, description=f"stages of {name} that are up to date"))
    return lambda percent: update_progress_artifact(bar, progress=percent)
