"""The card of a registered model: its purpose, what it learned from, how well it does, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.face.morphable import MorphableModel
from tasks.params import Params
from tasks.promotion import number_at
from tasks.provenance import Provenance

COLUMNS = {
    "scan_error_mm_median": "to the scan, median mm",
    "landmark_nme": "landmarks, NME",
    "pose_error_deg": "pose, degrees",
    "similarity": "similarity",
}

ORIGINS = {
    "synthetic": "rendered from the face model: nobody's face",
    "rerendered": "scans rendered anew",
    "photos": "photographs",
    "scans": "photographs with scans",
}

PURPOSE = "From a photo of a face to its shape, expression, skin, light and pose."

GROUPS = {"by_yaw": "turned by {} degrees", "by_tone": "skin: {}", "by_source": "source: {}"}

LIMITS = """\
- Shape is measured against the scans or rendered faces of the test split. For people who differ from all of them in
  age, skin or features the error is unknown; look at the table of your own test split before you rely on a number.
- A single photo does not tell the depth of a face. What is hidden by hair, hands, glasses or the turn of the head is a
  guess of the face model.
- The coefficients describe a person. They are personal data where the photo is. This model was made to animate and to
  draw faces; it was neither made nor measured to recognise or watch people, or to judge health, mood or character.
- The face model's licence holds for every mesh and every vertex that comes out."""


def model_card(
    params: Params, model: MorphableModel, metrics: Mapping[str, Any], provenance: Provenance, *, block: str
) -> str:
    """Markdown; `block` is the part of `metrics` that describes this model."""
    stamp = model.stamp()
    lines = [
        f"# {params.register.model_name}",
        "",
        "From a photo of a face to its shape, expression, skin, light and pose.",
    ]
    lines += ["", "## What it consists of", "", "| | |", "|---|---|"]
    rows = {
        "face model": stamp["name"],
        "its licence": stamp.get("licence") or "not stated",
        "its content hash": stamp.get("hash", ""),
        "crop": f"{params.project.crop_size_px} x {params.project.crop_size_px} px",
        "landmarks": params.detect_landmarks.detector,
        "weights": provenance.weights[:16],
    }
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "## What it learned from", "", "| source | kind |", "|---|---|"]
    lines += [f"| {source.name} | {ORIGINS.get(source.kind, source.kind)} |" for source in params.ingest.sources]
    lines += ["", "## How well it does", "", *_table(metrics, block), "", "## Limits", "", LIMITS]
    lines += ["", "## Can it be made again?", ""]
    lines += [f"- {aspect}: {known.state}, {known.detail}" for aspect, known in provenance.known.items()]
    lines += ["", f"`mien registry reproduce VERSION --model {params.register.model_name}` tries.", ""]
    return "\n".join(lines)


def _table(metrics: Mapping[str, Any], block: str) -> list[str]:
    own = metrics.get(block) or {}
    groups: dict[str, Any] = {"mean face, for comparison": metrics.get("mean_face") or {}, "test split": own}
    for kind, heading in GROUPS.items():
        for name, values in (own.get(kind) or {}).items():
            groups[heading.format(name)] = values
    lines = ["| | photos | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * (1 + len(COLUMNS))]
    for name, values in groups.items():
        numbers = [number_at(values, key) for key in ("photos", *COLUMNS)]
        cells = ["–" if number is None else f"{number:.4g}" for number in numbers]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
