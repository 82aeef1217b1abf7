"""Inputs of `validate_labels` that tests can spoil."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from tasks.artifacts import IMAGES, LANDMARKS, MESHES, SAMPLES, Workspace, write_table
from tasks.images import encode
from tasks.params import Params, parse_params

SIZE_PX = 96
CROP_PX = 64
DISTANCE_MM = 1162.0
"""From here a face of 190 mm fills 1 / 1.35 of the photo, so that the camera of its crop is that of the photo."""


def half_ellipsoid() -> MorphableModel:
    """Seventy points on half an ellipsoid of a face's size."""
    count = 70
    step = torch.arange(count) + 0.5
    height = 1 - 2 * step / count
    turn = step * math.pi * (3 - math.sqrt(5))
    round_ = (1 - height**2).sqrt()
    mean = torch.stack([70 * round_ * turn.cos(), 95 * height, 80 * (round_ * turn.sin()).abs()], 1)
    return MorphableModel(
        name="half ellipsoid",
        licence="",
        mean=mean,
        identity_basis=torch.zeros(1, count, 3),
        expression_basis=torch.zeros(0, count, 3),
        expression_names=(),
        albedo_mean=torch.full((count, 3), 0.5),
        albedo_basis=torch.zeros(0, count, 3),
        triangles=torch.tensor([[0, 1, 2]]),
        landmark_vertices=torch.arange(68),
        uv=torch.zeros(count, 2),
        parts=torch.zeros(count, dtype=torch.long),
    )


MODEL = half_ellipsoid()


def make_params(**limits: float) -> Params:
    training = {
        "init": "train_geometry",
        "steps": 1,
        "sources": [{"source": "photos", "share": 1.0, "losses": {"photo": 1.0}}],
    }
    sources = [{"kind": "synthetic", "name": "photos", "persons": 3}]
    return parse_params(
        {
            "project": {"crop_size_px": CROP_PX},
            "ingest": {"sources": sources, "shard_rows": 4},
            "validate_labels": limits,
            **{f"train_{stage}": training for stage in ("self_supervised", "supervised", "fused")},
        }
    )


class LabelData:
    """The inputs of the stage as rows that a test can spoil; `write` lays them into a workspace."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self.samples: list[dict[str, Any]] = []
        self.landmarks: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.meshes: list[dict[str, Any]] = []
        self.pixels: list[np.ndarray] = []
        for number in range(count):
            sample_id, shard = f"sample{number:02d}", f"images-{number // 3:05d}.parquet"
            yaw = 0.1 * (number % 5)
            points = face_points(yaw)
            self.pixels.append(generator.integers(0, 255, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8))
            self.images.append({"sample_id": sample_id, "image": encode(self.pixels[-1]), "shard": shard})
            self.samples.append(
                {
                    "sample_id": sample_id,
                    "source": "scans" if number % 2 else "photos",
                    "path": f"folder/{number}.png",
                    "person": f"photos/{number}",
                    "split": "train",
                    "labelled": bool(number % 2),
                    "mesh_id": f"mesh{number}" if number % 2 else None,
                    "width": SIZE_PX,
                    "height": SIZE_PX,
                    "shard": shard,
                    "landmarks": points.ravel() if number % 3 else None,
                    "rotation": np.array([0.0, yaw, 0.0]) if number % 2 else None,
                }
            )
            if number % 2:
                self.meshes.append(
                    {
                        "mesh_id": f"mesh{number}",
                        "person": f"photos/{number}",
                        "vertices": MODEL.mean.flatten().numpy().copy(),
                        "neutral": None,
                        "fit_error_mm": 0.25,
                        "coverage": 0.8,
                    }
                )
            self.landmarks.append(
                {
                    "sample_id": sample_id,
                    "landmarks": points.ravel(),
                    "confidence": np.full(68, 0.9),
                    "box": np.concatenate([points.min(0), points.max(0)]),
                    "face_score": 0.99,
                    "yaw_deg": math.degrees(yaw),
                    "pitch_deg": 0.0,
                    "roll_deg": 0.0,
                }
            )

    def mesh(self, number: int) -> dict[str, Any]:
        return next(mesh for mesh in self.meshes if mesh["mesh_id"] == f"mesh{number}")

    def write(self, root: Path) -> Workspace:
        workspace = Workspace(root)
        ingest, detect = workspace.folder("ingest"), workspace.folder("detect_landmarks")
        write_table(ingest / "samples.parquet", self.samples, SAMPLES)
        write_table(ingest / "meshes.parquet", self.meshes, MESHES)
        for shard in sorted({row["shard"] for row in self.images}):
            rows = [row for row in self.images if row["shard"] == shard]
            write_table(ingest / shard, [{name: row[name] for name in IMAGES.names} for row in rows], IMAGES)
        write_table(detect / "landmarks.parquet", self.landmarks, LANDMARKS)
        return workspace


def face_points(yaw: float) -> np.ndarray:
    rotation = rotation_from_angles(torch.tensor([yaw]), torch.zeros(1), torch.zeros(1))
    seen = to_camera_space(
        MODEL.landmarks(MODEL.mean[None]), rotation=rotation, translation=torch.tensor([[0, 0, DISTANCE_MM]])
    )
    return project(seen, crop_camera(1, SIZE_PX))[0].double().numpy()


@pytest.fixture(scope="session")
def small_face_model() -> MorphableModel:
    return MODEL


@pytest.fixture(scope="session")
def label_params() -> Callable[..., Params]:
    """Parameters with the given limits of `validate_labels`."""
    return make_params


@pytest.fixture(scope="session")
def label_data() -> Callable[[int], LabelData]:
    """As many photos as asked for, every second one with a mesh, and nothing wrong with any."""
    return LabelData


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with small networks of random weights, registered as champion; read-only."""
    from tasks.register import register
    from tests.tasks.trained_workspace import trained_workspace

    params, workspace = trained_workspace(tmp_path_factory.mktemp("registered"))
    register(params, workspace)
    return workspace
