"""The report of stage evaluate: one HTML file with everything in it, to be read without a network."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from models.face.morphable import MorphableModel
from models.training.data import CropSet
from tasks import charts
from tasks.artifacts import Workspace, read_json, replace_file
from tasks.face_gallery import ERROR_LIMIT_MM, draw_gallery, draw_overviews
from tasks.measure import Measured, Truth
from tasks.params import Params

TITLES = {
    "mean_face": "mean face",
    "geometry": "landmarks alone",
    "self_supervised": "stage 1: self-supervised",
    "supervised": "stage 2: supervised",
    "fused": "stage 3: fused",
    "refusion": "re-fused",
}
FINAL = "refusion"
"""The block whose numbers and faces stand in front."""

BASELINE = "mean_face"

COLUMNS: tuple[tuple[str, str, str, float, int, int], ...] = (
    # key of metrics.json, heading, unit, factor, decimals, 1 where more is better and -1 where less is
    ("scan_error_mm_median", "scan error, median", "mm", 1, 2, -1),
    ("scan_error_mm_mean", "scan error, mean", "mm", 1, 2, -1),
    ("scan_error_scaled_mm_median", "scan error, median, scale free", "mm", 1, 2, -1),
    ("vertex_error_mm", "vertex error", "mm", 1, 2, -1),
    ("normal_error_deg", "normal error", "°", 1, 2, -1),
    ("depth_slope", "depth slope", "", 1, 2, 1),
    ("depth_correlation", "depth correlation", "", 1, 2, 1),
    ("landmark_nme", "landmark NME", "%", 100, 2, -1),
    ("pose_error_deg", "pose error", "°", 1, 2, -1),
    ("similarity", "similarity", "", 1, 3, 1),
)
HEADLINES = ("scan_error_mm_median", "vertex_error_mm", "landmark_nme", "pose_error_deg", "similarity", "depth_slope")
YAW_COLUMNS = ("scan_error_mm_median", "vertex_error_mm", "landmark_nme", "pose_error_deg", "similarity")

LANDMARK_COLUMNS = ("nme68", "nme51", "nme68_box", "fr8", "fr10", "auc10")
"""Keys of landmarks.json in the table of the report."""

YAW_CHARTS = {
    "scan_error_mm_median": ("scan error, median (mm)", 1.0),
    "landmark_nme": ("landmark NME (%)", 100.0),
    "pose_error_deg": ("pose error (°)", 1.0),
}

CURVES = {
    "train_detector": "Landmark detector",
    "train_geometry": "Geometry branch, from simulated landmarks",
    "train_self_supervised": "Stage 1: self-supervised",
    "train_supervised": "Stage 2: supervised",
    "train_fused": "Stage 3: fused",
    "refusion": "Re-fusion",
}


def write_report(
    folder: Path,
    *,
    params: Params,
    workspace: Workspace,
    model: MorphableModel,
    crops: CropSet,
    truth: Truth,
    metrics: Mapping[str, Any],
    measured: Mapping[str, Measured],
) -> None:
    """Write report.html and pictures/*.png into the folder of the evaluation."""
    faces, images = draw_gallery(params, workspace, model, crops, truth, measured[FINAL])
    images |= draw_overviews(params, workspace, model, crops, measured[FINAL])
    scans = {block: np.concatenate([np.zeros(0), *found.scan]) for block, found in measured.items()}
    drawn = {
        "error_distribution": charts.error_distribution(scans, TITLES),
        "by_yaw": charts.by_yaw(metrics, YAW_CHARTS, TITLES),
    }
    drawn |= {f"curve_{stage}": charts.training_curves(workspace.folder(stage) / "curve.csv") for stage in CURVES}
    for name in ("landmarks_worst", "landmarks_accuracy"):
        shown = folder / "pictures" / f"{name}.png"
        drawn[name] = shown.read_bytes() if shown.exists() else None
    balance = workspace.folder("train_detector") / "balance.png"
    drawn["pose_balance"] = balance.read_bytes() if balance.exists() else None
    images |= {name: content for name, content in drawn.items() if content is not None}
    content = render_report(
        {
            "model": model.name,
            "licence": model.licence,
            "face_model_hash": model.content_hash(),
            "source_sha256": model.source_sha256,
            "headlines": headlines(metrics),
            "stages": stage_table(metrics),
            "yaw": yaw_table(metrics),
            "sources": source_table(metrics),
            "data": data_table(workspace),
            "landmarks": landmark_table(folder / "landmarks.json"),
            "rendered_landmarks": _optional(folder / "landmarks.json").get("convention") == "model",
            "curves": {f"curve_{stage}": title for stage, title in CURVES.items() if f"curve_{stage}" in images},
            "rounds": read_rounds(workspace.folder("refusion") / "rounds.csv"),
            "stopped": _optional(workspace.folder("refusion") / "metrics.json").get("stopped"),
            "threshold": params.refusion.similarity_threshold,
            "photos": len(crops),
            "persons": len(set(crops.person.tolist())),
            "meshes": len(truth.shape),
            "faces": faces,
            "error_limit_mm": ERROR_LIMIT_MM,
            "images": {name: data_uri(content) for name, content in images.items()},
        }
    )
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, picture in images.items():
        (folder / "pictures" / f"{name}.png").write_bytes(picture)
    with replace_file(folder / "report.html") as temporary:
        temporary.write_text(content, encoding="utf-8")


def render_report(context: Mapping[str, Any]) -> str:
    """Fill the template; every text is escaped, and a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html").render(context)


def headlines(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The final model's main numbers beside the mean face's, with the improvement in per cent."""
    rows = []
    for key, title, unit, factor, decimals, better in COLUMNS:
        if key not in HEADLINES:
            continue
        final, baseline = metrics[FINAL][key], metrics[BASELINE][key]
        gain = None
        if final is not None and baseline:
            gain = round(100 * better * (final - baseline) / abs(baseline))
        rows.append(
            {
                "title": title,
                "value": number(final, factor, decimals),
                "unit": unit if final is not None else "",
                "baseline": number(baseline, factor, decimals),
                "gain": gain,
            }
        )
    return rows


def stage_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Headings and one row per block; the best of a column is marked."""
    headings = [{"title": title, "unit": unit} for _, title, unit, *_ in COLUMNS]
    best = {}
    for key, _, _, factor, decimals, better in COLUMNS:
        known = [block[key] for block in metrics.values() if block[key] is not None]
        # As printed: what looks equal is equal.
        best[key] = number((max if better > 0 else min)(known), factor, decimals) if known else None
    rows = []
    for block, values in metrics.items():
        texts = {key: number(values[key], factor, decimals) for key, _, _, factor, decimals, _ in COLUMNS}
        cells = [{"text": text, "best": text == best[key]} for key, text in texts.items()]
        rows.append({"title": TITLES.get(block, block), "final": block == FINAL, "cells": cells})
    return {"headings": headings, "rows": rows}


def yaw_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Per bin of |yaw|: the final model's numbers, the mean face's in small print."""
    return _part_table(metrics, "by_yaw", lambda name: f"{name.replace('-', '–')}°")


def source_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Per source the same; no rows where all photos come from one."""
    table = _part_table(metrics, "by_source", str)
    return table if len(table["rows"]) > 1 else {**table, "rows": []}


def _part_table(metrics: Mapping[str, Any], part: str, title: Callable[[str], str]) -> dict[str, Any]:
    columns = [column for column in COLUMNS if column[0] in YAW_COLUMNS]
    rows = []
    for name, values in metrics[FINAL][part].items():
        base = metrics[BASELINE][part][name]
        cells = [
            {"text": number(values[key], factor, decimals), "base": number(base[key], factor, decimals)}
            for key, _, _, factor, decimals, _ in columns
        ]
        rows.append({"title": title(name), "photos": values["photos"], "cells": cells})
    return {"headings": [{"title": title, "unit": unit} for _, title, unit, *_ in columns], "rows": rows}


def data_table(workspace: Workspace) -> list[dict[str, Any]]:
    """Per source: photos found, refused, kept after each check, by split; only of the stages that have run."""
    ingested = _optional(workspace.folder("ingest") / "summary.json").get("sources", {})
    validated = _optional(workspace.folder("validate_labels") / "summary.json").get("sources", {})
    rows = []
    for name, counts in ingested.items():
        checked = validated.get(name, {})
        splits = counts.get("photos_by_split", {})
        quality = checked.get("mean_label_quality")
        rows.append(
            {
                "source": name,
                "found": counts.get("found", "–"),
                "refused": counts.get("quarantined", "–"),
                "persons": counts.get("persons", "–"),
                "labelled": counts.get("labelled", "–"),
                "clean": checked.get("clean", "–"),
                "quality": number(quality, 1, 2),
                "splits": " / ".join(str(splits.get(split, 0)) for split in ("train", "validation", "test")),
            }
        )
    return rows


def landmark_table(path: Path) -> list[dict[str, str]]:
    """Rows of the detector's errors, all photos first, then by |yaw|; empty where it was not measured."""
    numbers = _optional(path)
    if not numbers:
        return []
    rows = {"all": numbers, **{f"|yaw| {name}°": values for name, values in numbers["by_yaw"].items()}}
    return [
        {"name": name, "count": str(values["count"])}
        | {key: "–" if values[key] is None else f"{100 * values[key]:.2f} %" for key in LANDMARK_COLUMNS}
        for name, values in rows.items()
    ]


def read_rounds(path: Path) -> list[dict[str, str]]:
    """The rounds of the re-fusion loop, formatted; empty where there are none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _short(value) for key, value in row.items() if key} for row in csv.DictReader(file)]


def number(value: float | None, factor: float = 1.0, decimals: int = 2) -> str:
    """A number for a table; an en dash where it is unknown."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{factor * value:.{decimals}f}"


def data_uri(png: bytes) -> str:
    """A PNG as a URI that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _optional(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _short(value: str | None) -> str:
    try:
        rounded = float(value or "")
    except ValueError:
        return value or "–"
    return f"{rounded:.4g}" if "." in str(value) else str(value)
