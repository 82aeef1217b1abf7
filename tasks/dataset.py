"""Reads the validated crops of a split back into tensors, or maps them into memory where they are many."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.face.crop import apply_affine
from models.training.data import CropSet
from models.types import LANDMARK_COUNT
from tasks.artifacts import CLEAN, MESHES, Workspace, read_table, replace_file
from tasks.params import Params


def load_crops(workspace: Workspace, params: Params, *, split: str, sources: Sequence[str] | None = None) -> CropSet:
    """Crops of a split (train, validation, test), of all sources or of those named.

    Raises: ValueError if nothing is left, or if the crops have another size than the params say.
    """
    table = read_table(workspace.folder("validate_labels") / "clean.parquet", CLEAN)
    keep = pa.compute.equal(table["split"], split)
    if sources is not None:
        keep = pa.compute.and_(keep, pa.compute.is_in(table["source"], pa.array(list(sources))))
    table = table.filter(keep)
    if not len(table):
        wanted = f" of {', '.join(sources)}" if sources is not None else ""
        raise ValueError(
            f"validate_labels/clean.parquet: no {split} samples{wanted}; add photos or change the shares in ingest"
        )
    sample_ids = table["sample_id"].to_pylist()
    affine = _column(table, "affine", 9).view(-1, 3, 3)
    to_crop = torch.linalg.inv(affine)
    landmarks = apply_affine(to_crop, _column(table, "landmarks", 2 * LANDMARK_COUNT).view(-1, LANDMARK_COUNT, 2))
    annotation = apply_affine(to_crop, _column(table, "annotation", 2 * LANDMARK_COUNT).view(-1, LANDMARK_COUNT, 2))
    persons = {name: place for place, name in enumerate(sorted(set(table["person"].to_pylist())))}
    mesh_index, vertices, neutral = _meshes(workspace, table["mesh_id"].to_pylist())
    return CropSet(
        sample_ids=tuple(sample_ids),
        source=tuple(table["source"].to_pylist()),
        images=_images(workspace, sample_ids, params),
        landmarks=landmarks,
        confidence=_column(table, "confidence", LANDMARK_COUNT),
        annotation=annotation,
        person=torch.tensor([persons[name] for name in table["person"].to_pylist()]),
        affine=affine,
        photo_size=torch.from_numpy(
            np.stack([table["width"].to_numpy(), table["height"].to_numpy()], 1).astype(np.float32)
        ),
        rotation=_column(table, "rotation", 3),
        yaw_deg=torch.from_numpy(table["yaw_deg"].to_numpy().astype(np.float32)),
        quality=torch.from_numpy(table["label_quality"].to_numpy().astype(np.float32)),
        mesh_index=mesh_index,
        vertices=vertices,
        neutral=neutral,
        person_names=tuple(persons),
    )


def _column(table: pa.Table, name: str, width: int) -> Tensor:
    """A list column as (N, width), NaN where null."""
    rows = np.full((len(table), width), np.nan, dtype=np.float32)
    for place, value in enumerate(table[name]):
        if value.is_valid:
            rows[place] = value.values.to_numpy()
    return torch.from_numpy(rows)


def _images(workspace: Workspace, sample_ids: list[str], params: Params) -> Tensor:
    """Crops as (N, 3, S, S) bytes; above `max_crops_in_memory` as a file of which only what is used is read.

    The file is made once for the same crops and lies outside the outputs. Those of other crops are removed.
    """
    shape = (len(sample_ids), 3, params.project.crop_size_px, params.project.crop_size_px)
    if len(sample_ids) <= params.project.max_crops_in_memory:
        images = np.zeros(shape, dtype=np.uint8)
        _fill(images, workspace, sample_ids)
        return torch.from_numpy(images)
    # A crop follows from its photo, whose hash is its sample's id, and from its row of the table.
    table = hashlib.sha256((workspace.folder("validate_labels") / "clean.parquet").read_bytes()).hexdigest()[:16]
    chosen = hashlib.sha256(repr((sample_ids, shape)).encode()).hexdigest()[:16]
    path = workspace.root / ".mien" / "crops" / f"{table}-{chosen}.bytes"
    if not path.exists():
        for old in path.parent.glob("*.bytes"):
            if not old.name.startswith(f"{table}-"):
                old.unlink(missing_ok=True)
        with replace_file(path) as temporary:
            mapped = np.memmap(temporary, dtype=np.uint8, mode="w+", shape=shape)
            _fill(mapped, workspace, sample_ids)
            mapped.flush()
    return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", shape=shape))


def _fill(images: np.ndarray, workspace: Workspace, sample_ids: list[str]) -> None:
    places = {sample_id: place for place, sample_id in enumerate(sample_ids)}
    size_px = images.shape[-1]
    found = 0
    for shard in sorted(workspace.folder("validate_labels").glob("crops-*.parquet")):
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=256):
            for sample_id, crop in zip(batch["sample_id"], batch["crop"], strict=True):
                place = places.get(sample_id.as_py())
                if place is None:
                    continue
                pixels = np.frombuffer(crop.as_buffer(), dtype=np.uint8)
                if pixels.size != images[0].size:
                    raise ValueError(
                        f"{shard.name}: crops of {pixels.size} bytes, expected {images[0].size} for {size_px} px; "
                        "run validate_labels again"
                    )
                images[place] = pixels.reshape(size_px, size_px, 3).transpose(2, 0, 1)
                found += 1
    if found != len(sample_ids):
        raise ValueError(f"validate_labels: {found} crops for {len(sample_ids)} rows; run validate_labels again")


def _meshes(workspace: Workspace, mesh_ids: list[str | None]) -> tuple[Tensor, Tensor, Tensor]:
    table = read_table(workspace.folder("ingest") / "meshes.parquet", MESHES)
    wanted = {name for name in mesh_ids if name is not None}
    table = table.filter(pa.compute.is_in(table["mesh_id"], pa.array(sorted(wanted), type=pa.string())))
    places = {name: place for place, name in enumerate(table["mesh_id"].to_pylist())}
    missing = wanted - places.keys()
    if missing:
        raise ValueError(f"ingest/meshes.parquet: mesh {min(missing)} is missing; run ingest again")
    width = len(table["vertices"][0].values) if len(table) else 3
    vertices = _column(table, "vertices", width).view(len(table), width // 3, 3)
    neutral = _column(table, "neutral", width).view(len(table), width // 3, 3)
    index = torch.tensor([-1 if name is None else places[name] for name in mesh_ids])
    return index, vertices, neutral
