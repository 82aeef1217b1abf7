"""Speed and memory of the renderer: `python -m benchmarks.render --json FILE`.

A face-like mesh of 5,000, 10,000 and 36,000 vertices at 128 and 224 px in batches of 1, 8 and 32, by every backend that
runs here, on two threads; PyTorch3D, where it is installed, with batch 1 and few repeats, because one takes seconds.
The backends take turns within a case, so that their ratios hold on a busy machine too. A row holds:

- `backend`, `device`, `vertices`, `triangles`, `size_px`, `batch`;
- `ids_ms`, `forward_ms`, `forward_backward_ms`: medians per image: of triangle ids alone; of ids and shading of three
  smooth attributes; of that with the gradients of vertices and attributes for a weighted sum of the image.
  For `pytorch3d` the last two are its own functions with its own gradients;
- `render_forward_backward_ms`: the same for the whole `render()` with normals and light;
- `network_ms`, `ratio_to_network`: forward plus backward of the training stages' image network on as many pixels, and
  the whole `render()` as a multiple of it, to compare between machines;
- `times_pytorch3d`: PyTorch3D's forward plus backward of one image over ours per image, same mesh and size;
- `peak_mb`, `peak_with_outputs_mb`: peak extra memory of one forward plus backward of the batch, beyond the inputs and
  outputs (image, gradients), and beyond the inputs alone; see `benchmarks/rendering/memory.py`.

`--plot FILE.png` measures more sizes as well, and draws how time and memory grow. With a CUDA device, the torch backend
is measured there too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.rendering.chart import curve_cases, write_curves
from benchmarks.rendering.memory import peak_memory
from benchmarks.rendering.runs import available_backends, network_run, prepare_runs
from benchmarks.rendering.scene import build_scene
from benchmarks.rendering.timing import median_milliseconds

THREADS = 2
SECONDS_PER_NUMBER = 1.5
VERTEX_COUNTS, SIZES_PX, BATCHES = (5_000, 10_000, 36_000), (128, 224), (1, 8, 32)
QUICK_CASE = (500, 32, 2)
PYTORCH3D_TOO_SLOW = (36_000, 224)
"""A minute or more, so only with --full."""
AIMS = {(5_000, 128, 32): (0.25, 1.0), (10_000, 224, 32): (0.5, 2.0), (36_000, 224, 32): (1.2, 3.0)}
"""By (vertices, size, batch): milliseconds per image of ids, and of forward plus backward, on two cores."""
TABLE_WIDTH = 140
PYTORCH3D_AIM, MEMORY_AIM_MB = 500.0, 64.0

Row = dict[str, Any]


def measure(
    vertices: int,
    size_px: int,
    batch: int,
    *,
    backends: list[str],
    device: str = "cpu",
    seconds: float = SECONDS_PER_NUMBER,
    memory: bool = True,
) -> list[Row]:
    """A row per backend, numbers as the module's heading says; `times_pytorch3d` only if it is among the backends."""
    scene = build_scene(vertices, size_px, batch, device=device)
    runs = {}
    for backend in backends:
        prepared = prepare_runs(scene, backend)
        runs[f"{backend} ids"] = prepared.ids
        runs[f"{backend} forward"] = prepared.forward
        runs[f"{backend} forward_backward"] = prepared.forward_backward
        if prepared.render_forward_backward is not None:
            runs[f"{backend} render_forward_backward"] = prepared.render_forward_backward
    runs["network"] = network_run(scene)
    taken = {name: value / batch for name, value in median_milliseconds(runs, seconds=seconds, device=device).items()}
    rows: list[Row] = []
    for backend in backends:
        whole = taken.get(f"{backend} render_forward_backward")
        row: Row = {
            "backend": backend,
            "device": device,
            "vertices": vertices,
            "triangles": len(scene.triangles),
            "size_px": size_px,
            "batch": batch,
            "ids_ms": round(taken[f"{backend} ids"], 4),
            "forward_ms": round(taken[f"{backend} forward"], 4),
            "forward_backward_ms": round(taken[f"{backend} forward_backward"], 4),
            "render_forward_backward_ms": None if whole is None else round(whole, 4),
            "network_ms": round(taken["network"], 4),
            "ratio_to_network": None if whole is None else round(whole / taken["network"], 3),
            "times_pytorch3d": None,
            "peak_mb": None,
            "peak_with_outputs_mb": None,
        }
        if memory:
            peak = peak_memory(backend, vertices=vertices, size_px=size_px, batch=batch, threads=THREADS, device=device)
            row |= {"peak_mb": peak.beyond_outputs, "peak_with_outputs_mb": peak.total}
        rows.append(row)
    return rows


def compare_with_pytorch3d(rows: list[Row]) -> None:
    """Fill `times_pytorch3d` of our rows on the processor from PyTorch3D's rows of the same mesh and size."""
    theirs = {
        (row["vertices"], row["size_px"]): row["forward_backward_ms"] for row in rows if row["backend"] == "pytorch3d"
    }
    for row in rows:
        other = theirs.get((row["vertices"], row["size_px"]))
        if other is not None and row["backend"] != "pytorch3d" and row["device"] == "cpu":
            row["times_pytorch3d"] = round(float(other) / float(row["forward_backward_ms"] or 0.0), 1)


def write_rows(rows: list[Row], path: Path) -> None:
    """As JSON; never half written."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def table_of(rows: list[Row]) -> Table:
    names = {
        "backend": "backend",
        "device": "device",
        "vertices": "vertices",
        "size_px": "px",
        "batch": "batch",
        "ids_ms": "ids",
        "forward_ms": "forward",
        "forward_backward_ms": "+ backward",
        "render_forward_backward_ms": "render()",
        "ratio_to_network": "of network",
        "times_pytorch3d": "PyTorch3D",
        "peak_mb": "peak MB",
        "peak_with_outputs_mb": "with outputs",
    }
    table = Table(title=f"milliseconds per image, {THREADS} threads")
    for number, name in enumerate(names.values()):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*("–" if row[name] is None else f"{row[name]}" for name in names))
    return table


def missed_aims(rows: list[Row]) -> list[str]:
    """A line for every number of ours on the processor that lies beyond its aim; times are judged of the default."""
    missed = []
    for row in rows:
        if row["backend"] == "pytorch3d" or row["device"] != "cpu":
            continue
        default, case = row["backend"] == "numba", (row["vertices"], row["size_px"], row["batch"])
        named = f"{row['backend']}, {case[0]:,} vertices, {case[1]} px, batch {case[2]}"
        limits = dict(zip(("ids_ms", "forward_backward_ms"), AIMS.get(case, ()), strict=False)) if default else {}
        size_asked = case[1] in SIZES_PX and case[0] in VERTEX_COUNTS
        if size_asked:
            limits["peak_mb"] = MEMORY_AIM_MB
        for name, limit in limits.items():
            if row[name] is not None and row[name] > limit:
                missed.append(f"{named}: {name} {row[name]}, aim {limit}")
        faster = row["times_pytorch3d"]
        if default and size_asked and faster is not None and faster < PYTORCH3D_AIM:
            missed.append(f"{named}: {faster} times PyTorch3D, aim {PYTORCH3D_AIM:.0f}")
    return missed


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows there")] = None,
    plot: Annotated[Path | None, typer.Option(help="measure more sizes and draw both curves, a PNG")] = None,
    quick: Annotated[bool, typer.Option(help="one tiny case, to see that everything runs")] = False,
    full: Annotated[bool, typer.Option(help="PyTorch3D also where it takes minutes")] = False,
    memory: Annotated[bool, typer.Option(help="measure memory, in a process per row")] = True,
) -> None:
    """Measure all cases and print a table."""
    console = Console()
    # Into a file or a pipe nothing needs to fit.
    console = console if console.is_terminal else Console(width=TABLE_WIDTH)
    torch.set_num_threads(THREADS)
    cases = [QUICK_CASE] if quick else [(v, s, b) for v in VERTEX_COUNTS for s in SIZES_PX for b in BATCHES]
    if plot and not quick:
        cases += [case for case in curve_cases() if case not in cases]
    rows: list[Row] = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for vertices, size_px, batch in cases:
            backends = available_backends(device)
            slow = not full and (vertices, size_px) == PYTORCH3D_TOO_SLOW
            if not quick and (batch > 1 or slow):
                backends = [name for name in backends if name != "pytorch3d"]
            seconds = 0.05 if quick else SECONDS_PER_NUMBER
            rows += measure(vertices, size_px, batch, backends=backends, device=device, seconds=seconds, memory=memory)
            compare_with_pytorch3d(rows)
            console.print(f"{device}: {vertices:,} vertices, {size_px} px, batch {batch}", highlight=False)
            if json_file:
                write_rows(rows, json_file)
    console.print(table_of(rows))
    for line in missed_aims(rows):
        console.print(f"missed: {line}", highlight=False)
    if plot:
        write_curves(rows, plot)


if __name__ == "__main__":
    typer.run(main)
