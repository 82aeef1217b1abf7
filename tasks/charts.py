"""Charts of the report, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {
    "mean_face": "#9aa0a6",
    "optimised": "#5f6368",
    "geometry": "#c9972b",
    "self_supervised": "#6aa5d8",
    "supervised": "#5aa469",
    "fused": "#8a63b8",
    "refusion": "#c8453b",
    "refined": "#7a1f17",
}
DPI = 110
CHARTS_PER_STAGE = 4
MAX_LEGEND_COLUMNS = 8
TELLING = (
    ("train", "loss"),
    ("validation", "vertex_error_mm"),
    ("validation", "landmark_nme"),
    ("validation", "similarity"),
    ("validation", "shape_error_mm"),
    ("validation", "pose_error_deg"),
    ("validation", "nme"),
    ("validation", "loss"),
)
"""Curves worth a chart, by split and name, in order; the terms that a stage logs beyond these are in MLflow."""


def error_distribution(scans: Mapping[str, np.ndarray], titles: Mapping[str, str]) -> bytes | None:
    """Share of scan points below each error, one line per block; None without any scan."""
    known = {block: np.sort(errors) for block, errors in scans.items() if len(errors)}
    if not known:
        return None
    limit = max(float(np.quantile(errors, 0.97)) for errors in known.values())
    axis = np.linspace(0.0, limit, 200)
    figure = Figure(figsize=(6.4, 3.8))
    plot = figure.subplots()
    for block, errors in known.items():
        share = np.searchsorted(errors, axis, side="right") / len(errors)
        plot.plot(axis, 100 * share, color=COLOURS.get(block), label=titles[block], linewidth=_width(block))
    plot.set(
        xlabel="distance to the reconstructed surface (mm)", ylabel="scan points (%)", xlim=(0, limit), ylim=(0, 100)
    )
    plot.legend(loc="lower right", frameon=False, fontsize=8)
    return _png(figure)


def by_part(
    metrics: Mapping[str, Any],
    part: str,
    measures: Mapping[str, tuple[str, float]],
    titles: Mapping[str, str],
    part_title: Callable[[str], str],
) -> bytes | None:
    """Bars with intervals per bin of a part for several measures, by name: (axis label, factor); None without any."""
    bins = list(next(iter(metrics.values()))[part])
    drawn = [
        name
        for name in measures
        if any(block[part][bin_][name] is not None for block in metrics.values() for bin_ in bins)
    ]
    if not drawn:
        return None
    figure = Figure(figsize=(3.0 * len(drawn), 3.4))
    width = 0.84 / len(metrics)
    for plot, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        text, factor = measures[name]
        for place, (block, values) in enumerate(metrics.items()):
            heights, lows, highs = (
                factor * np.array([_float(values[part][bin_].get(f"{name}{end}")) for bin_ in bins])
                for end in ("", "_low", "_high")
            )
            centres = np.arange(len(bins)) + (place - (len(metrics) - 1) / 2) * width
            plot.bar(centres, heights, width * 0.92, color=COLOURS.get(block), label=titles[block])
            plot.vlines(centres, lows, highs, color="#22262b", linewidth=0.7)
        plot.set_title(text, fontsize=9)
        plot.set_xticks(range(len(bins)), [part_title(bin_) for bin_ in bins])
    handles, labels = plot.get_legend_handles_labels()
    rows = -(-len(labels) // MAX_LEGEND_COLUMNS)
    figure.legend(handles, labels, loc="lower center", ncols=-(-len(labels) // rows), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.07 * rows, 1, 1))
    return _png(figure, tight=False)


def gains(
    metrics: Mapping[str, Any], measures: Mapping[str, tuple[str, float]], titles: Mapping[str, str]
) -> bytes | None:
    """Differences of every block to the mean face, dots with their intervals; None where nothing is known."""
    found = {block: values.get("versus_mean_face", {}) for block, values in metrics.items() if block != "mean_face"}
    drawn = [name for name in measures if any(values.get(name) is not None for values in found.values())]
    if not drawn:
        return None
    figure = Figure(figsize=(1.4 + 2.4 * len(drawn), 0.9 + 0.3 * len(found)))
    for place, (plot, name) in enumerate(zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True)):
        text, factor = measures[name]
        for row, (block, values) in enumerate(found.items()):
            value, low, high = (factor * _float(values.get(f"{name}{end}")) for end in ("", "_low", "_high"))
            plot.hlines(-row, low, high, color=COLOURS.get(block), linewidth=2.2)
            plot.plot(value, -row, "o", color=COLOURS.get(block), markersize=4.5)
        plot.axvline(0.0, color="#9aa0a6", linewidth=1.0)
        plot.set_title(text, fontsize=9)
        plot.set_yticks([-row for row in range(len(found))], [titles[block] for block in found] if place == 0 else [])
        plot.set_ylim(-len(found) + 0.4, 0.6)
    return _png(figure)


def training_curves(path: Path) -> bytes | None:
    """The most telling rows of a stage's `curve.csv` over the steps, a small chart each; None without any."""
    curves = read_curve(path)
    known = [(split, name) for split, names in curves.items() for name in names]
    chosen = [curve for curve in TELLING if curve in known]
    chosen = (chosen or known)[:CHARTS_PER_STAGE]
    if not chosen:
        return None
    figure = Figure(figsize=(2.6 * CHARTS_PER_STAGE, 2.1))
    # Always the same number of places, so that the charts of all stages stand below each other.
    for plot, (split, name) in zip(figure.subplots(1, CHARTS_PER_STAGE)[: len(chosen)], chosen, strict=True):
        steps, values = curves[split][name]
        marker = "o" if len(steps) < 40 else None
        plot.plot(steps, values, color="#6aa5d8" if split == "train" else "#c8453b", marker=marker, markersize=2.5)
        if values.min() > 0 and values.max() > 20 * values.min():
            plot.set_yscale("log")
        plot.set_title(f"{split}: {name.replace('_', ' ')}", fontsize=8)
    for plot in figure.axes[len(chosen) :]:
        plot.remove()
    return _png(figure)


def read_curve(path: Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Steps and values by split and name from a table step, split, name, value.

    Raises: ValueError naming the file if a column is missing or a cell is no number.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        try:
            for row in csv.DictReader(file):
                names = curves.setdefault(row["split"], {})
                names.setdefault(row["name"], []).append((float(row["step"]), float(row["value"])))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: {error} in the curve, expected step, split, name, value; train again") from error
    return {
        split: {name: (np.array(rows)[:, 0], np.array(rows)[:, 1]) for name, rows in names.items()}
        for split, names in curves.items()
    }


def colour_bar(colours: Sequence[Sequence[float]], *, limit_mm: float) -> bytes:
    """The scale of error maps."""
    figure = Figure(figsize=(3.2, 0.62))
    plot = figure.add_axes((0.04, 0.62, 0.92, 0.3))
    plot.imshow(np.array(colours)[None], aspect="auto", extent=(0, limit_mm, 0, 1))
    plot.set_yticks([])
    plot.tick_params(labelsize=7)
    plot.set_xlabel("error (mm)", fontsize=7, labelpad=1)
    return _png(figure, tight=False)


def _float(value: float | None) -> float:
    return np.nan if value is None else value


def _width(block: str) -> float:
    return 2.2 if block in ("refusion", "mean_face") else 1.2


def _png(figure: Figure, *, tight: bool = True) -> bytes:
    for plot in figure.axes:
        if plot.get_yticks().size:
            plot.spines[["top", "right"]].set_visible(False)
            plot.grid(axis="y", alpha=0.25, linewidth=0.6)
            plot.set_axisbelow(True)
            plot.tick_params(labelsize=8)
    if tight:
        figure.tight_layout()
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
