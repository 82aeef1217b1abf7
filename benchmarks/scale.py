"""Photos per second, memory and bytes as data grow: `python -m benchmarks.scale --detector WORKSPACE --photos 1000`.

Takes the detector of a workspace in which `train_detector` is done. For each size a workspace of its own is made, with
a folder of that many different photos, and `ingest`, `detect_landmarks` and `validate_labels` run in it, each in a
process of its own; then once more with nothing new, once with one photo in a hundred new whose names come last
(`appended`, as folders by date do), and once with as many in between (`scattered`).

A row for each size, change and stage holds `seconds` and `cpu_seconds` (of all workers; imports left out), the photos
in the folder for each of both, `peak_mib` (largest resident memory of the process, or of a worker) and `above_mib` (the
same beyond what the imports took), and after the first run `share`: processor time relative to that of the first run.
Beside the first run stands `bytes_per_photo`: what photos, outputs and what is kept beside them take. With `--until`
only the first stages run, for sizes at which all would take hours.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
import yaml
from rich.console import Console
from rich.table import Table

STAGES = ("ingest", "detect_landmarks", "validate_labels")
CHANGES = ("first", "nothing", "appended", "scattered")

Row = dict[str, Any]


def main(
    detector: Annotated[Path, typer.Option(help="Workspace whose detector is used.")],
    folder: Annotated[Path, typer.Option(help="Where workspaces and photos are made.")] = Path(".benchmarks/scale"),
    photos: Annotated[list[int] | None, typer.Option(help="Numbers of photos; default: 1000.")] = None,
    side_px: Annotated[int, typer.Option(help="Larger side of a photo.")] = 480,
    runner: Annotated[str, typer.Option(help="serial, threads, processes, dask or ray.")] = "serial",
    workers: Annotated[int | None, typer.Option(help="Default: one for each core.")] = None,
    until: Annotated[
        str, typer.Option(help="Last stage to run, of those above; bytes and rows are of these alone.")
    ] = STAGES[-1],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Run the stages before training on growing folders, and again with a little more."""
    rows: list[Row] = []
    stages = stages_until(until)
    for count in photos or [1000]:
        place = (folder / f"{runner}-{count}").resolve()
        make_workspace(place, detector.resolve(), runner=runner, workers=workers)
        rows += measure(place, count, side_px, stages=stages)
        show(rows)
        if json_file:
            json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def stages_until(last: str) -> tuple[str, ...]:
    """The first stages, as each reads what the one before it wrote.

    Raises: ValueError if there is none of that name.
    """
    if last not in STAGES:
        raise ValueError(f"stage {last!r} is unknown, expected one of {', '.join(STAGES)}")
    return STAGES[: STAGES.index(last) + 1]


def make_workspace(place: Path, detector: Path, *, runner: str, workers: int | None) -> None:
    """Parameters and detector; photos come later."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "artifacts").mkdir(parents=True)
    shutil.copytree(detector / "artifacts" / "train_detector", place / "artifacts" / "train_detector")
    params = yaml.safe_load((detector / "params.yaml").read_text(encoding="utf-8"))
    sources = [{"kind": "photos", "name": "photos", "path": "photos"}]
    params["ingest"] = {"sources": sources, "validation_share": 0.08, "test_share": 0.12}
    for stage in ("train_self_supervised", "train_supervised", "train_fused"):
        params[stage]["sources"] = [{"source": "photos", "share": 1.0, "losses": {"photo": 1.0}}]
        params[stage].pop("labelled_share", None)
    params["validate_labels"] = {"max_failed_share": 0.99}
    params["runner"] = {"kind": runner, "workers": workers}
    (place / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def measure(place: Path, count: int, side_px: int, *, stages: tuple[str, ...] = STAGES) -> list[Row]:
    """All changes of one size."""
    album = place / "photos"
    started = time.monotonic()
    write_photos(album, [f"{number // 1000:05d}/{number % 1000:03d}5.jpg" for number in range(count)], side_px, seed=0)
    print(f"{count} photos written in {time.monotonic() - started:.0f} s", flush=True)
    # Young files are read again, to be sure; these are to count as old.
    time.sleep(3.0)
    new = max(1, count // 100)
    first: dict[str, float] = {}
    rows = []
    for change in CHANGES:
        if change == "appended":
            write_photos(album, [f"99999/{number:06d}.jpg" for number in range(new)], side_px, seed=1)
        elif change == "scattered":
            places = np.linspace(0, count - 1, new).astype(int)
            write_photos(album, [f"{at // 1000:05d}/{at % 1000:03d}7.jpg" for at in places], side_px, seed=2)
        for stage in stages:
            found = in_process_of_its_own(place, stage)
            first.setdefault(stage, found["cpu_seconds"])
            rows.append(
                {
                    "photos": count,
                    "change": change,
                    "stage": stage,
                    "seconds": round(found["seconds"], 2),
                    "photos_per_second": round(count / found["seconds"], 1),
                    "cpu_seconds": round(found["cpu_seconds"], 2),
                    "photos_per_cpu_second": round(count / found["cpu_seconds"], 1),
                    "peak_mib": round(found["peak_mib"]),
                    "above_mib": round(found["peak_mib"] - found["imports_mib"]),
                    "share": round(found["cpu_seconds"] / first[stage], 4) if change != "first" else None,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
        if change == "first":
            folders = {"photos": "photos", "kept": ".mien"} | {stage: f"artifacts/{stage}" for stage in stages}
            sizes = {name: bytes_below(place / below) / count for name, below in folders.items()}
            rows[-1]["bytes_per_photo"] = {name: round(size) for name, size in sizes.items()}
            print(json.dumps(rows[-1]["bytes_per_photo"]), flush=True)
    return rows


def in_process_of_its_own(place: Path, stage: str) -> dict[str, float]:
    """Run a stage and give what it took."""
    done = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.scale import run_here; run_here({str(place)!r}, {stage!r})"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{stage}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_here(place: str, stage: str) -> None:
    """Run a stage in this process and print seconds and memory."""
    from flows.environment import prepare
    from flows.runners import FANNED_OUT, open_runner
    from flows.stages import stage_function
    from tasks.artifacts import Workspace
    from tasks.params import load_params
    from tasks.tracking import quiet_mlflow

    workspace = Workspace(Path(place))
    prepare(workspace.root)
    function, params = stage_function(stage), load_params(workspace.params)
    quiet_mlflow()
    imports, worked, started = _peak_mib(resource.RUSAGE_SELF), _cpu_seconds(), time.monotonic()
    if stage in FANNED_OUT:
        with open_runner(params.runner) as spread:
            function(params, workspace, spread=spread)
    else:
        function(params, workspace)
    seconds = time.monotonic() - started
    peak = max(_peak_mib(resource.RUSAGE_SELF), _peak_mib(resource.RUSAGE_CHILDREN))
    found = {"seconds": seconds, "cpu_seconds": _cpu_seconds() - worked, "imports_mib": imports, "peak_mib": peak}
    print(json.dumps(found))


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024.0


def write_photos(folder: Path, names: list[str], side_px: int, *, seed: int) -> None:
    """Drawn faces under different light and in different places, none like another, as JPEG."""
    stream = np.random.default_rng(seed)
    height = 3 * side_px // 4
    grain = stream.integers(-12, 12, (height + 64, side_px + 64, 3), dtype=np.int16)
    for name in names:
        image = np.empty((height, side_px, 3), np.uint8)
        image[:] = stream.integers(40, 200, 3)
        centre = np.array([side_px / 2, height / 2]) + stream.uniform(-0.15, 0.15, 2) * height
        size = stream.uniform(0.25, 0.4) * height
        draw_face(image, centre, size, stream)
        top, left = stream.integers(0, 64, 2)
        noisy = image.astype(np.int16) + grain[top : top + height, left : left + side_px]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.clip(noisy, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])


def draw_face(image: np.ndarray, centre: np.ndarray, size: float, stream: np.random.Generator) -> None:
    """Enough of a face for a detector to look closer."""
    skin = tuple(int(value) for value in stream.integers(90, 220, 3))
    dark = tuple(int(value * 0.4) for value in skin)

    def ellipse(x: float, y: float, across: float, down: float, colour: tuple[int, ...]) -> None:
        place = (round(centre[0] + x * size), round(centre[1] + y * size))
        cv2.ellipse(image, place, (round(across * size), round(down * size)), 0, 0, 360, colour, -1, cv2.LINE_AA)

    ellipse(0.0, -0.1, 0.85, 1.1, dark)
    ellipse(0.0, 0.0, 0.75, 1.0, skin)
    for side in (-1, 1):
        ellipse(0.3 * side, -0.2, 0.14, 0.07, (240, 240, 240))
        ellipse(0.3 * side, -0.2, 0.05, 0.06, dark)
        ellipse(0.3 * side, -0.38, 0.18, 0.03, dark)
    ellipse(0.0, 0.15, 0.1, 0.12, tuple(int(value * 0.8) for value in skin))
    ellipse(0.0, 0.5, 0.25, 0.07, (80, 60, 150))


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def show(rows: list[Row]) -> None:
    """Print the table."""
    names = [name for name in rows[0] if name != "bytes_per_photo"]
    table = Table(*names)
    for row in rows:
        table.add_row(*("" if row.get(name) is None else str(row[name]) for name in names))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
