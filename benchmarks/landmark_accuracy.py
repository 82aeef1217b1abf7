"""Accuracy of a landmark detector on annotated photos: `python -m benchmarks.landmark_accuracy FOLDER --json FILE`.

FOLDER holds photos with `landmarks.csv` (file,x0,y0 … x67,y67; pixels, the first pixel's centre at 0.5) or `.pts` files
beside them (iBUG's: the first pixel's centre at 1; they go before the table), in folders below it too. An
`artifacts/ingest` folder serves as well (`--source NAME`: one of its sources); there the yaw is the true one where it
is known, and the splits are those that `ingest` drew: a detector of that workspace has not seen the test split.

Of all faces that the detector finds, the one counts whose points' box overlaps that of the annotated points most; a
face without a box that shares a tenth with its own is `missed`. All errors and rates are fractions, 0.05 is 5 %:

- `count`, `missed`, `refused`: faces measured; of them not found; photos whose file or annotation cannot be used;
- `nme68`, `nme51`, `median68`, `median51`: mean and median over found faces of the mean distance of the 68 points, and
  of the 51 without the contour, over the distance of the outer eye corners; `nme68_box`, `nme51_box`: over the square
  root of the area of the annotated points' box;
- `fr8`, `fr10`, `auc8`, `auc10`: failure rate at, and area under the cumulative curve up to, 8 and 10 % of the eyes'
  distance for 68 points, and the same with `_51` for the inner ones and with `_box` by box; missed faces are failures;
- `intervals`: 95 % of 1,000 resamples of the photos; `yaw_bins`: all numbers per bin of |yaw|;
- `reliability`, `calibration_error`: expected against observed error of the points, and their mean relative gap;
- `worst`: the names of the twelve worst photos; `convention`, `boxes`, `split`: what was evaluated.

Where people put points by hand, in .pts files, the detector is asked for its handmade points, if it knows them, and for
annotated ones elsewhere; `--convention` asks for one kind everywhere. With `--convention handmade` rendered photos have
their jaw on the visible outline; without one they are left out.

`--split test` takes every fourth photo by hash: the SHA-256 of its file name as a number modulo 4 is 0; `train` the
rest.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.landmark_evaluation.detectors import find_faces, open_detector
from benchmarks.landmark_evaluation.photos import AnnotatedSet, crop_around, open_photos
from models.landmarks.accuracy import (
    MeasuredFaces,
    accuracy_by_yaw,
    bootstrap_intervals,
    calibration_error,
    check_yaw_edges,
    face_errors,
    measure_accuracy,
    nearest_face,
    reliability_curve,
)
from models.landmarks.detector import LandmarkDetector
from tasks.artifacts import replace_file, without_nan, write_json
from tasks.images import ImageError
from tasks.landmark_pictures import worst_first, write_curves, write_sheet

BATCH = 16
YAW_EDGES_DEG = "0,15,30,45,60,90"
SEED = 0


class Convention(StrEnum):
    ANNOTATED, HANDMADE, MODEL = "annotated", "handmade", "model"


class Boxes(StrEnum):
    AUTO, FINDER, WINDOWS, OPENCV, TRUTH = "auto", "finder", "windows", "opencv", "truth"


class Split(StrEnum):
    ALL, TRAIN, VALIDATION, TEST = "all", "train", "validation", "test"


class Labels(StrEnum):
    ANY, PTS, CSV = "any", "pts", "csv"


class Runtime(StrEnum):
    AUTO, TORCH, ONNX = "auto", "torch", "onnx"


@dataclass(frozen=True)
class Evaluation:
    """What a detector found in every photo that could be read."""

    rows: list[int]
    """Of the annotated set."""
    faces: MeasuredFaces
    scores: list[float]
    """Of the matched faces, NaN where missed."""
    candidates: list[int]
    """Faces that the detector found in each photo."""
    unreadable: list[tuple[str, str]]


def evaluate(
    detector: LandmarkDetector,
    photos: AnnotatedSet,
    *,
    chosen_rows: Sequence[int] | None = None,
    from_truth: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Run the detector over all photos, or the chosen ones, in batches.

    `from_truth` shows it what surrounds the annotated face only.
    """
    rows: list[int] = []
    found, confidence, scores, candidates, unreadable = [], [], [], [], []
    wanted = list(range(len(photos.names))) if chosen_rows is None else list(chosen_rows)
    for start in track(range(0, len(wanted), BATCH), description="photos", disable=not progress):
        batch, images, corners = [], [], []
        for row in wanted[start : start + BATCH]:
            try:
                image = photos.read(row)
            except ImageError as error:
                unreadable.append((photos.names[row], str(error)))
                continue
            corner = np.zeros(2, np.float32)
            if from_truth:
                image, corner = crop_around(image, photos.points[row])
            batch.append(row)
            images.append(image)
            corners.append(corner)
        truth = [photos.points[row] - corner for row, corner in zip(batch, corners, strict=True)]
        for row, corner, annotated, faces in zip(
            batch,
            corners,
            truth,
            find_faces(detector, images, annotations=truth, one_each=from_truth),
            strict=True,
        ):
            chosen = nearest_face([face.landmarks for face in faces], annotated)
            rows.append(row)
            candidates.append(len(faces))
            found.append(np.full((68, 2), np.nan) if chosen is None else faces[chosen].landmarks + corner)
            confidence.append(np.full(68, np.nan) if chosen is None else faces[chosen].confidence)
            scores.append(math.nan if chosen is None else float(faces[chosen].face_score))
    faces = MeasuredFaces(
        photos.points[rows].astype(np.float64),
        np.array(found, np.float64).reshape(-1, 68, 2),
        np.array(confidence, np.float64).reshape(-1, 68),
        photos.yaw_deg[rows].astype(np.float64),
    )
    return Evaluation(rows, faces, scores, candidates, unreadable)


def join_evaluations(parts: Sequence[Evaluation]) -> Evaluation:
    """Parts of one annotated set, as if they had been evaluated at once."""
    rows = [row for part in parts for row in part.rows]
    order = np.argsort(rows, kind="stable").tolist()
    faces = [np.concatenate([getattr(part.faces, one.name) for part in parts])[order] for one in fields(MeasuredFaces)]
    scores, candidates = (
        [value for part in parts for value in getattr(part, name)] for name in ("scores", "candidates")
    )
    return Evaluation(
        [rows[place] for place in order],
        MeasuredFaces(*faces),
        [scores[place] for place in order],
        [candidates[place] for place in order],
        [one for part in parts for one in part.unreadable],
    )


def conventions_of(photos: AnnotatedSet, *, outlined: bool) -> dict[Convention, list[int]]:
    """Photos by where their points are, as far as the files tell and the detector knows the difference."""
    if photos.rendered:
        return {Convention.MODEL: list(range(len(photos.names)))}
    by_hand = photos.by_hand if outlined else frozenset[int]()
    found = {
        Convention.ANNOTATED: [row for row in range(len(photos.names)) if row not in by_hand],
        Convention.HANDMADE: sorted(by_hand),
    }
    return {convention: rows for convention, rows in found.items() if rows}


def report(evaluation: Evaluation, photos: AnnotatedSet, *, edges_deg: list[float]) -> dict[str, Any]:
    """Everything measured, as the module's heading says; what cannot be said is null."""
    faces = evaluation.faces
    reliability = reliability_curve(faces)
    intervals = bootstrap_intervals(faces, seed=SEED)
    return without_nan(
        {
            **asdict(measure_accuracy(faces)),
            "refused": len(photos.refused) + len(evaluation.unreadable),
            "intervals": {name: list(ends) for name, ends in intervals.items()},
            "yaw_bins": [
                {"low_deg": low, "high_deg": high, **asdict(accuracy)}
                for low, high, accuracy in accuracy_by_yaw(faces, edges_deg)
            ],
            "calibration_error": calibration_error(reliability),
            "reliability": [asdict(one) for one in reliability],
            "worst": [photos.names[evaluation.rows[row]] for row in worst_first(faces)],
        }
    )


def write_rows(path: Path, evaluation: Evaluation, photos: AnnotatedSet) -> None:
    """One line per photo as CSV; errors are empty where the face was missed."""
    errors = face_errors(evaluation.faces)
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            "file yaw_deg faces found nme68 nme51 nme68_box nme51_box score confidence".split()  # noqa: SIM905
        )
        for place, row in enumerate(evaluation.rows):
            numbers = [
                errors.eyes68[place],
                errors.eyes51[place],
                errors.box68[place],
                errors.box51[place],
                evaluation.scores[place],
                evaluation.faces.confidence[place].mean(),
            ]
            hit = bool(np.isfinite(numbers[0]))
            text = [f"{number:.6f}" if np.isfinite(number) else "" for number in numbers]
            writer.writerow(
                [photos.names[row], f"{photos.yaw_deg[row]:.1f}", evaluation.candidates[place], int(hit), *text]
            )


def table_of(result: dict[str, Any]) -> Table:
    table = Table(title="errors and rates in percent")
    names = ("count", "missed", "nme68", "nme51", "nme68_box", "fr8", "fr10", "fr10_box", "auc10", "auc10_box")
    for name in ("|yaw|", *names):
        table.add_column(name, justify="right", no_wrap=True)
    bins = [(f"{row['low_deg']:g}-{row['high_deg']:g}", row) for row in result["yaw_bins"] if row["count"]]
    for label, row in [("all", result), *bins]:
        cells = ["–" if row[name] is None else f"{100 * row[name]:.2f}" for name in names[2:]]
        table.add_row(label, str(row["count"]), str(row["missed"]), *cells)
    return table


def parse_edges(text: str) -> list[float]:
    """Raises: ValueError if the text is not a list of numbers that rise."""
    try:
        edges = [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--yaw-bins {text}: expected numbers with commas, e.g. {YAW_EDGES_DEG}") from None
    check_yaw_edges(edges)
    return edges


def main(
    folder: Annotated[Path, typer.Argument(help="photos with landmarks.csv or .pts files, or an ingest folder")],
    detector: Annotated[
        str,
        typer.Option(help="hierarchical, face_alignment, provided, or a path to a checkpoint or exported files"),
    ] = "hierarchical",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all numbers there; errors and rates are fractions")
    ] = None,
    rows: Annotated[Path | None, typer.Option(help="write a line per photo there, a CSV")] = None,
    sheet: Annotated[Path | None, typer.Option(help="draw the twelve worst photos, a PNG")] = None,
    curves: Annotated[Path | None, typer.Option(help="draw cumulative errors and reliability, a PNG")] = None,
    workspace: Annotated[Path, typer.Option(help="whose trained detector is meant")] = Path(),
    weights: Annotated[Path | None, typer.Option(help="checkpoint or exported files, instead of a workspace's")] = None,
    convention: Annotated[
        Convention | None,
        typer.Option(help="which points the detector gives; default: handmade for .pts files, annotated, or model"),
    ] = None,
    boxes: Annotated[
        Boxes, typer.Option(help="who finds faces: as the detector likes, or truth: it sees the annotated face only")
    ] = Boxes.AUTO,
    split: Annotated[
        Split | None, typer.Option(help="default: all, and test on an ingest folder; test is every K-th by hash")
    ] = None,
    every: Annotated[int, typer.Option(min=2, help="K of --split")] = 4,
    source: Annotated[str | None, typer.Option(help="of an ingest folder, only the photos of this source")] = None,
    labels: Annotated[
        Labels, typer.Option(help="take annotations from .pts files, from the table, or both")
    ] = Labels.ANY,
    yaw_bins: Annotated[str, typer.Option(help="edges of the bins of |yaw| in degrees")] = YAW_EDGES_DEG,
    runtime: Annotated[Runtime, typer.Option(help="auto runs exported files where there are some")] = Runtime.AUTO,
    min_face_score: Annotated[float, typer.Option(min=0.0, max=1.0, help="less is no face")] = 0.5,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="of torch or onnxruntime")] = 2,
) -> None:
    """Measure a landmark detector on annotated photos. Errors and rates are fractions: 0.05 is 5 %."""
    console = Console(width=120) if not Console().is_terminal else Console()
    torch.set_num_threads(threads)
    split = split or (Split.TEST if (folder / "samples.parquet").is_file() else Split.ALL)
    try:
        edges = parse_edges(yaw_bins)
        photos = open_photos(
            folder, split=split, every=every, labels=labels, source=source, handmade=convention is Convention.HANDMADE
        )
        opener = partial(
            open_detector,
            detector,
            workspace=workspace,
            weights=weights,
            runtime=runtime,
            boxes=boxes,
            min_face_score=min_face_score,
            device=device,
            threads=threads,
        )
        if convention is not None:
            opened = {convention: opener(convention=convention)}
            groups = {convention: list(range(len(photos.names)))}
        else:
            usual = opener(convention=Convention.MODEL if photos.rendered else Convention.ANNOTATED)
            groups = conventions_of(photos, outlined=getattr(usual, "outlined", False))
            opened = {one: opener(convention=one) if one is Convention.HANDMADE else usual for one in groups}
    except (FileNotFoundError, ValueError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None
    evaluation = join_evaluations(
        [
            evaluate(
                opened[one], photos, chosen_rows=rows_of, from_truth=boxes is Boxes.TRUTH, progress=console.is_terminal
            )
            for one, rows_of in groups.items()
        ]
    )
    if not evaluation.rows:
        console.print(f"{folder}: no photo could be read, e.g. {evaluation.unreadable[0]}", style="red", markup=False)
        raise typer.Exit(1)
    asked = {
        "folder": str(folder),
        "detector": detector,
        "convention": ", ".join(one.value for one in groups),
        "boxes": boxes.value,
        "split": split.value,
        "every": every,
        "labels": labels.value,
        "source": source,
    }
    result = {**asked, **report(evaluation, photos, edges_deg=edges)}
    for name, reason in [*photos.refused, *evaluation.unreadable][:10]:
        console.print(f"refused: {name}: {reason}", highlight=False, markup=False)
    if json_file:
        write_json(json_file, result)
    if rows:
        write_rows(rows, evaluation, photos)
    if sheet:
        names = [photos.names[row] for row in evaluation.rows]
        write_sheet(sheet, evaluation.faces, names, lambda place: photos.read(evaluation.rows[place]))
    if curves:
        write_curves(curves, evaluation.faces, reliability_curve(evaluation.faces))
    console.print(table_of(result))


if __name__ == "__main__":
    typer.run(main)
