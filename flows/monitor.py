"""The scheduled flow `monitor`: photos that drifted away from those that the champion knows start a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.states import Completed

from flows.drift import describe, look
from flows.environment import prepare
from flows.notices import show_table, tell, tell_failure

if TYPE_CHECKING:
    from tasks.monitor import DriftReport

TRAIN = "pipeline/train"
"""The deployment that trains."""


@task(name="compare", retries=1, retry_delay_seconds=30.0, timeout_seconds=3600)
def compare_photos(workspace: str) -> DriftReport:
    """Compare, and put the numbers on Prefect's page."""
    report = look(Path(workspace))
    show_table("monitor", report.rows() or [{"new photos": report.new_photos}], describe(report))
    return report


@flow(
    name="monitor",
    validate_parameters=False,
    on_failure=[tell_failure],
    on_crashed=[tell_failure],
    on_cancellation=[tell_failure],
)
def monitor(workspace: str = ".", train: str | None = TRAIN, webhook: str | None = None) -> Any:
    """Look at what came in; beyond the limits of mlflow/monitoring.yaml start a training, once for each finding."""
    folder = Path(workspace).resolve()
    prepare(folder)
    report = compare_photos(str(folder))
    sentence = describe(report)
    if report.drifted:
        tell(webhook, "monitor", str(folder), sentence)
        if train:
            start_training(train, report)
    return Completed(message=sentence)


def start_training(deployment: str, report: DriftReport) -> None:
    """Ask for a training, but not twice for the same photos and champion."""
    from prefect.deployments import run_deployment

    run_deployment(
        deployment,
        timeout=0,
        as_subflow=False,
        flow_run_name=f"drift since version {report.champion}",
        idempotency_key=f"drift-{report.fingerprint}",
    )
