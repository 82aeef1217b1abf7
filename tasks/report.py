"""The report of stage evaluate: one HTML file with everything in it, to be read without a network."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from models.face.morphable import MorphableModel
from models.training.data import CropSet
from tasks import charts
from tasks.artifacts import Workspace, load_checkpoint, read_json, replace_file
from tasks.face_gallery import ERROR_LIMIT_MM, draw_gallery, draw_overviews
from tasks.identity_report import (
    DIFFERENCE_LIMIT_MM,
    draw_confidence,
    draw_identities,
    identity_table,
    identity_yaw_table,
)
from tasks.measure import Measured, Truth
from tasks.params import Params
from tasks.report_tables import (
    COLUMNS,
    CURVES,
    FINAL,
    POSE_COLUMNS,
    REGION_COLUMNS,
    TITLES,
    headlines,
    lesson_table,
    number,
    source_table,
    stage_table,
    tone_table,
    verdict,
    yaw_table,
    yaw_title,
)
from tasks.tracking import tracking_uri

FINAL_STAGE = "refusion"
"""Whose checkpoint holds the network of confidence, where there is one."""

LANDMARK_COLUMNS = ("nme68", "nme51", "nme68_box", "fr8", "fr10", "auc10")
"""Keys of landmarks.json in the table of the report."""

PART_CHARTS = {
    "scan_error_mm_median": ("scan error, median (mm)", 1.0),
    "vertex_error_mm": ("vertex error (mm)", 1.0),
    "landmark_nme": ("landmark NME (%)", 100.0),
    "pose_error_deg": ("pose error (°)", 1.0),
}

GAIN_CHARTS = {
    "vertex_error_mm": ("vertex error (mm)", 1.0),
    "scan_error_mm": ("scan error, median of a photo (mm)", 1.0),
    "landmark_nme": ("landmark NME (%)", 100.0),
    "similarity": ("similarity", 1.0),
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
    ablation: Mapping[str, Any],
    run_id: str,
) -> None:
    """Write report.html and pictures/*.png into the folder of the evaluation."""
    faces, images = draw_gallery(params, workspace, model, crops, truth, measured[FINAL])
    images |= draw_overviews(params, workspace, model, crops, measured[FINAL])
    checkpoint = load_checkpoint(workspace.folder(FINAL_STAGE) / "checkpoint.pt")
    people = {
        "identities": draw_identities(params, workspace, model, crops, measured[FINAL]),
        "confidence": draw_confidence(checkpoint, model, crops, measured[FINAL]),
    }
    images |= {name: picture for name, picture in people.items() if picture is not None}
    scans = {block: np.concatenate([np.zeros(0), *found.scan]) for block, found in measured.items()}
    drawn = {
        "error_distribution": charts.error_distribution(scans, TITLES),
        "gains": charts.gains(metrics, GAIN_CHARTS, TITLES),
        "by_yaw": charts.by_part(metrics, "by_yaw", PART_CHARTS, TITLES, yaw_title),
        "by_tone": charts.by_part(metrics, "by_tone", PART_CHARTS, TITLES, str),
    }
    drawn |= {f"curve_{stage}": charts.training_curves(workspace.folder(stage) / "curve.csv") for stage in CURVES}
    for name in ("landmarks_worst", "landmarks_accuracy"):
        shown = folder / "pictures" / f"{name}.png"
        drawn[name] = shown.read_bytes() if shown.exists() else None
    balance = workspace.folder("train_detector") / "balance.png"
    drawn["pose_balance"] = balance.read_bytes() if balance.exists() else None
    drawn["ablation"] = ablation.get("picture")
    images |= {name: content for name, content in drawn.items() if content is not None}
    content = render_report(
        {
            "model": model.name,
            "licence": model.licence,
            "face_model_hash": model.content_hash(),
            "source_sha256": model.source_sha256,
            "run": {"id": run_id, "uri": tracking_uri(params, workspace)},
            "verdict": verdict(metrics),
            "headlines": headlines(metrics),
            "stages": stage_table(metrics),
            "regions": stage_table(metrics, REGION_COLUMNS),
            "angles": stage_table(metrics, POSE_COLUMNS),
            "yaw": yaw_table(metrics),
            "tones": tone_table(metrics),
            "identity": identity_table(metrics),
            "identity_yaw": identity_yaw_table(metrics),
            "difference_limit_mm": DIFFERENCE_LIMIT_MM,
            "ablation": ablation,
            "lessons": lesson_table(params),
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


def read_ablation(workspace: Workspace, folder: Path | None) -> dict[str, Any]:
    """Table, sentence and picture of the ablation in a folder, by default in that of its stage; empty if it made none.

    Raises: ValueError naming the folder if one is named that holds no finished ablation.
    """
    path = (workspace.folder("ablation") if folder is None else workspace.resolve(folder)) / "ablation.json"
    if folder is None and not path.exists():
        return {}
    found, picture = _optional(path), path.with_suffix(".png")
    if not found.get("rows"):
        raise ValueError(f"evaluate.ablation: {path} holds no ablation; run `mien experiment ablation --out {folder}`")
    rows = []
    for row in found["rows"]:
        cells = []
        for key in found["columns"]:
            factor, decimals = next(((f, d) for name, _, _, f, d, _ in COLUMNS if name == key), (1.0, 3))
            values = row["numbers"].get(key) or {}
            cells.append(
                {
                    "text": number(values.get("mean"), factor, decimals),
                    "spread": number(values.get("deviation"), factor, decimals),
                }
            )
        against = (row.get("against_reference") or {}).get("vertex_error_mm") or {}
        ends = [against.get(name) for name in ("difference", "low", "high")]
        gap = "–" if None in ends else f"{ends[0]:+.2f} [{ends[1]:+.2f}, {ends[2]:+.2f}]"
        rows.append({"title": row["title"], "cells": cells, "gap": gap, "final": row["name"] == found["reference"]})
    return {
        "headings": list(found["columns"].values()),
        "rows": rows,
        "sentence": (found.get("headline") or {}).get("sentence", ""),
        "command": found.get("command", ""),
        "seeds": max(len(row.get("seeds", ())) for row in found["rows"]),
        "picture": picture.read_bytes() if picture.exists() else None,
    }


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
