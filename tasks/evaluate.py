"""Stage evaluate: every stage's model and the mean face on the frozen test split, in numbers, pictures and a report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.face.morphable import MorphableModel
from models.losses.coefficients import geometry_embedding
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor
from models.training.data import CropSet
from tasks.artifacts import Workspace, load_checkpoint, replace_folder, write_json, write_table
from tasks.dataset import load_crops
from tasks.face_model import load_face_model
from tasks.fan_out import Spread, serial
from tasks.held_out_landmarks import measure_held_out
from tasks.identity_report import identity_metrics, true_shapes
from tasks.measure import (
    MEASURES,
    Measured,
    Predict,
    Truth,
    compare,
    join_measured,
    measure_stage,
    person_tone_deg,
    prepare_truth,
    summarize,
    tone_groups,
    true_yaw_deg,
    yaw_bins,
)
from tasks.params import Params
from tasks.predictions import predict_geometry, predict_mean_face, predict_network, predict_optimised, predict_refined
from tasks.report import read_ablation, write_report
from tasks.report_tables import BASELINE, FINAL
from tasks.tracking import finite, track

BLOCKS = {
    "mean_face": None,
    "optimised": None,
    "geometry": "train_geometry",
    "self_supervised": "train_self_supervised",
    "supervised": "train_supervised",
    "fused": "train_fused",
    "refusion": "refusion",
    "refined": "refusion",
}
"""Blocks of `metrics.json` and the stage whose checkpoint each one measures; the first two need none, and the last goes
on from the network's answer photo by photo, as `mien reconstruct --refine` does."""

SAMPLE_MEASURES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("block", pa.string()),  # one of BLOCKS
        ("source", pa.string()),
        ("person", pa.int64()),  # a number within the test split
        ("yaw_deg", pa.float32()),
        ("tone_deg", pa.float32()),  # typology angle of the person's skin as the last stage sees it; high is light
        *[(name, pa.float32()) for name in MEASURES],  # null where the truth is unknown
    ]
)
"""`evaluate/samples.parquet`: one row per photo and block."""


@dataclass(frozen=True)
class Piece:
    """Some photos of the test split, to be measured with one block's predictions in any process."""

    params: str
    """As JSON, which can be told from others."""
    workspace: Workspace
    made: tuple[int, ...]
    """Dates of what is read, so that a process that goes on living reads it again when it changes."""
    block: str
    places: range


def evaluate(params: Params, workspace: Workspace, *, spread: Spread = serial) -> None:
    """Measure all stages on the test split; writes metrics.json, samples.parquet, pictures/ and report.html.

    The detector is measured, too, where it is not the sources' own annotation: landmarks.json.
    """
    torch.manual_seed(params.project.seed)
    made = _dates(workspace)
    content = params.model_dump_json()
    blocks = [block for block in BLOCKS if params.evaluate.refine_steps or block != "refined"]
    # All of them before the first is measured, so that a missing one is known at once.
    for block in blocks:
        stage = BLOCKS[block]
        if stage is not None:
            _load(workspace.folder(stage) / "checkpoint.pt", load_face_model(params, workspace))
    ablation = read_ablation(workspace, params.evaluate.ablation)
    model, crops, truth = _test_split(content, workspace, made)
    size = params.evaluate.batch_size
    pieces = [
        Piece(content, workspace, made, block, range(start, min(start + size, len(crops))))
        for block in blocks
        for start in range(0, len(crops), size)
    ]
    found: dict[str, list[Measured]] = {block: [] for block in blocks}
    for piece, part in zip(pieces, spread(measure_piece, pieces), strict=True):
        found[piece.block].append(part)
    measured = {block: join_measured(parts) for block, parts in found.items()}
    model.to("cpu")
    tone_deg = person_tone_deg(model, measured[FINAL].coefficients, crops.person.numpy())
    metrics = block_metrics(measured, crops, params.evaluate.yaw_bins_deg, tone_deg)
    add_identity(metrics, measured, model, crops, truth, params.evaluate.yaw_bins_deg)
    with track(params, workspace, "evaluate") as run, replace_folder(workspace.folder("evaluate")) as folder:
        write_json(folder / "metrics.json", metrics)
        write_table(folder / "samples.parquet", sample_rows(measured, crops, tone_deg), SAMPLE_MEASURES)
        (folder / "pictures").mkdir()
        landmarks = measure_held_out(params, workspace)
        if landmarks is not None:
            write_json(folder / "landmarks.json", landmarks.numbers(params.evaluate.yaw_bins_deg))
            landmarks.write_pictures(folder / "pictures")
        write_report(
            folder,
            params=params,
            workspace=workspace,
            model=model,
            crops=crops,
            truth=truth,
            metrics=metrics,
            measured=measured,
            ablation=ablation,
            run_id=run.run_id,
        )
        run.metrics(remembered(metrics))
        run.artifact(folder / "report.html")


def measure_piece(piece: Piece) -> Measured:
    """Measure the photos of a piece: one batch, so that its numbers do not depend on who computes it."""
    params = Params.model_validate_json(piece.params)
    model, crops, truth = _test_split(piece.params, piece.workspace, piece.made)
    return measure_stage(
        _shared_predictor(piece.params, piece.workspace, piece.made, piece.block),
        crops,
        model=model,
        truth=truth,
        batch_size=len(piece.places),
        device=_device(params),
        chosen=torch.tensor(piece.places),
    )


@lru_cache(maxsize=1)
def _test_split(
    content: str,
    workspace: Workspace,
    made: tuple[int, ...],  # noqa: ARG001
) -> tuple[MorphableModel, CropSet, Truth]:
    params = Params.model_validate_json(content)
    model = load_face_model(params, workspace)
    crops = load_crops(workspace, params, split="test")
    return model, crops, prepare_truth(model, crops)


@lru_cache(maxsize=2)
def _shared_predictor(content: str, workspace: Workspace, made: tuple[int, ...], block: str) -> Predict:
    params = Params.model_validate_json(content)
    model, _, _ = _test_split(content, workspace, made)
    return _predictor(
        block, BLOCKS[block], model, workspace, _device(params), refine_steps=params.evaluate.refine_steps
    )


def _dates(workspace: Workspace) -> tuple[int, ...]:
    paths = [workspace.folder("validate_labels") / "clean.parquet", workspace.folder("ingest") / "meshes.parquet"]
    paths += [workspace.folder(stage) / "checkpoint.pt" for stage in BLOCKS.values() if stage is not None]
    return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


def block_metrics(
    measured: dict[str, Measured], crops: CropSet, edges_deg: tuple[float, ...], tone_deg: np.ndarray
) -> dict[str, Any]:
    """One block per stage: numbers over all photos with their intervals, the same per part, and what the stage gains.

    `by_yaw` has bins of |yaw|, `by_tone` groups of the persons' skin tone (N,), `by_source` the sources;
    `versus_mean_face` holds differences to the mean face photo by photo.
    """
    persons = crops.person.numpy()
    everyone = np.ones(len(crops), dtype=bool)
    parts = {
        "by_yaw": yaw_bins(true_yaw_deg(crops), edges_deg),
        "by_tone": tone_groups(tone_deg),
        "by_source": {name: np.array(crops.source) == name for name in sorted(set(crops.source))},
    }
    return {
        block: {
            **summarize(found, persons, everyone),
            **{
                part: {name: summarize(found, persons, chosen) for name, chosen in groups.items()}
                for part, groups in parts.items()
            },
            "versus_mean_face": compare(found, measured[BASELINE], persons),
        }
        for block, found in measured.items()
    }


def add_identity(
    metrics: dict[str, Any],
    measured: dict[str, Measured],
    model: MorphableModel,
    crops: CropSet,
    truth: Truth,
    edges_deg: tuple[float, ...],
) -> None:
    """Beside each stage's errors: whether its faces tell persons apart."""
    embedding = geometry_embedding(model.identity_basis, model.mean)
    gallery = true_shapes(model, truth, crops)
    for block, found in measured.items():
        metrics[block]["identity"] = identity_metrics(
            found.coefficients.identity,
            embedding=embedding,
            person=crops.person.numpy(),
            yaw_deg=true_yaw_deg(crops),
            edges_deg=edges_deg,
            gallery=gallery,
        )


def remembered(metrics: dict[str, Any]) -> dict[str, float]:
    """What the run keeps of the metrics: no ends of intervals per part, which are thousands."""
    numbers = finite(metrics)
    return {
        name: value for name, value in numbers.items() if name.count(".") < 2 or not name.endswith(("_low", "_high"))
    }


def sample_rows(measured: dict[str, Measured], crops: CropSet, tone_deg: np.ndarray) -> dict[str, list[Any]]:
    """Columns of `samples.parquet`."""
    count = len(measured)
    rows: dict[str, list[Any]] = {
        "sample_id": list(crops.sample_ids) * count,
        "block": [block for block in measured for _ in range(len(crops))],
        "source": list(crops.source) * count,
        "person": crops.person.tolist() * count,
        "yaw_deg": true_yaw_deg(crops).tolist() * count,
        "tone_deg": tone_deg.tolist() * count,
    }
    for name in MEASURES:
        values = np.concatenate([found.values[name] for found in measured.values()])
        rows[name] = [float(value) if np.isfinite(value) else None for value in values]
    return rows


def _predictor(
    block: str,
    stage: str | None,
    model: MorphableModel,
    workspace: Workspace,
    device: torch.device,
    *,
    refine_steps: int,
) -> Predict:
    if stage is None:
        model.to(device)
        if block == "optimised":
            return lambda batch: predict_optimised(model, batch)
        return lambda batch: predict_mean_face(model, batch)
    reconstructor = _load(workspace.folder(stage) / "checkpoint.pt", model).to(device)
    if block == "geometry":
        return lambda batch: predict_geometry(reconstructor, batch)
    if block == "refined":
        return lambda batch: predict_refined(reconstructor, batch, steps=refine_steps)
    return lambda batch: predict_network(reconstructor, batch)


def _load(path: Path, model: MorphableModel) -> Reconstructor:
    try:
        return load_reconstructor(load_checkpoint(path), model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _device(params: Params) -> torch.device:
    wanted = params.project.device
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")
