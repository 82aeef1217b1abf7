"""The tables of the report and what they are called: numbers of metrics.json as texts for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.face.regions import REGIONS
from tasks.params import Params

TITLES = {
    "mean_face": "mean face",
    "optimised": "fitted photo by photo",
    "geometry": "landmarks alone",
    "self_supervised": "stage 1: self-supervised",
    "supervised": "stage 2: supervised",
    "fused": "stage 3: fused",
    "refusion": "re-fused",
    "refined": "re-fused, then refined",
}
FINAL = "refusion"
"""The block whose numbers and faces stand in front."""

BASELINE = "mean_face"

COLUMNS: tuple[tuple[str, str, str, float, int, int], ...] = (
    # key of metrics.json, heading, unit, factor, decimals, 1 where more is better, -1 where less is, 0 where neither
    ("scan_error_mm_median", "scan error, median", "mm", 1, 2, -1),
    ("scan_error_mm_mean", "scan error, mean", "mm", 1, 2, -1),
    ("scan_error_scaled_mm_median", "scan error, median, scale free", "mm", 1, 2, -1),
    ("vertex_error_mm", "vertex error", "mm", 1, 2, -1),
    ("region_error_mm", "region error", "mm", 1, 2, -1),
    ("normal_error_deg", "normal error", "°", 1, 2, -1),
    ("depth_slope", "depth slope", "", 1, 2, 1),
    ("depth_correlation", "depth correlation", "", 1, 2, 1),
    ("landmark_nme", "landmark NME", "%", 100, 2, -1),
    ("pose_error_deg", "pose error", "°", 1, 2, -1),
    ("similarity", "similarity", "", 1, 3, 1),
    ("psnr_db", "PSNR", "dB", 1, 1, 1),
)
REGION_COLUMNS: tuple[tuple[str, str, str, float, int, int], ...] = (
    *((f"{name}_error_mm", name, "mm", 1, 2, -1) for name in REGIONS),
    ("region_error_mm", "mean of the four", "mm", 1, 2, -1),
    ("nose_ratio", "nose ratio", "", 1, 2, 0),
)
POSE_COLUMNS: tuple[tuple[str, str, str, float, int, int], ...] = tuple(
    (f"{name}_error_deg", name, "°", 1, 2, -1) for name in ("yaw", "pitch", "roll")
)
HEADLINES = ("scan_error_mm_median", "vertex_error_mm", "landmark_nme", "pose_error_deg", "similarity", "depth_slope")
PART_COLUMNS = (
    "scan_error_mm_median",
    "vertex_error_mm",
    "depth_slope",
    "landmark_nme",
    "pose_error_deg",
    "similarity",
)

CURVES = {
    "train_detector": "Landmark detector",
    "train_geometry": "Geometry branch, from simulated landmarks",
    "train_self_supervised": "Stage 1: self-supervised",
    "train_supervised": "Stage 2: supervised",
    "train_fused": "Stage 3: fused",
    "refusion": "Re-fusion",
}


def headlines(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The final model's main numbers beside the mean face's, with the improvement in per cent."""
    rows = []
    for key, title, unit, factor, decimals, better in COLUMNS:
        if key not in HEADLINES:
            continue
        final, baseline = metrics[FINAL][key], metrics[BASELINE][key]
        gain = None
        if final is not None and baseline and better:
            gain = round(100 * better * (final - baseline) / abs(baseline))
        rows.append(
            {
                "title": title,
                "value": number(final, factor, decimals),
                "unit": unit if final is not None else "",
                "interval": interval(metrics[FINAL], key, factor, decimals),
                "baseline": number(baseline, factor, decimals),
                "gain": gain,
            }
        )
    return rows


def verdict(metrics: Mapping[str, Any]) -> list[str]:
    """In a sentence each: the final model against the mean face in vertex error, its relief, the other baseline."""
    found = metrics[FINAL].get("versus_mean_face", {})
    final, mean = metrics[FINAL]["vertex_error_mm"], metrics[BASELINE]["vertex_error_mm"]
    difference, low, high = (found.get(f"vertex_error_mm{end}") for end in ("", "_low", "_high"))
    if None in (final, mean, difference, low, high) or not mean:
        return []
    share = 100.0 * difference / mean
    nearer = "nearer to" if difference < 0 else "further from"
    sure = "so the gain is real" if high < 0 else "which may be nothing" if low <= 0 else "so it is a loss"
    sentences = [
        f"The faces lie {abs(difference):.2f} mm ({abs(share):.0f} %) {nearer} the truth than the mean face, vertex by "
        f"vertex; with other persons of this kind it would be {-high:.2f} to {-low:.2f} mm (95 %), {sure}."
    ]
    slope = metrics[FINAL]["depth_slope"]
    if slope is not None:
        sentences.append(f"They keep {100 * slope:.0f} % of the relief by which real faces differ from the mean.")
    other = metrics.get("optimised", {}).get("vertex_error_mm")
    if other is not None:
        sentences.append(
            f"Fitting every photo by itself, without a network, reaches {other:.2f} mm; the model {final:.2f} mm."
        )
    return sentences


def stage_table(
    metrics: Mapping[str, Any], columns: Sequence[tuple[str, str, str, float, int, int]] = COLUMNS
) -> dict[str, Any]:
    """Headings and one row per block, with intervals; the best of a column is marked."""
    headings = [{"title": title, "unit": unit} for _, title, unit, *_ in columns]
    best = {}
    for key, _, _, factor, decimals, better in columns:
        known = [block[key] for block in metrics.values() if block.get(key) is not None]
        # As printed: what looks equal is equal.
        best[key] = number((max if better > 0 else min)(known), factor, decimals) if known and better else None
    rows = []
    for block, values in metrics.items():
        cells = []
        for key, _, _, factor, decimals, _ in columns:
            text = number(values.get(key), factor, decimals)
            cells.append({"text": text, "best": text == best[key], "interval": interval(values, key, factor, decimals)})
        rows.append({"title": TITLES.get(block, block), "final": block == FINAL, "cells": cells})
    return {"headings": headings, "rows": rows}


def yaw_title(name: str) -> str:
    """A bin of |yaw| for people."""
    return f"{name.replace('-', '–')}°"


def yaw_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Per bin of |yaw|: the final model's numbers, the mean face's in small print."""
    return _part_table(metrics, "by_yaw", yaw_title)


def tone_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Per group of skin tones the same."""
    return _part_table(metrics, "by_tone", str)


def source_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Per source the same; no rows where all photos come from one."""
    table = _part_table(metrics, "by_source", str)
    return table if len(table["rows"]) > 1 else {**table, "rows": []}


def _part_table(metrics: Mapping[str, Any], part: str, title: Callable[[str], str]) -> dict[str, Any]:
    columns = [column for column in COLUMNS if column[0] in PART_COLUMNS]
    rows = []
    for name, values in metrics[FINAL][part].items():
        base = metrics[BASELINE][part][name]
        cells = [
            {
                "text": number(values[key], factor, decimals),
                "base": number(base[key], factor, decimals),
                "interval": interval(values, key, factor, decimals),
            }
            for key, _, _, factor, decimals, _ in columns
        ]
        rows.append({"title": title(name), "photos": values["photos"], "persons": values["persons"], "cells": cells})
    return {"headings": [{"title": title, "unit": unit} for _, title, unit, *_ in columns], "rows": rows}


def lesson_table(params: Params) -> list[dict[str, str]]:
    """Per training stage: what it starts from, how long it learns, and from which photos by which losses."""
    rows = []
    for stage in ("train_self_supervised", "train_supervised", "train_fused"):
        section = getattr(params, stage)
        rows.append(
            {
                "title": CURVES[stage],
                "start": CURVES[section.init],
                "photos": f"{section.steps * section.batch_size:,}".replace(",", " "),
                "sources": ", ".join(f"{100 * source.share:.0f} % {source.source}" for source in section.sources),
                "losses": ", ".join(dict.fromkeys(loss for source in section.sources for loss in source.losses)),
            }
        )
    return rows


def interval(values: Mapping[str, Any], key: str, factor: float = 1.0, decimals: int = 2) -> str:
    """The ends of a number's interval for small print; empty where it has none."""
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    if low is None or high is None:
        return ""
    return f"{number(low, factor, decimals)}…{number(high, factor, decimals)}"


def number(value: float | None, factor: float = 1.0, decimals: int = 2) -> str:
    """A number for a table; an en dash where it is unknown."""
    if value is None or not math.isfinite(value):
        return "–"
    # Adding zero turns a negative one into a plain one.
    return f"{round(factor * value, decimals) + 0.0:.{decimals}f}"
