"""What the tools add to a stage, in seconds: `python -m benchmarks.overhead --json FILE`.

Everything is done in a folder of its own, whose graph is the real one, all dependencies included, with commands that do
nothing, so that what is measured is what the tools take:

- `mien --help`: the whole command;
- `check params`: importing and reading `params.yaml`, which `mien run` does before anything else;
- `dvc repro, nothing new`, and `dvc repro, a stage`: the whole command on a graph that is up to date, and what each of
  its stages adds when it is not;
- `mien run, nothing new`: the whole command, which then starts no server;
- `prefect, server`: start and stop of the server, once for a run; `prefect, import` and `prefect, a flow run`: for each
  stage, beside it;
- `mlflow, import` and `mlflow, a run`: for each stage that keeps a run (a second one, in a database that is there).

A row holds `what`, `seconds` and `cpu_seconds` (medians of `--repeats`), and `limit` where there is one. On a machine
that does other things, too, the processor time is what can be compared.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from flows.environment import prepare
from flows.server import prefect_server
from flows.workspace import CODE, create_workspace, preset_path

LIMITS = {"mien --help": 1.5, "dvc repro, nothing new": 1.5}
"""Seconds of processor time, which a machine that does nothing else takes."""

CHECK = "from pathlib import Path; from tasks.params import load_params; load_params(Path('params.yaml'))"

NOTHING_TO_RUN = """
from flows import cli
# It would bring the commands back that do something.
cli.refresh_graph = lambda workspace: None
cli.app(["run", "register"])
"""

CLOCK = """
import json, sys, time
from pathlib import Path
now = lambda: (time.monotonic(), time.process_time())
since = lambda first, then: [b - a for a, b in zip(first, then)]
"""

FLOW = """
from tasks.params import load_params
load_params(Path(sys.argv[1]) / "params.yaml")
started = now()
import prefect
imported = now()
from flows import stages
stages.stage_function = lambda name: lambda params, workspace: None
stages.run_stage("register", Path(sys.argv[1]))
print(json.dumps({"prefect, import": since(started, imported), "prefect, a flow run": since(imported, now())}))
"""

RUN = """
from tasks.artifacts import Workspace
from tasks.params import load_params
from tasks.tracking import quiet_mlflow, track
place = Workspace(Path(sys.argv[1]).resolve())
params = load_params(place.params)
started = now()
quiet_mlflow()
imported = now()
with track(params, place, "ingest"):
    pass
first = now()
with track(params, place, "ingest"):
    pass
print(json.dumps({"mlflow, import": since(started, imported), "mlflow, a run": since(first, now())}))
"""

Row = dict[str, Any]


def main(
    repeats: Annotated[int, typer.Option(help="Of everything; medians are shown.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Measure what Prefect, DVC and MLflow add to each stage."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "workspace"
        create_workspace(place, preset=preset_path("smoke"))
        os.environ["PYTHONPATH"] = str(CODE)
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        prepare(place)
        stages = do_nothing(place)
        for number in range(repeats):
            for what, measured in once(place, stages).items():
                found.setdefault(what, []).append(measured)
            print(f"{number + 1}/{repeats}", flush=True)
    rows = [new_row(what, measured) for what, measured in found.items()]
    table = Table("what", "seconds", "cpu_seconds", "limit")
    for row in rows:
        table.add_row(row["what"], str(row["seconds"]), str(row["cpu_seconds"]), str(row["limit"] or ""))
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def once(place: Path, stages: int) -> dict[str, tuple[float, float]]:
    """Seconds and processor seconds of everything."""
    found = {
        "mien --help": command("-m", "flows.cli", "--help", cwd=place),
        "check params": command("-c", CHECK, cwd=place),
    }
    (place / "dvc.lock").unlink(missing_ok=True)
    fresh = command("-m", "dvc", "repro", "--no-run-cache", "--force", cwd=place)
    nothing = command("-m", "dvc", "repro", cwd=place)
    found["dvc repro, nothing new"] = nothing
    found["dvc repro, a stage"] = ((fresh[0] - nothing[0]) / stages, (fresh[1] - nothing[1]) / stages)
    found["mien run, nothing new"] = command("-c", NOTHING_TO_RUN, cwd=place)
    started, worked = time.monotonic(), children()
    with prefect_server(place):
        took = time.monotonic() - started
        found |= inside(FLOW, place)
        stopping = time.monotonic()
    found["prefect, server"] = (took + time.monotonic() - stopping, children() - worked)
    return found | inside(RUN, place)


def command(*arguments: str, cwd: Path) -> tuple[float, float]:
    """Seconds and processor seconds of a command."""
    started, worked = time.monotonic(), children()
    subprocess.run([sys.executable, *arguments], cwd=cwd, check=True, capture_output=True)
    return time.monotonic() - started, children() - worked


def inside(program: str, place: Path) -> dict[str, tuple[float, float]]:
    """Seconds and processor seconds of parts of a program, which prints them."""
    done = subprocess.run(
        [sys.executable, "-c", CLOCK + program, str(place)], cwd=place, check=True, capture_output=True, text=True
    )
    return {what: tuple(measured) for what, measured in json.loads(done.stdout.splitlines()[-1]).items()}


def children() -> float:
    """Processor seconds of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def do_nothing(place: Path) -> int:
    """Give the workspace's stages commands that do nothing; returns how many stages there are."""
    graph = yaml.safe_load((place / "dvc.yaml").read_text(encoding="utf-8"))
    for name, stage in graph["stages"].items():
        stage["cmd"] = f"mkdir -p artifacts/{name} && touch artifacts/{name}/made"
        stage["outs"] = [f"artifacts/{name}"]
        # Numbers and curves of stages that ran.
        for shown in ("metrics", "plots"):
            stage.pop(shown, None)
    graph.pop("plots", None)
    (place / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False), encoding="utf-8")
    return len(graph["stages"])


def new_row(what: str, measured: list[tuple[float, float]]) -> Row:
    """Medians of some measurements."""
    seconds, worked = (round(statistics.median(values), 2) for values in zip(*measured, strict=True))
    return {"what": what, "seconds": seconds, "cpu_seconds": worked, "limit": LIMITS.get(what)}


if __name__ == "__main__":
    typer.run(main)
