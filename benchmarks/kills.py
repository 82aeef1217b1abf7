"""`kill -9` at random moments, over the whole pipeline: `python -m benchmarks.kills --workspace FOLDER --kills 50`.

Makes a workspace of the preset `smoke` in the folder, runs every stage in it twice undisturbed, and then, stage by
stage in turn, starts a stage again and kills it at a random moment, looks whether anything half-written is in place,
runs the stage to its end and compares its output with that of the undisturbed runs. `--disk MIB` does one round on a
disk of that size instead of kills (a tmpfs, so it needs the right to mount one).

A row for each stage holds `seconds` (undisturbed), `kills`, `after` (how many came when the stage had ended already),
`resumed` (how many next runs took less than three quarters of an undisturbed one), `half_written`, `differ` and
`faults`, which should be 0, and `compared` files. With `--disk`, `kills` are stages that the disk ended, `after` those
that fitted, and `faults` those whose error a user would be told as a fault of the program. Files that differ between
the two undisturbed runs are compared by their names: they hold dates, seconds or the ids of runs. Moments and seconds
are those of the processor, so that a machine that does other things, too, spreads the kills no less evenly.

A stage runs in a copy of this process, so that what is killed is its work and not its imports. With `--stage` stages
that come before must have run in the folder, by an earlier call.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from flows.environment import prepare
from flows.failures import BROKEN, Failure
from flows.stages import FUNCTIONS, stage_function
from flows.workspace import create_workspace, preset_path
from models.onnx_graph import write_graph
from tasks.artifacts import STAGES, Workspace
from tasks.params import load_params

VOLATILE = frozenset({"seconds", "photos_per_second", "waiting_share", "run_id", "version", "uri", "created"})
"""Keys of JSON files that are not compared."""

BESIDE_REPORT = ("great_expectations", "lightning.fabric", "mlflow.pyfunc", "matplotlib.pyplot", "transformers", "onnx")
"""Imported before the copies are made, as is what the first export to ONNX brings."""

SMALLER = (
    "ingest.sources.photos.persons=14",
    "train_detector.epochs=1",
    "train_detector.finder_steps=4",
    "train_geometry.steps=10",
    "ablation.variants=[mean_face, self_supervised]",
    "ingest_speech.sources.synthetic_speech.sentences=6",
    "train_animator.steps=6",
)
"""Beyond the preset `smoke`: what is killed need not be good."""

LIMIT_S = 1800.0

COUNTS = ("kills", "after", "resumed", "half_written", "differ", "faults")

FAULT = 70
"""Exit code of a copy whose error a user would be told as a fault of the program."""

Row = dict[str, Any]


def main(
    workspace: Annotated[Path, typer.Option(help="Folder to make, or one that an earlier call made.")],
    kills: Annotated[int, typer.Option(help="Over all stages.")] = 50,
    seed: Annotated[int, typer.Option(help="Chooses the moments.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    stages: Annotated[list[str] | None, typer.Option("--stage", help="These only; default: all.")] = None,
    disk_mib: Annotated[float | None, typer.Option("--disk", help="MiB of a small disk instead of kills.")] = None,
) -> None:
    """Kill stages at random moments and compare what the next run makes with an undisturbed one."""
    prepare(workspace)
    if not (workspace / "params.yaml").exists():
        create_workspace(workspace, preset=preset_path("smoke"), settings=SMALLER)
    for module in (*BESIDE_REPORT, *(name.split(":")[0] for name in FUNCTIONS.values())):
        importlib.import_module(module)
    export_something()
    place = Workspace(workspace.resolve())
    chosen = [stage for stage in STAGES if not stages or stage in stages]
    reference = {}
    for stage in chosen:
        reference[stage] = undisturbed(place, stage)
        print(f"{stage}: {reference[stage][1]:.1f} s undisturbed", flush=True)
    rows = [new_row(stage, *reference[stage]) for stage in chosen]
    moments = random.Random(seed)
    if disk_mib is not None:
        for row in rows:
            fill_disk(place, row, reference[row["stage"]][0], mib=disk_mib)
    else:
        for number in range(kills):
            row = rows[number % len(rows)]
            kill_once(place, row, reference[row["stage"]][0], moments)
            show_progress(number + 1, kills, row)
            write(rows, json_file)
    show(rows)
    write(rows, json_file)
    if any(row["half_written"] or row["differ"] or row["faults"] for row in rows):
        raise SystemExit(1)


def write(rows: list[Row], json_file: Path | None) -> None:
    """Keep the rows, if they are asked for; after each kill, as an hour may pass until the last one."""
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def new_row(stage: str, files: dict[str, str | None], seconds: float) -> Row:
    """A row without any kill."""
    counts = dict.fromkeys(COUNTS, 0)
    return {"stage": stage, "seconds": round(seconds, 2), **counts, "compared": sum(map(bool, files.values()))}


def undisturbed(place: Workspace, stage: str) -> tuple[dict[str, str | None], float]:
    """Hashes of the files that two runs agree on, None for the others; and the seconds of the second."""
    runs = []
    seconds = 0.0
    for _ in range(2):
        forget(place, stage)
        code, seconds = to_the_end(start(place, stage))
        if code:
            raise SystemExit(f"{stage}: ended with code {code}, undisturbed")
        runs.append(contents(place.folder(stage)))
    first, second = runs
    keep(place, stage)
    return {name: digest if second.get(name) == digest else None for name, digest in first.items()}, seconds


def keep(place: Workspace, stage: str) -> None:
    """Put a copy of an undisturbed output aside."""
    aside = place.root / ".mien" / "undisturbed" / stage
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(place.folder(stage), aside)


def restore(place: Workspace, stage: str) -> None:
    """Put the undisturbed output back: later stages read from it the seconds that training took, too."""
    shutil.rmtree(place.folder(stage), ignore_errors=True)
    shutil.copytree(place.root / ".mien" / "undisturbed" / stage, place.folder(stage))


def kill_once(place: Workspace, row: Row, reference: dict[str, str | None], moments: random.Random) -> None:
    """One kill and one run to the end."""
    stage = row["stage"]
    forget(place, stage)
    killed = kill_at(start(place, stage), moments.uniform(0.0, 0.95) * row["seconds"])
    row["kills" if killed else "after"] += 1
    folder = place.folder(stage)
    if folder.exists() and not same(contents(folder), reference):
        row["half_written"] += 1
    code, seconds = to_the_end(start(place, stage))
    row["resumed"] += seconds < 0.75 * row["seconds"]
    left = [path for path in folder.parent.iterdir() if path.name.startswith(f".{stage}-")]
    if code != 0 or left or not same(contents(folder), reference):
        row["differ"] += 1
    restore(place, stage)


def fill_disk(place: Workspace, row: Row, reference: dict[str, str | None], *, mib: float) -> None:
    """One run on a disk that is too small, the former output being there; and one to the end on the large disk."""
    stage = row["stage"]
    forget(place, stage)
    artifacts = place.root / "artifacts"
    aside = place.root / "artifacts-on-the-large-disk"
    artifacts.rename(aside)
    artifacts.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(mib * 2**20)}", "tmpfs", str(artifacts)], check=True)
    try:
        for entry in aside.iterdir():
            (artifacts / entry.name).symlink_to(entry)
        code, _ = to_the_end(start(place, stage))
        # A stage that fits is no test of a full disk.
        row["kills" if code else "after"] += 1
        row["faults"] += code == FAULT
        # One that says it was done must have written all of it.
        whole = bool(code) or same(contents(place.folder(stage)), reference)
        row["half_written"] += not whole or not same(contents(aside / stage), reference)
    finally:
        subprocess.run(["umount", str(artifacts)], check=True)
        artifacts.rmdir()
        aside.rename(artifacts)
    code, _ = to_the_end(start(place, stage))
    row["differ"] += code != 0 or not same(contents(place.folder(stage)), reference)


def start(place: Workspace, stage: str) -> int:
    """Run a stage in a copy of this process."""
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        torch.set_num_threads(1)
        log = (place.root / ".mien" / "kills.log").open("a", encoding="utf-8")
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        stage_function(stage)(load_params(place.params), place)
        code = 0
    except BaseException as error:  # noqa: BLE001 - a copy that breaks says so in the log and ends
        failure = Failure.of(error)
        print(f"{stage}: error: {failure.message}\n{failure.trace}", file=sys.stderr, flush=True)
        code = FAULT if "a fault in Mien" in failure.message else BROKEN
    finally:
        os._exit(code)


def to_the_end(child: int) -> tuple[int, float]:
    """Exit code of a copy, negative for a signal, and the processor seconds that it took; one that hangs is killed."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = math.inf
        time.sleep(0.01)


def kill_at(child: int, worked_s: float) -> bool:
    """Kill a copy when it has used so many processor seconds; False if it ended before."""
    deadline = time.monotonic() + LIMIT_S
    while worked(child) < worked_s and time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def worked(process: int) -> float:
    """Processor seconds that a process, which was not waited for, has used."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def export_something() -> None:
    """Let the exporter import what it needs."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = (torch.zeros(2, 3),)
        write_graph(torch.nn.Linear(3, 2).eval(), inputs, Path(folder) / "x.onnx", inputs=["x"], outputs=["y"])


def forget(place: Workspace, stage: str) -> None:
    """Let a stage do all of its work; its former output stays, as in a run after a changed parameter."""
    shutil.rmtree(place.root / ".mien" / "kept" / stage, ignore_errors=True)
    (place.root / ".mien").mkdir(exist_ok=True)


def contents(folder: Path) -> dict[str, str]:
    """Hash of what every file of a folder says."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(said(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def said(path: Path) -> bytes:
    """Content of a file, of JSON without what changes from run to run, of tables without their last column: seconds."""
    if path.suffix == ".json":
        return json.dumps(without_volatile(json.loads(path.read_text(encoding="utf-8")))).encode()
    if path.suffix == ".md":
        lines = path.read_text(encoding="utf-8").splitlines()
        return "\n".join(line.rsplit("|", 2)[0] if line.startswith("|") else line for line in lines).encode()
    return path.read_bytes()


def without_volatile(data: Any) -> Any:
    """Nested data without the keys that change."""
    if isinstance(data, dict):
        return {key: without_volatile(value) for key, value in data.items() if key not in VOLATILE}
    return [without_volatile(item) for item in data] if isinstance(data, list) else data


def same(found: dict[str, str], reference: dict[str, str | None]) -> bool:
    """Whether all files are there and those that can be compared are the same."""
    return found.keys() == reference.keys() and all(
        digest is None or found[name] == digest for name, digest in reference.items()
    )


def show_progress(number: int, count: int, row: Row) -> None:
    """Where we are, on one line."""
    print(f"{number}/{count} {row['stage']}: half-written {row['half_written']}, differ {row['differ']}", flush=True)


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    sums = {name: sum(row[name] for row in rows) for name in COUNTS}
    table.add_row("all", "", *(str(sums[name]) for name in COUNTS), "", style="bold")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
