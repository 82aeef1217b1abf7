"""An MLflow server that is killed while a stage trains, and started again: a real one, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.failures import BROKEN, reported
from tasks import training_step
from tasks.artifacts import Workspace, load_checkpoint
from tasks.params import Params
from tasks.tracking import quiet_mlflow, tracking_client
from tasks.train import train_stage
from tests.faults.killed import DONE, ended, start
from tests.local_servers import free_port, wait_until_healthy
from tests.tiny_face import tiny_face
from tests.tiny_workspace import tiny_params, tiny_workspace

STAGE = "train_self_supervised"


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`mlflow server` on SQLite in the folder, one process; killed with all that it started at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as server,
    ):
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", folder / "log", server)
            yield server
        finally:
            kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    """`kill -9` for a server and its workers, if they are still there."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(60)


def trained(params: Params, workspace: Workspace, *, waits_at: int | None = None) -> int:
    """A child that trains as a command does; at some step it tells that it is there and waits to go on."""
    root, objective = workspace.root, training_step.objective

    def work() -> None:
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        steps = 0

        def counting(*arguments: Any) -> Any:
            nonlocal steps
            if torch.is_grad_enabled():
                steps += 1
                (root / "steps").write_text(str(steps))
            if steps == waits_at and not (root / "there").exists():
                (root / "there").touch()
                while not (root / "go_on").exists():
                    time.sleep(0.02)
            return objective(*arguments)

        training_step.objective = counting
        (root / "steps").write_text("0")
        try:
            with reported(root, STAGE):
                train_stage(params, workspace, STAGE)
        except SystemExit as error:
            sys.stderr.flush()
            os._exit(int(str(error.code)))

    return start(work)


def steps_taken(workspace: Workspace) -> int:
    return int((workspace.root / "steps").read_text())


def weights(workspace: Workspace) -> dict[str, torch.Tensor]:
    return load_checkpoint(workspace.folder(STAGE) / "checkpoint.pt")["weights"]


@pytest.mark.slow
def test_a_server_killed_midway_costs_one_line_and_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One further try at once instead of half a minute.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    params = tiny_params(register={"tracking_uri": address})
    for name in ("disturbed", "undisturbed", "server"):
        (tmp_path / name).mkdir()
    disturbed, undisturbed = (tiny_workspace(tmp_path / name, tiny_face()) for name in ("disturbed", "undisturbed"))
    # Copies of this process need not import it once more.
    quiet_mlflow()
    before = {path.name for path in (disturbed.root / "artifacts").iterdir()}

    with mlflow_server(tmp_path / "server", port) as server:
        # Six steps, validated and kept after the third; the server goes in the fifth.
        child = trained(params, disturbed, waits_at=5)
        try:
            while not (disturbed.root / "there").exists():
                lives = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
                assert lives, (disturbed.root / "err").read_text()
                time.sleep(0.02)
            kill(server)
        finally:
            (disturbed.root / "go_on").touch()
    assert ended(child, within_s=300.0) == BROKEN
    told = (disturbed.root / "err").read_text().strip().splitlines()
    assert len(told) == 1, told
    assert told[0].startswith(f"error: MLflow at {address} cannot be used (")
    assert told[0].endswith("; start its server or change register.tracking_uri")
    assert {path.name for path in (disturbed.root / "artifacts").iterdir()} == before
    assert steps_taken(disturbed) == 6

    with mlflow_server(tmp_path / "server", port):
        assert ended(trained(params, disturbed), within_s=300.0) == DONE
        assert ended(trained(params, undisturbed), within_s=300.0) == DONE
        client = tracking_client(params, disturbed)
        experiment = client.get_experiment_by_name(params.register.experiment)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        places = [Path(run.data.tags["mien.workspace"]).name for run in runs]
        states = sorted(zip(places, (run.info.status for run in runs), strict=True))
    assert states == [("disturbed", "FINISHED"), ("disturbed", "KILLED"), ("undisturbed", "FINISHED")]
    assert steps_taken(disturbed) == 0
    assert steps_taken(undisturbed) == 6
    found, expected = weights(disturbed), weights(undisturbed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    metrics = json.loads((disturbed.folder(STAGE) / "metrics.json").read_text())
    assert metrics["steps"] == 6
