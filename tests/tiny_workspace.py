"""A workspace as the stages before training leave it, small enough for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from models.face.formats import save_face_model
from models.face.morphable import MorphableModel
from models.reconstruction.reconstructor import Reconstructor, reconstructor_content
from tasks.artifacts import CLEAN, CROPS, MESHES, Workspace, read_table, save_checkpoint, write_table
from tasks.params import Params, parse_params
from tasks.train_geometry import reconstructor_settings
from tests.tiny_face import tiny_crops

SIZE_PX = 32
UNLABELLED = {"photo": 1.92, "landmark": 1.6e-3, "identity_anchor": 0.1, "light_prior": 1.0}
PERSONAL = {"separation": 0.2, "distance_separation": 0.05, "center": 0.01, "distribution": 0.1}
LABELLED = {"vertex": 0.05, "normal": 1.0, "photo_on_scan": 1.92, "landmark_on_scan": 1.6e-3}


def tiny_params(**sections: Mapping[str, Any]) -> Params:
    """Parameters of a network of a few thousand weights; keyword arguments are merged into the sections."""
    training = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "validate_every": 3, "patience": 9}
    data: dict[str, dict[str, Any]] = {
        "project": {"crop_size_px": SIZE_PX, "precision": "32-true", "device": "cpu"},
        "face_model": {"kind": "npz", "path": "tiny.npz"},
        "encoder": {"width": 4, "features": 16},
        "ingest": {
            "sources": [
                {"kind": "synthetic", "name": "photos", "persons": 4},
                {"kind": "synthetic", "name": "scans", "persons": 4, "labelled": True},
            ]
        },
        "train_geometry": {"steps": 12, "batch_size": 16, "width": 24, "blocks": 1, "refinements": 1, "set_steps": 2},
        "train_self_supervised": {
            "init": "train_geometry",
            **training,
            "sources": [{"source": "photos", "share": 1.0, "losses": UNLABELLED}],
        },
        "train_supervised": {
            "init": "train_self_supervised",
            **training,
            "freeze_batch_norm": True,
            "sources": [{"source": "scans", "share": 1.0, "losses": LABELLED}],
        },
        "train_fused": {
            "init": "train_self_supervised",
            **training,
            "sources": [
                {"source": "photos", "share": 0.75, "losses": UNLABELLED},
                {"source": "scans", "share": 0.25, "losses": LABELLED},
            ],
        },
        "refusion": {"steps": 2, "max_rounds": 2, "min_gain": 0.0},
    }
    for name, changes in sections.items():
        data.setdefault(name, {}).update(changes)
    return parse_params(data)


def clean_rows(face: MorphableModel, count: int = 24) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[bytes]]:
    """Rows of clean.parquet, rows of meshes.parquet and raw crops; the last quarter is the validation split."""
    crops = tiny_crops(face, count, size_px=SIZE_PX)
    rows, meshes = [], []
    for place in range(count):
        labelled = crops.source[place] == "scans"
        # Every photo lies at twice the size of its crop, 100 px to the right of the corner.
        photo = 2 * crops.landmarks[place] + torch.tensor([100.0, 0.0])
        points = photo.flatten().tolist()
        mesh = int(crops.mesh_index[place])
        rows.append(
            {
                "sample_id": crops.sample_ids[place],
                "source": crops.source[place],
                "path": "",
                "person": f"person-{int(crops.person[place])}",
                "split": "train" if place < count * 3 // 4 else "validation",
                "labelled": labelled,
                "mesh_id": f"mesh-{place}" if labelled else None,
                "width": 400,
                "height": 2 * SIZE_PX,
                "shard": "images-00000.parquet",
                "rotation": crops.rotation[place].tolist() if labelled else None,
                "annotation": points if labelled else None,
                "landmarks": points,
                "confidence": [1.0] * 68,
                "box": [0.0, 0.0, 1.0, 1.0],
                "face_score": 1.0,
                "yaw_deg": float(crops.yaw_deg[place]),
                "pitch_deg": 0.0,
                "roll_deg": 0.0,
                "label_quality": 0.5 if labelled else None,
                "affine": [2.0, 0.0, 100.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0],
            }
        )
        if labelled:
            meshes.append(
                {
                    "mesh_id": f"mesh-{place}",
                    "person": f"person-{int(crops.person[place])}",
                    "vertices": crops.vertices[mesh].flatten().tolist(),
                    "neutral": crops.neutral[mesh].flatten().tolist(),
                    "fit_error_mm": 0.0,
                    "coverage": 1.0,
                }
            )
    return rows, meshes, [crop.permute(1, 2, 0).numpy().tobytes() for crop in crops.images]


def write_clean(
    workspace: Workspace, rows: list[dict[str, Any]], meshes: list[dict[str, Any]], crops: list[bytes]
) -> None:
    """The tables, with the crops in two shards and in another order than the rows."""
    labels = workspace.folder("validate_labels")
    write_table(labels / "clean.parquet", rows, CLEAN)
    write_table(workspace.folder("ingest") / "meshes.parquet", meshes, MESHES)
    stored = [{"sample_id": row["sample_id"], "crop": crop} for row, crop in zip(rows, crops, strict=True)]
    write_table(labels / "crops-00000.parquet", stored[::-2], CROPS)
    write_table(labels / "crops-00001.parquet", stored[-2::-2], CROPS)


def tiny_workspace(root: Path, face: MorphableModel) -> Workspace:
    """Crops, meshes, face model and an untrained checkpoint of train_geometry."""
    workspace = Workspace(root)
    save_face_model(face, root / "tiny.npz")
    write_clean(workspace, *clean_rows(face))
    torch.manual_seed(1)
    content = reconstructor_content(Reconstructor(face, reconstructor_settings(tiny_params())))
    save_checkpoint(workspace.folder("train_geometry") / "checkpoint.pt", content)
    return workspace


def with_persons(workspace: Workspace) -> Workspace:
    """Let four crops in a row show one person: two photos and two scans."""
    path = workspace.folder("validate_labels") / "clean.parquet"
    rows = read_table(path, CLEAN).to_pylist()
    for place, row in enumerate(rows):
        row["person"] = f"person-{place // 4}"
    write_table(path, rows, CLEAN)
    return workspace


def personal_sources(**options: Any) -> list[dict[str, Any]]:
    """Sources of stage 3 with losses of persons on photos."""
    return [
        {"source": "photos", "share": 0.75, "losses": {**UNLABELLED, **PERSONAL}, "photos_per_person": 2, **options},
        {"source": "scans", "share": 0.25, "losses": LABELLED},
    ]


def split_off_test(workspace: Workspace) -> Workspace:
    """Make half of the validation split the test split."""
    path = workspace.folder("validate_labels") / "clean.parquet"
    rows = read_table(path, CLEAN).to_pylist()
    for row in rows[-3:]:
        row["split"] = "test"
    write_table(path, rows, CLEAN)
    return workspace


class Recorder:
    """Stands in for the MLflow run of a stage, which has tests of its own."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def metrics(self, values: Mapping[str, Any], *, step: int = 0) -> None:
        self.calls.append(("metrics", dict(values)))

    def curve(self, rows: Any) -> None:
        self.calls.append(("curve", list(rows)))

    def tags(self, values: Mapping[str, str]) -> None:
        self.calls.append(("tags", dict(values)))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.calls.append(("artifact", path.name))

    @contextmanager
    def child(self, name: str) -> Iterator[Recorder]:
        self.calls.append(("child", name))
        yield self

    @contextmanager
    def track(self, params: Params, workspace: Workspace, stage: str) -> Iterator[Recorder]:
        yield self
