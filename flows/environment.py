"""Settings of the tools, made before they are imported: no telemetry, no display, everything local to the workspace."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SETTINGS = {
    # MLflow honours "true" only.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # A server that was stopped is given up after half a minute, not after four.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MPLBACKEND": "Agg",
    # What a run did stands in its own output and on the Prefect page; the engine's chatter drowns it.
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_CLI_PROMPT": "false",
}
"""Defaults only: what the user has set stays."""


def prepare(workspace: Path) -> None:
    """Apply the settings to this process and its children; Prefect's database goes into the workspace.

    The stages call `python`: the folder of the one that runs comes first, activated or not.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    folders = os.environ.get("PATH", "").split(os.pathsep)
    own = str(Path(sys.executable).parent)
    if folders[0] != own:
        os.environ["PATH"] = os.pathsep.join([own, *folders])
    os.environ.setdefault("PREFECT_HOME", str(workspace.resolve() / ".mien" / "prefect"))
