"""Compares the variants of an experiment: spread over seeds, paired differences over persons, table and plot."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from models.statistics import paired_difference, percentiles, resamples
from tasks.artifacts import replace_file, without_nan, write_json

COLUMNS = {
    "vertex_error_mm": ("vertex error, mm", 1.0, 3),
    "scan_error_mm_median": ("scan median, mm", 1.0, 3),
    "depth_slope": ("depth slope", 1.0, 3),
    "depth_correlation": ("depth corr.", 1.0, 3),
    "normal_error_deg": ("normals, °", 1.0, 2),
    "landmark_nme": ("NME, %", 100.0, 2),
    "pose_error_deg": ("pose, °", 1.0, 2),
    "similarity": ("similarity", 1.0, 3),
    "identity_accuracy": ("same or not, %", 100.0, 1),
    "identity_auc": ("AUC", 1.0, 3),
    "identity_rank1": ("own true face nearest, %", 100.0, 1),
    "distinctness": ("distinctness", 1.0, 3),
}
"""Numbers of the table: heading, factor, digits."""

PAIRED = ("vertex_error_mm", "similarity")
"""Numbers known of every photo whose differences get intervals."""

GROUPED = ("vertex_error_mm", "similarity", "psnr_db")
"""Numbers known of every photo that are given per group of photos."""

PANELS = ("vertex_error_mm", "depth_slope", "similarity")
DPI = 110
BLUE, GREEN, RED, GREY = "#3b6ea8", "#5aa469", "#c8453b", "#9aa0a6"

AXES = {"persons": "labelled persons", "noise_mm": "error of the labels, mm"}
"""What curves may run over."""


@dataclass(frozen=True)
class Result:
    """What a variant reached with one seed."""

    variant: str
    title: str
    seed: int
    steps: int
    seconds: float
    summary: dict[str, Any]
    """As of `summarize`, over the whole test split."""
    labels: dict[str, Any]
    """How many labelled persons there were and how far their meshes were off: `persons`, `noise_mm`."""
    line: str
    """Variants of one line of a curve over the labels share this; empty for what stands beside the curves."""
    rounds: list[dict[str, Any]] = field(repr=False)
    moments: np.ndarray = field(repr=False)
    """(N, 5) of depth, see `depth_moments`; NaN without a mesh."""
    values: dict[str, np.ndarray] = field(repr=False)
    """(N,) by name, one number per photo."""


def write_comparison(
    out: Path,
    results: Sequence[Result],
    *,
    name: str,
    title: str,
    reference: str,
    headline: tuple[str, str] | None,
    axis: str | None,
    persons: np.ndarray,
    command: str,
    photo_groups: Mapping[str, np.ndarray] | None = None,
) -> list[Path]:
    """Write NAME.json, NAME.md and NAME.png; `persons` (N,) of the test photos are drawn again for the intervals.

    `photo_groups`: masks (N,) of photos for which everything is given once more; empty ones are left out.

    With an `axis`, one of the `labels` of a result, the picture shows curves over it.
    Degenerate: where the reference was not measured, the first that was takes its place.
    """
    groups = _by_variant(results)
    if groups and reference not in groups:
        reference = next(iter(groups))
    rows = [row_of(group) for group in groups.values()]
    for row in rows:
        if row["name"] != reference:
            row["against_reference"] = compare(groups[row["name"]], groups[reference], persons)
    content: dict[str, Any] = {
        "experiment": name,
        "title": title,
        "command": command,
        "photos": len(persons),
        "persons": len(set(persons.tolist())),
        "reference": reference,
        "columns": {key: heading for key, (heading, _, _) in COLUMNS.items()},
        "rows": rows,
    }
    if headline is not None and all(variant in groups for variant in headline):
        first, second = (groups[variant] for variant in headline)
        content["headline"] = {"first": headline[0], "second": headline[1], **compare(first, second, persons)}
        content["headline"]["sentence"] = _sentence(content["headline"], first[0].title, second[0].title)
    content["groups"] = {
        group: {"photos": int(mask.sum()), "rows": _group_rows(groups, reference, persons, mask)}
        for group, mask in (photo_groups or {}).items()
        if mask.any()
    }
    paths = [out / f"{name}{suffix}" for suffix in (".json", ".md", ".png")]
    write_json(paths[0], without_nan(content))
    with replace_file(paths[1]) as temporary:
        temporary.write_text(table(content), encoding="utf-8")
    with replace_file(paths[2]) as temporary:
        temporary.write_bytes(plot(content) if axis is None else curves(content, axis))
    return paths


def row_of(results: Sequence[Result]) -> dict[str, Any]:
    """Mean, least and largest of every number over the seeds, time and steps; the rounds of re-fusion if there were."""
    first = results[0]
    numbers = {}
    for key in COLUMNS:
        values = [result.summary.get(key) for result in results]
        known = [float(value) for value in values if value is not None]
        if known:
            spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
            numbers[key] = {"mean": float(np.mean(known)), "deviation": spread, "seeds": known}
    row: dict[str, Any] = {
        "name": first.variant,
        "title": first.title,
        "labels": first.labels,
        "line": first.line,
        "seeds": [result.seed for result in results],
        "steps": float(np.mean([result.steps for result in results])),
        "seconds": float(np.mean([result.seconds for result in results])),
        "numbers": numbers,
    }
    if any(result.rounds for result in results):
        row["rounds"] = {str(result.seed): result.rounds for result in results}
    return row


def compare(first: Sequence[Result], second: Sequence[Result], persons: np.ndarray) -> dict[str, Any]:
    """First minus second on the same photos, each the mean over its seeds, with intervals over persons.

    `seeds` holds the difference of every pair of runs with one seed: where its signs differ, the seed decides.
    """
    found: dict[str, Any] = {}
    for key in PAIRED:
        means = [
            np.mean([result.values[key].astype(np.float64) for result in side], axis=0) for side in (first, second)
        ]
        difference, low, high = paired_difference(means[0], means[1], persons)
        other = {result.seed: _mean(result.values[key]) for result in second}
        average = float(np.mean(list(other.values())))
        seeds = [_mean(result.values[key]) - other.get(result.seed, average) for result in first]
        found[key] = {
            "difference": difference,
            "low": low,
            "high": high,
            "relative": difference / _mean(means[1]),
            "seeds": seeds,
        }
    found |= flatness_difference([result.moments for result in first], [result.moments for result in second], persons)
    return found


def _group_rows(
    variants: Mapping[str, Sequence[Result]], reference: str, persons: np.ndarray, mask: np.ndarray
) -> list[dict[str, Any]]:
    """Means over seeds of the photos (N,) chosen, and what they differ from the reference by, with intervals."""
    rows = []
    for name, results in variants.items():
        row: dict[str, Any] = {"name": name, "title": results[0].title}
        for key in GROUPED:
            own, other = (
                np.mean([result.values[key].astype(np.float64)[mask] for result in side], axis=0)
                for side in (results, variants[reference])
            )
            row[key] = {"mean": _mean(own)}
            if name != reference:
                difference, low, high = paired_difference(own, other, persons[mask])
                row[key] |= {"difference": difference, "low": low, "high": high}
        rows.append(row)
    return rows


def flatness_difference(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], persons: np.ndarray
) -> dict[str, dict[str, float]]:
    """Depth slope and correlation of first minus second, with intervals over persons; (N, 5) moments for every seed."""
    _, places = np.unique(persons, return_inverse=True)
    count = int(places.max()) + 1 if len(places) else 0
    weights = np.vstack([np.ones((1, count)), resamples(count)])[:, places]
    ends = []
    for seeds in (first, second):
        pooled = np.mean(seeds, axis=0)
        known = np.isfinite(pooled).all(axis=1)
        drawn = weights[:, known]
        ends.append(_flatness((drawn @ pooled[known]) / drawn.sum(axis=1, keepdims=True)))
    found = {}
    for name, one, two in zip(("depth_slope", "depth_correlation"), *ends, strict=True):
        difference = one - two
        low, high = percentiles(difference[1:])
        found[name] = {"difference": float(difference[0]), "low": low, "high": high}
    return found


def table(content: Mapping[str, Any]) -> str:
    """The comparison as Markdown, with the command that makes it."""
    lines = [f"# {content['title']}", "", f"`{content['command']}`", ""]
    lines += [f"{content['photos']} test photos of {content['persons']} persons. Mean ± standard deviation over seeds."]
    lines += [
        "Δ: vertex error against "
        f"“{_title(content, content['reference'])}”, in mm, with the 95 % bootstrap interval over persons.",
        "",
    ]
    if "headline" in content:
        lines += [f"**{content['headline']['sentence']}**", ""]
    heads = ["variant", *(heading for heading, _, _ in COLUMNS.values()), "Δ", "steps", "s"]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in content["rows"]:
        cells = [str(row["title"]), *(_cell(row["numbers"].get(key), key) for key in COLUMNS)]
        against = row.get("against_reference")
        cells.append(_interval(against["vertex_error_mm"]) if against else "–")
        cells += [f"{row['steps']:.0f}", f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    for row in content["rows"]:
        for seed, rounds in row.get("rounds", {}).items():
            lines += ["", f"Rounds of “{row['title']}”, seed {seed}:", ""]
            lines += ["| " + " | ".join(rounds[0]) + " |", "|---" * len(rounds[0]) + "|"]
            lines += ["| " + " | ".join(_plain(value) for value in entry.values()) + " |" for entry in rounds]
    for name, group in content["groups"].items():
        lines += ["", f"Of {name}, {group['photos']} photos:", ""]
        lines += ["| variant | vertex error, mm | Δ | similarity | Δ | PSNR, dB | Δ |", "|---" * 7 + "|"]
        for row in group["rows"]:
            cells = [str(row["title"])]
            for key in GROUPED:
                value = row[key]
                cells.append(f"{value['mean']:.3f}")
                cells.append(_interval(value) if "difference" in value else "–")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(content: Mapping[str, Any]) -> bytes:
    """One line per variant: every seed as a dot, their mean as a bar; a panel for each of `PANELS`."""
    rows = [row for row in content["rows"] if row["name"] != "mean_face"][::-1]
    mean_face = next((row for row in content["rows"] if row["name"] == "mean_face"), None)
    figure = Figure(figsize=(11.0, 1.1 + 0.34 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, key in zip(panels, PANELS, strict=True):
        heading, factor, _ = COLUMNS[key]
        for place, row in enumerate(rows):
            numbers = row["numbers"].get(key)
            if numbers is None:
                continue
            colour = RED if row["name"] == content["reference"] else BLUE
            panel.plot(np.array(numbers["seeds"]) * factor, [place] * len(numbers["seeds"]), "o", ms=4, color=colour)
            panel.plot([numbers["mean"] * factor] * 2, [place - 0.3, place + 0.3], color=colour, lw=2)
        if mean_face is not None and key == "vertex_error_mm" and key in mean_face["numbers"]:
            at = mean_face["numbers"][key]["mean"] * factor
            values = [v for row in rows for v in row["numbers"].get(key, {}).get("seeds", ())]
            # A line far away would squeeze what is to be compared.
            if values and at < max(values) + 2.0 * (max(values) - min(values)):
                panel.axvline(at, color=GREY, ls="--", lw=1)
                panel.text(at, len(rows) - 0.4, " mean face", fontsize=7, color=GREY, va="bottom")
        panel.set_xlabel(heading)
        panel.grid(axis="x", lw=0.4, color="#dddddd")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.08)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=8)
    figure.suptitle(content["title"], fontsize=10, x=0.01, ha="left")
    return _png(figure)


def curves(content: Mapping[str, Any], axis: str) -> bytes:
    """Every line of variants over what was done to their labels: mean over seeds, and all seeds as dots.

    The reference, which has no place on the axis, is a dashed line.
    """
    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    lines = list(dict.fromkeys(row["line"] for row in content["rows"] if row["line"]))
    for panel, key in zip(panels, PANELS, strict=True):
        heading, factor, _ = COLUMNS[key]
        for line, colour in zip(lines, (BLUE, GREEN, RED), strict=False):
            rows = [row for row in content["rows"] if row["line"] == line and key in row["numbers"]]
            places = [row["labels"][axis] for row in rows]
            panel.plot(
                places, [row["numbers"][key]["mean"] * factor for row in rows], "-", color=colour, lw=1.5, label=line
            )
            for place, row in zip(places, rows, strict=True):
                seeds = np.array(row["numbers"][key]["seeds"]) * factor
                panel.plot([place] * len(seeds), seeds, "o", ms=3.5, color=colour)
        for row in content["rows"]:
            if row["name"] == content["reference"] and not row["line"] and key in row["numbers"]:
                panel.axhline(row["numbers"][key]["mean"] * factor, color=GREY, ls="--", lw=1, label=row["title"])
        if axis == "persons":
            panel.set_xscale("log")
            ticks = sorted({row["labels"][axis] for row in content["rows"] if row["line"]})
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.minorticks_off()
        panel.set(xlabel=AXES[axis], ylabel=heading)
        panel.grid(lw=0.4, color="#dddddd")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=7, frameon=False)
    figure.suptitle(content["title"], fontsize=10, x=0.01, ha="left")
    return _png(figure)


def _flatness(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and correlation of pooled moments (D, 5), as `models.metrics.depth_flatness` has them."""
    predicted, target, predicted_square, target_square, product = moments.T
    covariance = product - predicted * target
    spread, truth = predicted_square - predicted**2, target_square - target**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return covariance / truth, np.where(spread > 0.0, covariance / np.sqrt(np.maximum(spread, 0.0) * truth), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else math.nan


def _sentence(found: Mapping[str, Any], first: str, second: str) -> str:
    vertex, slope, likeness = (found[key] for key in ("vertex_error_mm", "depth_slope", "depth_correlation"))
    sure = "the interval excludes zero" if vertex["low"] * vertex["high"] > 0 else "the interval holds zero"
    return (
        f"{first[:1].upper()}{first[1:]} minus {second}: "
        f"vertex error {_interval(vertex)} mm ({vertex['relative']:+.1%}; {sure}), "
        f"depth slope {_interval(slope)}, depth correlation {_interval(likeness)}."
    )


def _interval(found: Mapping[str, Any]) -> str:
    if found["difference"] is None or math.isnan(found["difference"]):
        return "–"
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _cell(numbers: Mapping[str, Any] | None, key: str) -> str:
    if numbers is None:
        return "–"
    _, factor, digits = COLUMNS[key]
    mean = f"{numbers['mean'] * factor:.{digits}f}"
    return mean if numbers["deviation"] is None else f"{mean} ± {numbers['deviation'] * factor:.{digits}f}"


def _plain(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–" if value is None else str(value)


def _title(content: Mapping[str, Any], name: str) -> str:
    return next((str(row["title"]) for row in content["rows"] if row["name"] == name), name)


def _by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.variant, []).append(result)
    return groups


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(target, format="png", dpi=DPI)
    return target.getvalue()
