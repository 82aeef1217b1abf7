"""The commands `mien serve`, `mien deploy` and `mien monitor`: schedules, and what runs them.

`prefect.yaml` says what is scheduled when. `serve` starts Prefect's server and a worker on this machine and registers
all of it; `deploy` registers it on a team's server, whose workers are started by `prefect worker start --pool mien`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from flows.console import Answer, JsonOption, WorkspaceOption, command, examples
from flows.failures import StageError
from flows.processes import run_child
from flows.server import prefect_server
from flows.workspace import changed, read_yaml
from tasks.shipped import SHIPPED

POOL = "mien"
PREFECT_FILE = "prefect.yaml"
PORT = 4200

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change prefect.yaml, e.g. train.schedules=[]; may be repeated."),
]


def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of Prefect's page and API, on this machine.")] = PORT,
    workers: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 2,
    settings: SetOption = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Run on a schedule: start Prefect's server and a worker, register the deployments, go on until interrupted."""
    with command("serve", workspace):
        _require(workspace)
        configuration = deployment_file(workspace, settings or ())
        with prefect_server(workspace, scheduler=True, port=port) as address:
            names = register_deployments(workspace, configuration)
            print(f"Prefect's page  {address.removesuffix('/api')}")
            print(f"deployments     {', '.join(names)}")
            print("A run at once:  prefect deployment run pipeline/train   (with PREFECT_API_URL set as here)")
            print(f"PREFECT_API_URL={address}", flush=True)
            code = run_child(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process",
                 "--limit", str(workers)],
                cwd=workspace,
            )  # fmt: skip
        raise StageError(f"Prefect's worker ended with code {code}; see above")


def deploy(
    settings: SetOption = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Register the deployments of prefect.yaml on the server that PREFECT_API_URL names."""
    with command("deploy", workspace):
        _require(workspace)
        if not os.environ.get("PREFECT_API_URL"):
            raise ValueError("PREFECT_API_URL is not set; set it to a server's address, or use `mien serve`")
        names = register_deployments(workspace, deployment_file(workspace, settings or ()))
        answer = Answer(as_json=as_json)
        answer.say(
            f"{', '.join(names)}: registered in work pool {POOL}; `prefect worker start --pool {POOL}` runs them"
        )
        answer.document({"deployments": names, "work_pool": POOL})


def monitor(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Compare photos that came in since the champion was trained with those that it was trained on."""
    with command("monitor", workspace):
        _require(workspace)
        from dataclasses import asdict

        from flows.drift import describe, look

        report = look(workspace)
        answer = Answer(as_json=as_json)
        answer.document({**asdict(report), "drifted": report.drifted})
        if not as_json:
            from rich.console import Console
            from rich.table import Table

            if report.shifts:
                table = Table("number", "training photos", "new photos", "PSI", "limit")
                for shift in report.shifts:
                    limit = "passed" if shift.beyond else ""
                    table.add_row(
                        shift.feature, f"{shift.reference:.3g}", f"{shift.new:.3g}", f"{shift.psi:.2f}", limit
                    )
                Console().print(table)
            answer.say(describe(report))


SERVE_EXAMPLES = examples(
    "mien serve", "mien serve --set 'train.schedules=[{cron: 0 6 * * *}]' --set promote.schedules=[]"
)
DEPLOY_EXAMPLES = examples(
    "PREFECT_API_URL=http://prefect.example.org:4200/api mien deploy --set train.parameters.webhook=https://…"
)
MONITOR_EXAMPLES = examples("mien monitor", "mien monitor --json")


def deployment_file(workspace: Path, settings: Sequence[str]) -> Path:
    """Write what is to be registered: the workspace's own `prefect.yaml` or ours, changed by `key=value` settings.

    Raises: ValueError naming what does not fit.
    """
    own = workspace / PREFECT_FILE
    source = own if own.is_file() else SHIPPED / PREFECT_FILE
    content: dict[str, Any] = read_yaml(source)
    if not isinstance(content.get("deployments"), list) or not content["deployments"]:
        raise ValueError(f"{source}: deployments: missing, expected a list; see the prefect.yaml of the code")
    for setting in settings:
        content = {**content, **changed({"deployments": content["deployments"]}, f"deployments.{setting}")}
    target = workspace / ".mien" / PREFECT_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return target


def register_deployments(workspace: Path, configuration: Path) -> list[str]:
    """Make work pool and concurrency limits, and register every deployment of a file; returns their names.

    Raises: StageError with what Prefect says if it refuses.
    """
    _prepare_server(workspace)
    root = workspace.resolve()
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "prefect",
            "--no-prompt",
            "deploy",
            "--all",
            "--prefect-file",
            str(configuration.resolve()),
        ],
        cwd=root,
        # The file puts the folder in which it is deployed where runs are to take place.
        env={**os.environ, "PWD": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    names = [str(one["name"]) for one in read_yaml(configuration)["deployments"]]
    said = answer.stdout + answer.stderr
    if answer.returncode or "Skipping" in said:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        raise StageError(f"prefect deploy: {' '.join(lines[-3:])[:400] or f'code {answer.returncode}'}")
    return names


def _prepare_server(workspace: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    from flows.pipeline import TRAINING_LIMIT, workspace_limit

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        for name in (TRAINING_LIMIT, workspace_limit(workspace)):
            client.upsert_global_concurrency_limit_by_name(name, 1)
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


def _require(workspace: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        if not (workspace / name).is_file():
            raise FileNotFoundError(
                f"{workspace / name}: no such file; run in a Mien workspace or name one with --workspace"
            )
