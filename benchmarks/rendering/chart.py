"""How time and memory grow with the pixels and with the vertices, drawn from the benchmark's rows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = Mapping[str, Any]

BATCH = 8
VERTICES, SIZE_PX = 10_000, 224
SIZES_PX = (64, 96, 128, 176, 224, 320, 448)
VERTEX_COUNTS = (1_250, 2_500, 5_000, 10_000, 20_000, 36_000, 72_000)
MEMORY_LIMIT_MB = 64.0
COLOURS = {"numba": "#c8453b", "torch": "#6aa5d8", "pytorch3d": "#9aa0a6"}


def curve_cases() -> list[tuple[int, int, int]]:
    """(vertices, size in px, batch) that both curves need."""
    cases = [(VERTICES, size_px, BATCH) for size_px in SIZES_PX]
    return cases + [(count, SIZE_PX, BATCH) for count in VERTEX_COUNTS if count != VERTICES]


def draw_curves(rows: Sequence[Row]) -> bytes:
    """A PNG of two columns, over pixels and over vertices; above milliseconds per image, below megabytes."""
    figure = Figure(figsize=(11.0, 7.6), layout="constrained")
    (time_pixels, time_vertices), (memory_pixels, memory_vertices) = figure.subplots(2, 2)
    here = [row for row in rows if row["device"] == "cpu"]
    by_pixels = [row for row in here if row["vertices"] == VERTICES]
    by_vertices = [row for row in here if row["size_px"] == SIZE_PX]
    _draw(time_pixels, memory_pixels, by_pixels, "size_px", 2)
    _draw(time_vertices, memory_vertices, by_vertices, "vertices", 1)
    # Ticks where something was measured; on a logarithmic axis matplotlib's own would overlap.
    for axes in (time_pixels, memory_pixels):
        axes.set_xticks([size**2 for size in SIZES_PX], [f"{size}²" for size in SIZES_PX])
    for axes in (time_vertices, memory_vertices):
        axes.set_xticks(VERTEX_COUNTS, [f"{count:,}" for count in VERTEX_COUNTS])
    for axes, title in (
        (time_pixels, f"{VERTICES:,} vertices, batch {BATCH}"),
        (time_vertices, f"{SIZE_PX} px, batch {BATCH}"),
    ):
        axes.set(title=title, ylabel="ms per image")
    for axes, label in ((memory_pixels, "pixels of an image"), (memory_vertices, "vertices")):
        axes.axhline(MEMORY_LIMIT_MB, color="#444444", linewidth=0.8, linestyle=":")
        axes.set(xlabel=label, ylabel="peak extra MB of a batch", ylim=(0.0, None))
    figure.legend(*time_pixels.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def write_curves(rows: Sequence[Row], path: Path) -> None:
    """`draw_curves` as a file that is never half written."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(draw_curves(rows))
    unfinished.replace(path)


def _draw(time: Axes, memory: Axes, rows: Sequence[Row], name: str, power: int) -> None:
    for backend, colour in COLOURS.items():
        batch = 1 if backend == "pytorch3d" else BATCH
        own = sorted(
            (row for row in rows if row["backend"] == backend and row["batch"] == batch), key=lambda row: row[name]
        )
        if not own:
            continue
        across = [float(row[name]) ** power for row in own]
        label = f"{backend}, batch 1" if batch == 1 else backend
        both, ids = [row["forward_backward_ms"] for row in own], [row["ids_ms"] for row in own]
        time.plot(across, both, color=colour, marker="o", markersize=4, label=f"{label}: forward + backward")
        time.plot(across, ids, color=colour, marker=".", linestyle=":", linewidth=1.2, label=f"{label}: ids")
        if batch != 1:
            memory.plot(across, [row["peak_mb"] for row in own], color=colour, marker="o", markersize=4)
            # Linear growth through the largest case; a curve that is flatter pays a fixed price as well.
            guide = [float(both[-1]) * value / across[-1] for value in across]
            time.plot(across, guide, color=colour, linestyle="--", linewidth=0.7, label=f"{label}: slope 1")
    time.set(xscale="log", yscale="log")
    memory.set(xscale="log")
    for axes in (time, memory):
        axes.minorticks_off()
        axes.grid(linewidth=0.3, color="#cccccc")
        axes.spines[["top", "right"]].set_visible(False)
