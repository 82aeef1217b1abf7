"""What is scheduled, and that a schedule fires: server, worker and deployments for real, on this machine alone."""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.deployments import POOL, deployment_file
from flows.monitor import TRAIN
from tasks.artifacts import STAGES

GRAPH = """
stages:
  train_fused:
    cmd: mkdir -p artifacts/train_fused && touch artifacts/train_fused/made
    deps: [artifacts/ingest]
    outs: [artifacts/train_fused]
  ingest:
    cmd: mkdir -p artifacts/ingest && echo '{"total":{"accepted":3}}' > artifacts/ingest/summary.json
    outs: [artifacts/ingest]
"""


@pytest.fixture
def deployments(repository: Path) -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((repository / "prefect.yaml").read_text(encoding="utf-8"))
    return {one["name"]: one for one in content["deployments"]}


def flow_of(deployment: dict[str, Any]) -> Any:
    module, name = deployment["entrypoint"].rsplit(".", 1)
    return getattr(import_module(module), name)


def test_every_deployment_names_a_flow_and_parameters_that_it_takes(deployments: dict[str, dict[str, Any]]) -> None:
    assert set(deployments) == {"refresh", "monitor", "train", "promote"}
    for name, deployment in deployments.items():
        accepted = inspect.signature(flow_of(deployment).fn).parameters
        assert set(deployment["parameters"]) <= set(accepted), name
        # Who is told of a failure must be a parameter of all.
        assert "webhook" in deployment["parameters"]
        assert deployment["concurrency_limit"]["limit"] == 1
        assert deployment["schedules"]
        assert flow_of(deployment).on_failure_hooks
    assert set(deployments["train"]["parameters"]["stages"]) <= set(STAGES)
    assert deployments["monitor"]["parameters"]["train"] == TRAIN == f"{flow_of(deployments['train']).name}/train"


def test_settings_and_a_file_of_the_workspace(tmp_path: Path, repository: Path) -> None:
    written = deployment_file(tmp_path, ["train.schedules=[]", "refresh.parameters.push=true"])
    content = yaml.safe_load(written.read_text())
    by_name = {one["name"]: one for one in content["deployments"]}
    assert by_name["train"]["schedules"] == []
    assert by_name["refresh"]["parameters"]["push"] is True
    assert content["pull"] == yaml.safe_load((repository / "prefect.yaml").read_text())["pull"]
    (tmp_path / "prefect.yaml").write_text("deployments: [{name: only, entrypoint: flows.refresh.refresh}]")
    assert [one["name"] for one in yaml.safe_load(deployment_file(tmp_path, []).read_text())["deployments"]] == ["only"]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("deployments: []", [], "prefect.yaml: deployments: missing, expected a list"),
        ("deployments: [{name: a}]", ["b.schedules=[]"], "'b' is not among a"),
        ("deployments: [", [], "not valid YAML in line"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, text: str, settings: list[str], message: str) -> None:
    (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        deployment_file(tmp_path, settings)


@pytest.mark.slow
def test_a_schedule_fires_and_the_run_completes(project: Path, repository: Path) -> None:
    """`mien serve` as a user starts it; its refresh is due every few seconds."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    (project / "dvc.yaml").write_text(GRAPH)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {
        "PYTHONPATH": str(repository),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]
    settings = [f"{name}.schedules=[]" for name in ("train", "monitor", "promote")]
    settings.append("refresh.schedules=[{interval: 5}]")
    log = project / "serve.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*command, *(part for setting in settings for part in ("--set", setting))],
            cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        try:
            said = waited_for(lambda: re.search(r"PREFECT_API_URL=(\S+)", log.read_text()), process, log)
            with temporary_settings({PREFECT_API_URL: said.group(1)}), get_client(sync_client=True) as client:
                # On a slow machine the next run is due before the first one ends, and is cancelled.
                runs = waited_for(lambda: [run for run in client.read_flow_runs() if has_ended(run)], process, log)
                deployments = {one.name: one for one in client.read_deployments()}
                limits = {one.name: one.limit for one in client.read_global_concurrency_limits(limit=10, offset=0)}
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                process.kill()
    assert runs[0].state.is_completed(), (runs[0].state, log.read_text())
    assert runs[0].deployment_id == deployments["refresh"].id
    assert runs[0].auto_scheduled
    assert runs[0].state.message == "ingest None -> 3"
    assert (project / "artifacts" / "ingest" / "summary.json").is_file()
    assert not (project / "artifacts" / "train_fused").exists(), "a refresh trains nothing"
    assert set(deployments) == {"refresh", "monitor", "train", "promote"}
    assert deployments["train"].work_pool_name == "mien"
    assert limits["mien-training"] == 1
    assert len([name for name in limits if name.startswith("mien-workspace-project-")]) == 1
    # Nothing is left running.
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(port) not in left


def has_ended(run: Any) -> bool:
    return bool(run.state.is_final() and not run.state.is_cancelled())


def waited_for(look: Any, process: subprocess.Popen[bytes], log: Path, seconds: float = 500.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        assert process.poll() is None, log.read_text()
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds:g} s in vain:\n{log.read_text()}")


def test_the_compose_file_fits_what_lies_beside_it(repository: Path) -> None:
    text = (repository / "compose.yaml").read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"database", "objects", "buckets", "mlflow", "prefect", "worker"}
    assert (repository / services["mlflow"]["build"]["dockerfile"]).is_file()
    mounted = [entry.split(":")[0] for entry in services["database"]["volumes"] if entry.startswith("./")]
    assert mounted
    assert all((repository / name).is_file() for name in mounted)
    # What must be chosen is in the example of the file where it is chosen.
    example = (repository / ".env.example").read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert asked == {"DATABASE_PASSWORD", "OBJECTS_USER", "OBJECTS_PASSWORD"}
    # Nothing can be set that the example does not name, nor the other way round; defaults agree.
    named = dict(re.findall(r"^([A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert set(re.findall(r"\$\{([A-Z_]+)", text)) == set(named)
    assert all(named[name] == default for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text))
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ".[team]" in (repository / "mlflow" / "Dockerfile").read_text(encoding="utf-8")
    assert any(entry.startswith("psycopg2-binary") for entry in project["optional-dependencies"]["team"])
    # The installed servers know what they are started with.
    from mlflow.cli import server

    known = {option for parameter in server.params for option in parameter.opts}
    assert services["mlflow"]["command"][:2] == ["mlflow", "server"]
    assert {part.partition("=")[0] for part in services["mlflow"]["command"][2:]} <= known
    # The pool that the worker asks is the one that deployments go to.
    deployments = yaml.safe_load((repository / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert {one["work_pool"]["name"] for one in deployments} == {POOL}
    assert f"--pool {POOL}" in services["worker"]["command"]
