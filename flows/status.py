"""What `mien status` and `mien model info` say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

HEADLINES = {
    "scan_error_mm_median": "scan error\nmedian mm",
    "vertex_error_mm": "vertices\nmm",
    "normal_error_deg": "normals\ndeg",
    "landmark_nme": "landmarks\nNME",
    "pose_error_deg": "pose\ndeg",
    "similarity": "simi-\nlarity",
}
"""Metrics of the evaluation that fit on a screen, with their headings."""


def stage_states(workspace: Path) -> dict[str, dict[str, Any]]:
    """For every stage whether it is up to date, stale or not made yet, and because of what."""
    from dvc.repo import Repo

    from flows.pipeline import stage_order

    with Repo(str(workspace)) as repo:
        stale = repo.status()
    states: dict[str, dict[str, Any]] = {}
    for name in stage_order(workspace):
        causes = _causes(stale.get(name, []))
        if (workspace / "artifacts" / name).is_dir():
            states[name] = {"state": "stale" if causes else "up to date", "because_of": causes}
        else:
            states[name] = {"state": "not made yet", "because_of": []}
    return states


def up_to_date(workspace: Path, stages: Sequence[str] = ()) -> bool:
    """Whether these stages (none: all) and what comes before them have nothing to do; False where DVC cannot say."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    # A bare name would be looked for where we stand.
    targets = [f"{workspace.resolve() / 'dvc.yaml'}:{stage}" for stage in stages]
    try:
        with Repo(str(workspace)) as repo:
            return not repo.status(targets=targets or None, with_deps=bool(targets))
    except DvcException:
        return False


def last_evaluation(workspace: Path) -> dict[str, Any] | None:
    """What the last evaluation measured; None before the first."""
    metrics = workspace / "artifacts" / "evaluate" / "metrics.json"
    return json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else None


def show_status(workspace: Path) -> None:
    """Print for every stage whether it is up to date, then the last evaluation."""
    console = Console()
    table = Table("stage", "state", "because of")
    for name, row in stage_states(workspace).items():
        table.add_row(name, row["state"], ", ".join(row["because_of"]))
    console.print(table)
    metrics = last_evaluation(workspace)
    if metrics is not None:
        console.print(_evaluation(metrics))


def _causes(entries: list[object]) -> list[str]:
    named: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            named.append(entry)
        elif isinstance(entry, dict):
            for kind, things in entry.items():
                if isinstance(things, dict):
                    named += [str(thing) for thing, what in things.items() if what != "new" or kind != "changed outs"]
    return named[:4] + (["…"] if len(named) > 4 else [])


def _evaluation(metrics: dict[str, object]) -> Table:
    table = Table("test split", *HEADLINES.values())
    for name, values in metrics.items():
        if isinstance(values, dict) and any(key in values for key in HEADLINES):
            found = [values.get(key) for key in HEADLINES]
            table.add_row(name, *(f"{value:.3f}" if isinstance(value, (int, float)) else "–" for value in found))
    return table


def model_rows(workspace: Path) -> list[tuple[str, str]]:
    """What the face model of a workspace consists of, as labels and values."""
    from tasks.artifacts import Workspace
    from tasks.convert import describe_face_model, with_notes
    from tasks.face_model import load_face_model
    from tasks.params import load_params

    place = Workspace(workspace)
    params = load_params(place.params)
    model, notes = with_notes(lambda: load_face_model(params, place))
    return [("kind", params.face_model.kind), *notes, *describe_face_model(model)]


def show_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print labels and values as a table."""
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    # Names and hashes are longer than the screen is wide, and none of their letters may be lost.
    table.add_column(overflow="fold")
    for label, value in rows:
        # What stands in a model's file is shown as it is, without the console's markup.
        table.add_row(label, Text(value))
    Console().print(table)
