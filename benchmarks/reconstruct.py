"""Milliseconds a face: `python -m benchmarks.reconstruct`; with `--workspace` and `--photo` from photo to files, too.

Networks: the reconstructor as `mien export` writes it (crop, landmarks and confidence in, coefficients and mesh out),
on onnxruntime and on torch, with random weights of the real sizes and the embedded face model. Each row holds
`backbone`, `size_px`, `runtime`, `batch`, `threads`, then per face `ms` and `fastest_ms` (median and minimum over
rounds) and `processor_ms` (the processor's time on all threads, which other programs hardly change), and `difference`:
the largest between the two runtimes, relative to each output's range. `gflop` is the arithmetic of one face;
`of_matmul` the processor's time divided by what torch needs for as much arithmetic in products of large matrices, in
turns with the network: 1 for a network that keeps the processor as busy as it can be, on a quiet machine or a busy one.

Path: one photo through a trained workspace, part by part: decoding, detection, crop with network and mesh, and every
output of `mien reconstruct`, with the same three times.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from models.face.procedural import procedural_face
from models.network_export import RECONSTRUCTOR_INPUTS, ReconstructorGraph, export_reconstructor
from models.onnx_graph import open_session
from models.reconstruction.reconstructor import Reconstructor, ReconstructorSettings
from models.types import LANDMARK_COUNT

MATMUL_SIDE = 1024
"""Of the square matrices: large enough that arithmetic counts and not memory."""

NETWORKS = (("resnet-slim", 112), ("resnet-18", 224), ("resnet-50", 224))
BATCHES = (1, 16)
IDENTITY_MODES = 40

Row = dict[str, Any]


def clock(call: Callable[[], object], *, rounds: int) -> dict[str, float]:
    """Milliseconds of a call after one that does not count: median, minimum, and the processor's on all threads."""
    call()
    seconds, spent = [], []
    for _ in range(rounds):
        started, before = time.perf_counter(), time.process_time()
        call()
        spent.append(time.process_time() - before)
        seconds.append(time.perf_counter() - started)
    found = {"ms": float(np.median(seconds)), "fastest_ms": min(seconds), "processor_ms": float(np.median(spent))}
    return {name: 1000.0 * value for name, value in found.items()}


def clock_beside(
    call: Callable[[], object], yardstick: Callable[[], object], *, rounds: int
) -> tuple[dict[str, float], float]:
    """The same of a call, and the median ratio of its time to that of another call right after it."""
    call()
    yardstick()
    seconds, spent, ratios = [], [], []
    for _ in range(rounds):
        started, before = time.perf_counter(), time.process_time()
        call()
        spent.append(time.process_time() - before)
        seconds.append(time.perf_counter() - started)
        before = time.process_time()
        yardstick()
        ratios.append(spent[-1] / max(time.process_time() - before, 1e-9))
    found = {"ms": float(np.median(seconds)), "fastest_ms": min(seconds), "processor_ms": float(np.median(spent))}
    return {name: 1000.0 * value for name, value in found.items()}, float(np.median(ratios))


def count_flops(graph: ReconstructorGraph, inputs: tuple[torch.Tensor, ...]) -> int:
    """Multiplications and additions of one call, by torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(*inputs)
    return int(counter.get_total_flops())


def product_of_matrices(flops: int) -> tuple[Callable[[], object], float]:
    """A call that multiplies large matrices, and how many times the given arithmetic that is."""
    rows = max(1, round(flops / (2 * MATMUL_SIDE**2)))
    # A thin product would wait for memory: small networks are compared with a share of a thick one.
    thick = max(rows, MATMUL_SIDE)
    left, right = torch.rand(thick, MATMUL_SIDE), torch.rand(MATMUL_SIDE, MATMUL_SIDE)
    return lambda: left @ right, 2.0 * thick * MATMUL_SIDE**2 / flops


def untrained(backbone: str, size_px: int) -> Reconstructor:
    """A reconstructor of the default sizes with random weights."""
    torch.manual_seed(0)
    settings = ReconstructorSettings(
        crop_size_px=size_px,
        crop_scale=1.35,
        geometry_width=256,
        geometry_blocks=2,
        geometry_refinements=2,
        backbone=backbone,
        width=24,
        features=256,
    )
    return Reconstructor(procedural_face(identity_modes=IDENTITY_MODES), settings).eval()


def measure_network(backbone: str, size_px: int, *, threads: int, rounds: int, folder: Path) -> list[Row]:
    """Rows of one network, see the module's heading."""
    reconstructor = untrained(backbone, size_px)
    path = folder / f"{backbone}.onnx"
    difference = export_reconstructor(reconstructor, path)
    session, graph = open_session(path, threads=threads), ReconstructorGraph(reconstructor).eval()
    torch.set_num_threads(threads)
    rows = []
    for batch in BATCHES:
        inputs = (
            torch.rand(batch, 3, size_px, size_px),
            size_px * torch.rand(batch, LANDMARK_COUNT, 2),
            torch.rand(batch, LANDMARK_COUNT),
        )
        feed = {name: value.numpy() for name, value in zip(RECONSTRUCTOR_INPUTS, inputs, strict=True)}

        def by_torch(inputs: tuple[torch.Tensor, ...] = inputs) -> object:
            with torch.inference_mode():
                return graph(*inputs)

        def by_onnx(feed: dict[str, Any] = feed) -> object:
            return session.run(None, feed)

        flops = count_flops(graph, inputs)
        yardstick, times = product_of_matrices(flops)
        for runtime, call in (("onnxruntime", by_onnx), ("torch", by_torch)):
            about = {"backbone": backbone, "size_px": size_px, "runtime": runtime, "batch": batch, "threads": threads}
            found, ratio = clock_beside(call, yardstick, rounds=rounds)
            taken = {name: value / batch for name, value in found.items()}
            rows.append(
                {**about, **taken, "gflop": flops / batch / 1e9, "of_matmul": ratio * times, "difference": difference}
            )
    return rows


def measure_path(workspace: Path, checkpoint: Path, photo: Path, *, rounds: int) -> list[Row]:
    """Rows of `part`, `ms` and `fastest_ms` of one photo."""
    from tasks.artifacts import Workspace
    from tasks.face_reader import open_checkpoint
    from tasks.face_record import FaceRecord, Palette
    from tasks.images import decode
    from tasks.outputs import OUTPUTS
    from tasks.params import load_params

    place = Workspace(workspace)
    reader = open_checkpoint(checkpoint, load_params(place.params), place)
    content = photo.read_bytes()
    pixels = decode(content)
    found = reader.photos.detect([pixels], which="best")[0]
    (face,) = reader.photos.reconstruct([(pixels, found[0], photo.name)])
    palette = Palette(reader.reconstructor.model)
    parts: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(content),
        "detect": lambda: reader.photos.detect([pixels], which="best"),
        "crop, network, mesh": lambda: reader.photos.reconstruct([(pixels, found[0], photo.name)]),
    }
    rows = []
    with tempfile.TemporaryDirectory() as scratch:

        def write(name: str) -> Callable[[], object]:
            output = OUTPUTS[name]

            def call() -> None:
                # A record remembers its texture, which is to be made anew.
                record = FaceRecord(face=face, stem="face", palette=palette, origin={})
                output.write(record, Path(scratch) / f"face{output.suffixes[0]}")

            return call

        parts |= {f"output {name}": write(name) for name in OUTPUTS}
        for part, call in parts.items():
            rows.append({"part": part, **clock(call, rounds=rounds)})
    return rows


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    threads: Annotated[int, typer.Option(help="Of either runtime.")] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 30,
    networks: Annotated[
        str, typer.Option(help="With commas; empty leaves them out.")
    ] = "resnet-slim,resnet-18,resnet-50",
    workspace: Annotated[Path | None, typer.Option(help="A trained workspace, for the whole path.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: artifacts/refusion of the workspace.")] = None,
    photo: Annotated[Path | None, typer.Option(help="For the whole path.")] = None,
) -> None:
    chosen = [name for name in networks.split(",") if name]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for backbone, size_px in NETWORKS:
            if backbone in chosen:
                rows += measure_network(backbone, size_px, threads=threads, rounds=rounds, folder=Path(scratch))
    path: list[Row] = []
    if workspace is not None and photo is not None:
        path = measure_path(workspace, checkpoint or workspace / "artifacts" / "refusion", photo, rounds=rounds)
    console = Console()
    if rows:
        table = Table(
            "network", "runtime", "batch", "ms a face", "fastest", "processor", "GFLOP", "of matmul", "ONNX differs by"
        )
        for row in rows:
            table.add_row(
                f"{row['backbone']}, {row['size_px']} px",
                row["runtime"],
                str(row["batch"]),
                f"{row['ms']:.1f}",
                f"{row['fastest_ms']:.1f}",
                f"{row['processor_ms']:.1f}",
                f"{row['gflop']:.2f}",
                f"{row['of_matmul']:.2f}",
                f"{row['difference']:.1g}",
            )
        console.print(table)
    if path:
        table = Table("part", "ms", "fastest", "processor")
        for row in path:
            table.add_row(row["part"], *(f"{row[key]:.1f}" for key in ("ms", "fastest_ms", "processor_ms")))
        console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"networks": rows, "path": path}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
