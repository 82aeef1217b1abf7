"""Sorts detected faces into clean and quarantined rows, scores labels, cuts aligned crops, and stops a bad data set.

Every row of `detect_landmarks` ends in exactly one of `clean.parquet` and `quarantine.parquet`; the verdict on a row is
that of the Great Expectations suite in `tasks/expectations.py`. A photo with two rows loses both, because nobody knows
which is right; of a person or mesh in two splits, the rows outside the split where it is seen most often are refused.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.face.crop import apply_affine, crop_affine, warp_crop
from models.types import LANDMARK_COUNT
from tasks.artifacts import (
    CLEAN,
    CROPS,
    LANDMARKS,
    MESHES,
    QUARANTINE,
    SAMPLES,
    Workspace,
    read_table,
    replace_folder,
    write_json,
    write_table,
)
from tasks.data_docs import write_data_docs
from tasks.expectations import label_expectations
from tasks.face_model import load_face_model
from tasks.images import encode_png, image_batches
from tasks.label_table import build_label_table, list_matrix, manifest_rows, take_rows
from tasks.params import Params
from tasks.verdict import RowFailure, open_context, validate_table

STAGE = "validate_labels"
MAX_SHARD_BYTES = 64 * 2**20
READ_BATCH = 32
MESH_BATCH = 64
EXAMPLE_COLUMNS, EXAMPLE_ROWS, EXAMPLE_SIZE_PX = 8, 4, 192


class GateError(ValueError):
    """More rows failed than `validate_labels.max_failed_share` allows; the message says which and where to look."""


def validate_labels(params: Params, workspace: Workspace) -> None:
    """Read `ingest` and `detect_landmarks`, write `validate_labels`.

    Raises: GateError if too many rows fail; the earlier output stays, and the Data Docs, the quarantine and the summary
    of the failed run lie in `failed_folder(workspace)`.
    """
    landmarks = read_table(workspace.folder("detect_landmarks") / "landmarks.parquet", LANDMARKS)
    if not len(landmarks):
        raise ValueError(
            "landmarks.parquet: no rows, expected at least one face; look at detect_landmarks/quarantine.parquet"
        )
    samples = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES)
    table = build_label_table(
        params,
        face_model := load_face_model(params, workspace),
        landmarks=landmarks,
        samples=samples,
        meshes=_mesh_parts(workspace),
        stored=_stored_photos(workspace),
    )
    context = open_context()
    expectations = label_expectations(params, face_model.vertex_count)
    failures = validate_table(context, table, expectations, stage=STAGE, asset="detect_landmarks").failures
    summary = _summary(params, table, failures)
    examples = {failure.reason: failure.detail for failure in reversed(failures.values())}
    failed = failed_folder(workspace)
    if not summary["gate"]["passed"]:
        with replace_folder(failed) as folder:
            write_data_docs(context, folder / "data_docs", summary=summary, examples=examples)
            _write_quarantine(folder, table, failures)
            write_json(folder / "summary.json", summary)
        raise GateError(gate_message(summary, failed))

    with replace_folder(workspace.folder(STAGE)) as folder:
        write_data_docs(context, folder / "data_docs", summary=summary, examples=examples)
        _write_quarantine(folder, table, failures)
        write_json(folder / "summary.json", summary)
        clean = _clean_rows(params, table, failures, landmarks, samples)
        pq.write_table(clean, folder / "clean.parquet", compression="zstd")
        _write_crops(params, workspace, folder, clean)
    # What an earlier run failed of is settled.
    shutil.rmtree(failed, ignore_errors=True)


def failed_folder(workspace: Workspace) -> Path:
    """Where a run that was stopped by the gate leaves its Data Docs, quarantine and summary."""
    return workspace.root / ".mien" / "failed" / STAGE


def gate_message(summary: dict[str, Any], failed: Path) -> str:
    """One line: how many rows failed, how many may, mostly why, and where to look."""
    gate = summary["gate"]
    reasons = ", ".join(f"{reason} ({number})" for reason, number in list(summary["reasons"].items())[:3])
    found = f"{summary['failed_share']:.1%} of {summary['in']} rows failed"
    return (
        f"{STAGE}: {found}, expected at most {gate['max_failed_share']:.1%} (validate_labels.max_failed_share) and "
        f"a row left; mostly {reasons}; see {failed / 'data_docs' / 'index.html'} and {failed / 'quarantine.parquet'}"
    )


def _stored_photos(workspace: Workspace) -> Counter[str]:
    stored: Counter[str] = Counter()
    shards = sorted(workspace.folder("ingest").glob("images-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{workspace.folder('ingest')}/images-*.parquet: missing; run the stage ingest first")
    for shard in shards:
        stored.update(pq.read_table(shard, columns=["sample_id"])["sample_id"].to_pylist())
    return stored


def _mesh_parts(workspace: Workspace) -> Iterator[pa.Table]:
    path = workspace.folder("ingest") / "meshes.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; run the stage ingest first")
    with pq.ParquetFile(path) as file:
        if not file.schema_arrow.equals(MESHES):
            raise ValueError(f"{path}: columns {file.schema_arrow.names}, expected {MESHES.names}; run ingest again")
        for batch in file.iter_batches(batch_size=MESH_BATCH):
            yield pa.table(batch)


def _summary(params: Params, table: pd.DataFrame, failures: dict[int, RowFailure]) -> dict[str, Any]:
    good = ~table["row"].isin(list(failures))
    share = len(failures) / len(table)
    limit = params.validate_labels.max_failed_share
    reasons = Counter(failure.reason for failure in failures.values())

    def numbers(chosen: pd.Series) -> dict[str, Any]:
        quality = table.loc[chosen & good, "label_quality"].dropna()
        return {
            "in": int(chosen.sum()),
            "clean": int((chosen & good).sum()),
            "quarantined": int((chosen & ~good).sum()),
            "labelled": len(quality),
            "mean_label_quality": round(float(quality.mean()), 6) if len(quality) else None,
        }

    everything = pd.Series(True, index=table.index)
    sources = table["source"].fillna("unknown")
    return {
        **numbers(everything),
        "failed_share": round(share, 6),
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "gate": {"passed": share <= limit and len(failures) < len(table), "max_failed_share": limit},
        "sources": {name: numbers(sources == name) for name in sorted(sources.unique())},
    }


def _write_quarantine(folder: Path, table: pd.DataFrame, failures: dict[int, RowFailure]) -> None:
    known = table.set_index("row")[["source", "path", "sample_id"]].astype(object)
    known = known.where(known.notna(), None)
    rows = [
        {**known.loc[row].to_dict(), "reason": failures[row].reason, "detail": failures[row].detail}
        for row in sorted(failures)
    ]
    write_table(folder / "quarantine.parquet", rows, QUARANTINE)


def _clean_rows(
    params: Params, table: pd.DataFrame, failures: dict[int, RowFailure], landmarks: pa.Table, samples: pa.Table
) -> pa.Table:
    """The rows of `clean.parquet`, in the order of the manifest."""
    in_manifest = manifest_rows(landmarks, samples)
    rows = np.array([row for row in np.argsort(in_manifest, kind="stable") if row not in failures], dtype=np.int64)
    faces = take_rows(landmarks, rows).drop_columns(["sample_id"])
    columns = dict(zip(faces.column_names, faces.columns, strict=True))
    manifest = take_rows(samples, in_manifest[rows])
    columns |= {"annotation" if name == "landmarks" else name: manifest[name] for name in manifest.column_names}
    quality = table["label_quality"].to_numpy()[rows]
    columns["label_quality"] = pa.array(quality, pa.float32(), from_pandas=True)
    points = torch.from_numpy(list_matrix(faces["landmarks"], 2 * LANDMARK_COUNT)).view(-1, LANDMARK_COUNT, 2)
    affine = crop_affine(points, size_px=params.project.crop_size_px, scale=params.validate_labels.crop_scale)
    columns["affine"] = pa.array(list(affine.flatten(1).float().numpy()), pa.list_(pa.float32()))
    return pa.table([columns[field.name] for field in CLEAN], schema=CLEAN)


def _write_crops(params: Params, workspace: Workspace, folder: Path, clean: pa.Table) -> None:
    size_px = params.project.crop_size_px
    # Crops are cut with the numbers that later stages read back, which are those of 32 bits.
    affine = list_matrix(clean["affine"], 9).reshape(-1, 3, 3)
    place = {sample_id: row for row, sample_id in enumerate(clean["sample_id"].to_pylist())}
    sizes = np.stack([clean["width"].to_numpy(), clean["height"].to_numpy()], 1)
    shown = set(np.linspace(0, len(clean) - 1, EXAMPLE_COLUMNS * EXAMPLE_ROWS).astype(int).tolist())
    examples: dict[int, np.ndarray] = {}
    per_shard = min(params.ingest.shard_rows, max(1, MAX_SHARD_BYTES // (3 * size_px**2)))
    shard: list[dict[str, Any]] = []
    written = 0
    for sample_id, image in _photos(workspace, set(place)):
        row = place[sample_id]
        if image.shape[1::-1] != tuple(sizes[row]):
            raise ValueError(
                f"photo {sample_id}: {image.shape[1]} x {image.shape[0]} pixels, expected {sizes[row][0]} x "
                f"{sizes[row][1]} as in samples.parquet; run ingest again"
            )
        crop = warp_crop(image, affine[row], size_px)
        if row in shown:
            examples[row] = crop
        shard.append({"sample_id": sample_id, "crop": crop.tobytes()})
        if len(shard) == per_shard:
            write_table(folder / f"crops-{written:05d}.parquet", shard, CROPS)
            shard, written = [], written + 1
    if shard:
        write_table(folder / f"crops-{written:05d}.parquet", shard, CROPS)
    _write_examples(folder / "examples.png", clean, affine, examples)


def _photos(workspace: Workspace, sample_ids: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    for ids, images in image_batches(workspace, batch_size=READ_BATCH, sample_ids=sample_ids):
        yield from zip(ids, images, strict=True)


def _write_examples(path: Path, clean: pa.Table, affine: np.ndarray, examples: dict[int, np.ndarray]) -> None:
    """A sheet of crops, evenly drawn from the clean rows, with their landmarks: red is confidence 0, green 1."""
    sheet = np.full((EXAMPLE_ROWS * EXAMPLE_SIZE_PX, EXAMPLE_COLUMNS * EXAMPLE_SIZE_PX, 3), 255, dtype=np.uint8)
    points = list_matrix(clean["landmarks"], 2 * LANDMARK_COUNT).reshape(-1, LANDMARK_COUNT, 2)
    confidence = list_matrix(clean["confidence"], LANDMARK_COUNT)
    for number, row in enumerate(sorted(examples)):
        to_crop = torch.from_numpy(np.linalg.inv(affine[row])[None])
        zoom = EXAMPLE_SIZE_PX / examples[row].shape[0]
        tile = cv2.resize(examples[row], (EXAMPLE_SIZE_PX, EXAMPLE_SIZE_PX), interpolation=cv2.INTER_CUBIC)
        for (x, y), sure in zip(
            apply_affine(to_crop, torch.from_numpy(points[row][None]))[0].numpy() * zoom, confidence[row], strict=True
        ):
            # A sixteenth of a pixel is the finest that OpenCV draws; it counts pixel centres as whole numbers.
            centre = (round((x - 0.5) * 16), round((y - 0.5) * 16))
            cv2.circle(tile, centre, 44, (0, 0, 0), -1, cv2.LINE_AA, 4)
            cv2.circle(tile, centre, 28, (int(255 * (1 - sure)), int(255 * sure), 0), -1, cv2.LINE_AA, 4)
        top, left = (place * EXAMPLE_SIZE_PX for place in divmod(number, EXAMPLE_COLUMNS))
        sheet[top : top + EXAMPLE_SIZE_PX, left : left + EXAMPLE_SIZE_PX] = tile
    path.write_bytes(encode_png(sheet))
