"""What the tools add to a stage, in seconds: `python -m benchmarks.overhead --json FILE`.

Everything is done in a folder of its own with stages that do nothing, so that what is measured is what the tools take:

- `mien --help`: the whole command;
- `check params`: importing and reading `params.yaml`, which `mien run` does before anything else;
- `dvc repro, nothing new`, and `dvc repro, a stage`: the whole command on a graph that is up to date, and what each of
  its stages adds when it is not;
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
from rich.console import Console
from rich.table import Table

from flows.environment import prepare
from flows.server import prefect_server
from flows.workspace import CODE, create_workspace, preset_path

STAGES = 5

LIMITS = {"mien --help": 1.5, "dvc repro, nothing new": 1.5}

CHECK = "from pathlib import Path; from tasks.params import load_params; load_params(Path('params.yaml'))"

FLOW = """
import json, sys, time
from pathlib import Path
started = time.monotonic()
import prefect
imported = time.monotonic()
from flows import stages
stages.stage_function = lambda name: lambda params, workspace: None
stages.run_stage("register", Path(sys.argv[1]))
print(json.dumps({"prefect, import": imported - started, "prefect, a flow run": time.monotonic() - imported}))
"""

RUN = """
import json, sys, time
from pathlib import Path
from tasks.artifacts import Workspace
from tasks.params import load_params
from tasks.tracking import quiet_mlflow, track
place = Workspace(Path(sys.argv[1]).resolve())
params = load_params(place.params)
started = time.monotonic()
quiet_mlflow()
imported = time.monotonic()
with track(params, place, "ingest"):
    pass
first = time.monotonic()
with track(params, place, "ingest"):
    pass
print(json.dumps({"mlflow, import": imported - started, "mlflow, a run": time.monotonic() - first}))
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
        for _ in range(repeats):
            for what, measured in once(place, Path(tempfile.mkdtemp(dir=folder))).items():
                found.setdefault(what, []).append(measured)
    rows = [new_row(what, measured) for what, measured in found.items()]
    table = Table("what", "seconds", "cpu_seconds", "limit")
    for row in rows:
        table.add_row(row["what"], str(row["seconds"]), str(row["cpu_seconds"] or ""), str(row["limit"] or ""))
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def once(place: Path, empty: Path) -> dict[str, tuple[float, float]]:
    """Seconds and processor seconds of everything, NaN where the latter are not known."""
    found = {
        "mien --help": command("-m", "flows.cli", "--help", cwd=place),
        "check params": command("-c", CHECK, cwd=place),
    }
    write_graph(empty)
    fresh = command("-m", "dvc", "repro", cwd=empty)
    nothing = command("-m", "dvc", "repro", cwd=empty)
    found["dvc repro, nothing new"] = nothing
    found["dvc repro, a stage"] = ((fresh[0] - nothing[0]) / STAGES, (fresh[1] - nothing[1]) / STAGES)
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
    """Seconds of parts of a program, which prints them."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(place)], cwd=place, check=True, capture_output=True, text=True
    )
    return {what: (seconds, float("nan")) for what, seconds in json.loads(done.stdout.splitlines()[-1]).items()}


def children() -> float:
    """Processor seconds of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_graph(folder: Path) -> None:
    """A DVC project of stages that do nothing, one after the other."""
    (folder / ".dvc").mkdir()
    settings = "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n"
    (folder / ".dvc" / "config").write_text(settings, encoding="utf-8")
    lines = ["stages:"]
    for number in range(STAGES):
        lines += [f"  s{number}:", f"    cmd: touch o{number}", f"    outs: [o{number}]"]
        lines += [f"    deps: [o{number - 1}]"] if number else []
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def new_row(what: str, measured: list[tuple[float, float]]) -> Row:
    """Medians of some measurements."""
    seconds, worked = (statistics.median(values) for values in zip(*measured, strict=True))
    known = worked == worked
    return {
        "what": what,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(worked, 2) if known else None,
        "limit": LIMITS.get(what),
    }


if __name__ == "__main__":
    typer.run(main)
