"""What the photos are like that a model learned from, so that those that come later can be held against them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from models.metrics import similarity
from models.reconstruction.reconstructor import Reconstructor
from models.training.data import CropSet, make_batch
from tasks.artifacts import CLEAN, Workspace, read_table, write_table

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue (Rec. 601)."""

PROFILE = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        *[
            (name, pa.float32())
            for name in ("yaw_deg", "pitch_deg", "roll_deg", "brightness", "contrast", "face_share", "face_px")
        ],
        ("confidence", pa.float32()),
        ("similarity", pa.float32()),  # of the model's reconstruction to the photo; NaN where it was not measured
    ]
)
"""`profile.parquet`: one row per measured photo."""

KNOWN = pa.schema([("sample_id", pa.string())])
"""`known.parquet`: every photo that was there when the model was trained."""

PROFILE_FILE, KNOWN_FILE = "profile.parquet", "known.parquet"

PROFILED = 2000
"""So many photos stand for all that a model was trained on: their deciles are known to two percent."""

COMPARED = 300
"""For so many of them the model's own reconstruction is compared with the photo, which takes time."""

BATCH = 32


def write_profile(folder: Path, workspace: Workspace, reconstructor: Reconstructor) -> None:
    """Write `profile.parquet` and `known.parquet` of the photos that training saw."""
    table = clean_table(workspace)
    write_table(folder / KNOWN_FILE, {"sample_id": sorted(table["sample_id"].to_pylist())}, KNOWN)
    train = table.filter(pc.equal(table["split"], "train"))
    if not len(train):
        train = table
    chosen = choose(train, PROFILED)
    rows = measure_photos(workspace, chosen, reconstructor, compared=COMPARED)
    write_table(folder / PROFILE_FILE, rows, PROFILE)


def clean_table(workspace: Workspace) -> pa.Table:
    """The validated photos."""
    return read_table(workspace.folder("validate_labels") / "clean.parquet", CLEAN)


def choose(table: pa.Table, count: int) -> pa.Table:
    """So many rows by a hash of their sample: always the same ones, and none because of its place."""
    ranks = [hashlib.sha256(f"profile/{name}".encode()).digest() for name in table["sample_id"].to_pylist()]
    places = sorted(sorted(range(len(ranks)), key=ranks.__getitem__)[:count])
    return table.take(pa.array(places, pa.int64()))


def measure_photos(
    workspace: Workspace, table: pa.Table, reconstructor: Reconstructor | None, *, compared: int
) -> list[dict[str, Any]]:
    """Rows of `PROFILE` for rows of `clean.parquet`; similarity for the first so many of them by hash."""
    crops = _crops(workspace, set(table["sample_id"].to_pylist()))
    rows, pictures = [], []
    for row in table.to_pylist():
        crop = crops.get(row["sample_id"])
        if crop is None:
            continue
        luma = crop.astype(np.float32) @ LUMA / 255.0
        side = max(row["box"][2] - row["box"][0], row["box"][3] - row["box"][1])
        rows.append(
            {
                "sample_id": row["sample_id"],
                "source": row["source"],
                **{name: row[name] for name in ("yaw_deg", "pitch_deg", "roll_deg")},
                "brightness": float(luma.mean()),
                "contrast": float(luma.std()),
                "face_share": side / min(row["width"], row["height"]),
                "face_px": side,
                "confidence": float(np.mean(row["confidence"])),
                "similarity": float("nan"),
            }
        )
        pictures.append((row, crop))
    if reconstructor is not None and rows:
        few = set(
            choose(pa.table({"sample_id": [row["sample_id"] for row in rows]}), compared)["sample_id"].to_pylist()
        )
        places = [place for place, row in enumerate(rows) if row["sample_id"] in few]
        found = similarities(reconstructor, [pictures[place] for place in places])
        for place, value in zip(places, found, strict=True):
            rows[place]["similarity"] = value
    return rows


@torch.no_grad()
def similarities(reconstructor: Reconstructor, photos: Sequence[tuple[Mapping[str, Any], np.ndarray]]) -> list[float]:
    """How much the reconstruction of each crop resembles it, as in evaluate."""
    found: list[float] = []
    for start in range(0, len(photos), BATCH):
        crops = _crop_set(photos[start : start + BATCH])
        indices = torch.arange(len(crops))
        batch = make_batch(crops, indices, model=reconstructor.model, source="new", labelled=False)
        image = batch.image.contiguous(memory_format=torch.channels_last)
        coefficients = reconstructor(image, batch.landmarks, batch.confidence)
        drawn = reconstructor.reconstruct(coefficients, batch.camera, shade=True).rendering
        assert drawn is not None  # by shade=True
        found += similarity(batch.image, drawn.image, drawn.mask & batch.mask).tolist()
    return found


def _crops(workspace: Workspace, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Pixels (S, S, 3) of some samples."""
    return {
        name: pixels
        for shard in sorted(workspace.folder("validate_labels").glob("crops-*.parquet"))
        for name, pixels in _shard(shard, wanted)
    }


def _shard(shard: Path, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    for batch in pq.ParquetFile(shard).iter_batches(batch_size=256):
        for name, crop in zip(batch["sample_id"], batch["crop"], strict=True):
            if name.as_py() in wanted:
                pixels = np.frombuffer(crop.as_buffer(), dtype=np.uint8)
                side = round((len(pixels) / 3) ** 0.5)
                yield name.as_py(), pixels.reshape(side, side, 3)


def _crop_set(photos: Sequence[tuple[Mapping[str, Any], np.ndarray]]) -> CropSet:
    rows, count = [row for row, _ in photos], len(photos)
    affine = torch.tensor([row["affine"] for row in rows], dtype=torch.float32).view(-1, 3, 3)
    points = torch.tensor([row["landmarks"] for row in rows], dtype=torch.float32).view(-1, 68, 2)
    # The crop's frame is upright, so that its inverse is a shift and a scale.
    landmarks = (points - affine[:, None, :2, 2]) / torch.stack([affine[:, 0, 0], affine[:, 1, 1]], 1)[:, None]
    unknown = torch.full((count, 68, 2), torch.nan)
    return CropSet(
        sample_ids=tuple(row["sample_id"] for row in rows),
        source=tuple(row["source"] for row in rows),
        images=torch.from_numpy(np.stack([crop.transpose(2, 0, 1) for _, crop in photos])),
        landmarks=landmarks,
        confidence=torch.tensor([row["confidence"] for row in rows], dtype=torch.float32),
        annotation=unknown,
        person=torch.arange(count),
        affine=affine,
        photo_size=torch.tensor([[row["width"], row["height"]] for row in rows], dtype=torch.float32),
        rotation=torch.full((count, 3), torch.nan),
        yaw_deg=torch.tensor([row["yaw_deg"] for row in rows], dtype=torch.float32),
        quality=torch.full((count,), torch.nan),
        mesh_index=torch.full((count,), -1, dtype=torch.int64),
        vertices=torch.zeros(0, 1, 3),
        neutral=torch.zeros(0, 1, 3),
    )
