"""What MLflow remembers of a stage: parameters, code and data versions, curves and files, without any global state.

MLflow itself is imported when the first run starts: it takes a second, and the command line's help needs none of it.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.artifacts import STAGES, Workspace
from tasks.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_METRICS_PER_BATCH = 1000
"""The server refuses larger batches."""

MAX_PARAMS_PER_BATCH = 100
SYSTEM_INTERVAL_S = 10.0
MAX_VALUE_LENGTH = 6000

SHARED_SECTIONS = ("project", "face_model")
"""Sections that every stage reads beside its own."""

ENCODER_STAGES = ("train_geometry", "train_self_supervised", "train_supervised", "train_fused", "refusion")


class TrackingError(RuntimeError):
    """MLflow cannot be reached or used; the message names the address and the remedy."""


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run that is open."""

    client: MlflowClient
    run_id: str
    experiment_id: str

    def metrics(self, values: Mapping[str, float | None], *, step: int = 0) -> None:
        """Log numbers at a step; those that are None are left out."""
        self.curve({"step": step, "name": name, "value": value} for name, value in values.items() if value is not None)

    def curve(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log rows of a stage's `curve.csv` (step, split, name, value) in a few calls; the metric is `split/name`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        logged = []
        for row in rows:
            name = f"{row['split']}/{row['name']}" if row.get("split") else str(row["name"])
            logged.append(Metric(name, float(row["value"]), now, int(row["step"])))
        for start in range(0, len(logged), MAX_METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=logged[start : start + MAX_METRICS_PER_BATCH])

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; nested ones under dotted names."""
        from mlflow.entities import Param

        logged = [Param(name, str(value)[:MAX_VALUE_LENGTH]) for name, value in flatten(values).items()]
        for start in range(0, len(logged), MAX_PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, params=logged[start : start + MAX_PARAMS_PER_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of everything in a folder."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    @contextmanager
    def child(self, name: str) -> Iterator[TrackedRun]:
        """A run nested in this one, such as one round of a loop."""
        with _open_run(self.client, self.experiment_id, name, {"mlflow.parentRunId": self.run_id}) as run:
            yield run


@contextmanager
def track(params: Params, workspace: Workspace, stage: str) -> Iterator[TrackedRun]:
    """Open the MLflow run of a stage, with its parameters and the versions of code and data.

    The run ends as finished, as failed if the block raises, as killed if it is interrupted.
    Raises: ValueError if no stage has that name, TrackingError if the tracking server cannot be used.
    """
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is unknown, expected one of {', '.join(STAGES)}")
    client = tracking_client(params, workspace)
    experiment_id = _experiment(client, params, workspace)
    tags = {"mien.stage": stage, "mien.workspace": str(workspace.root.resolve())}
    tags |= code_version() | data_versions(workspace, stage)
    with _told(tracking_uri(params, workspace)):
        _end_abandoned(client, experiment_id, tags)
    uri = tracking_uri(params, workspace)
    with _told(uri), _open_run(client, experiment_id, stage, tags) as run, _watched(run, uri):
        run.params(stage_parameters(params, stage))
        yield run


@contextmanager
def track_experiment(
    params: Params, workspace: Workspace, name: str, *, run_id: str | None = None
) -> Iterator[TrackedRun]:
    """Open the MLflow run under which the runs of an experiment are nested, or go on with that of `run_id`.

    A run that is no longer there is replaced by a new one.
    Raises: TrackingError if the tracking server cannot be used.
    """
    client = tracking_client(params, workspace)
    experiment_id = _experiment(client, params, workspace)
    tags = {"mien.experiment": name, "mien.workspace": str(workspace.root.resolve())} | code_version()
    with _open_run(client, experiment_id, f"experiment {name}", tags, run_id=run_id) as run:
        yield run


def tracking_uri(params: Params, workspace: Workspace) -> str:
    """Address of the tracking server and registry, absolute, so that it holds in any folder and process."""
    if params.register.tracking_uri is not None:
        return params.register.tracking_uri
    return f"sqlite:///{workspace.root.resolve() / 'mlruns' / 'mlflow.db'}"


def quiet_mlflow() -> None:
    """Import MLflow without telemetry, progress bars and chatter; nothing else imports it first."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow sets up its loggers while it is imported.
    import mlflow  # noqa: F401

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # That a server is gone is told once, by the stage that needs it.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)


def tracking_client(params: Params, workspace: Workspace) -> MlflowClient:
    """Client of the tracking server and the registry.

    Raises: TrackingError if the address cannot be used.
    """
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(params, workspace)
    if params.register.tracking_uri is None:
        (workspace.root / "mlruns").mkdir(parents=True, exist_ok=True)
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        raise TrackingError(_unusable(uri, error)) from error


def stage_parameters(params: Params, stage: str) -> dict[str, Any]:
    """The sections of `params.yaml` that a stage reads."""
    content = params.model_dump(mode="json", by_alias=True)
    names = (*SHARED_SECTIONS, *(("encoder",) if stage in ENCODER_STAGES else ()), stage)
    return {name: content[name] for name in names}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping under dotted names; empty ones vanish."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{key}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
            flat |= flatten({str(index): item for index, item in enumerate(value)}, f"{key}.")
        else:
            flat[key] = value
    return flat


def code_version() -> dict[str, str]:
    """Tags that name the commit of the code and whether files differ from it; empty outside a git checkout."""
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "mien.code_changed": "true" if changed else "false"}


def data_versions(workspace: Workspace, stage: str) -> dict[str, str]:
    """Tags with DVC's hash of every stage output that this stage reads; empty where DVC keeps no lock file."""
    lock = workspace.root / "dvc.lock"
    graph = workspace.root / "dvc.yaml"
    if not lock.is_file() or not graph.is_file():
        return {}
    produced = {}
    for entry in (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {}).values():
        for output in entry.get("outs", ()):
            produced[output["path"]] = output.get("md5")
    stages = (yaml.safe_load(graph.read_text(encoding="utf-8")) or {}).get("stages", {})
    inputs = stages.get(stage, {}).get("deps", ())
    return {f"dvc.{Path(name).name}": produced[name] for name in inputs if produced.get(name)}


def _git(folder: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _experiment(client: MlflowClient, params: Params, workspace: Workspace) -> str:
    from mlflow.exceptions import MlflowException

    name = params.register.experiment
    try:
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "active":
            return str(found.experiment_id)
        if found is not None:
            raise TrackingError(f"MLflow experiment {name!r} was deleted; restore it or set register.experiment")
        # A server decides for itself where artifacts lie; beside a local database they lie in the workspace.
        local = params.register.tracking_uri is None
        location = (workspace.root.resolve() / "mlruns" / "artifacts").as_uri() if local else None
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        raise TrackingError(_unusable(tracking_uri(params, workspace), error)) from error


def _unusable(uri: str, error: Exception) -> str:
    reason = str(error).splitlines()[0][:200]
    return f"MLflow at {uri} cannot be used ({reason}); start its server or change register.tracking_uri"


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Say in one line that the server was lost midway; what the block had made then stays unfinished."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(_unusable(uri, error)) from error


def _end_abandoned(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> None:
    """End what an earlier run of the same stage in the same workspace left open when it was killed."""
    same = " and ".join(f"tags.`{name}` = {_quoted(tags[name])}" for name in ("mien.stage", "mien.workspace"))
    for run in client.search_runs([experiment_id], f"attributes.status = 'RUNNING' and {same}"):
        parent = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        for left in (*client.search_runs([experiment_id], parent), run):
            client.set_terminated(left.info.run_id, "KILLED")


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


@contextmanager
def _open_run(
    client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str], *, run_id: str | None = None
) -> Iterator[TrackedRun]:
    run = _found_run(client, experiment_id, run_id) if run_id else None
    if run is None:
        run = client.create_run(experiment_id, run_name=name, tags=tags)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
    # A run that a kill left open would be shown as running for ever, so the end is written whatever happens.
    status = "KILLED"
    try:
        yield TrackedRun(client=client, run_id=run.info.run_id, experiment_id=experiment_id)
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        _terminate(client, run.info.run_id, status)


def _terminate(client: MlflowClient, run_id: str, status: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.set_terminated(run_id, status)
    except MlflowException:
        # What went wrong before is the news, not that a lost server cannot be told of it.
        if status == "FINISHED":
            raise


@contextmanager
def _watched(run: TrackedRun, uri: str) -> Iterator[None]:
    """Log what the machine does meanwhile: processor, memory, disk, network, GPU, every `SYSTEM_INTERVAL_S` seconds."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.run_id, sampling_interval=SYSTEM_INTERVAL_S, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _found_run(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        return None
    usable = run.info.lifecycle_stage == "active" and run.info.experiment_id == experiment_id
    return run if usable else None


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Flat numbers of nested metrics; missing, infinite and other values are left out."""
    numbers = {}
    for name, value in flatten(values).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            numbers[name] = float(value)
    return numbers
