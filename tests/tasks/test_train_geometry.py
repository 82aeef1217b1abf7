from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.face.formats import save_face_model
from models.face.morphable import MorphableModel
from models.reconstruction.reconstructor import load_reconstructor
from tasks import train_geometry as stage
from tasks.artifacts import Workspace, load_checkpoint
from tasks.train_geometry import reconstructor_settings, train_geometry
from tests.tiny_face import tiny_face
from tests.tiny_workspace import SIZE_PX, Recorder, tiny_params


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


@pytest.fixture
def workspace(face: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(stage, "track", Recorder().track)
    monkeypatch.setattr(stage, "VALIDATION_FACES", 128)
    monkeypatch.setattr(stage, "EXPRESSIONS", 64)
    save_face_model(face, tmp_path / "tiny.npz")
    return Workspace(tmp_path)


def write_noise(workspace: Workspace, *, variance: float = 1.0) -> None:
    folder = workspace.folder("train_detector")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "noise.npz",
        covariance=np.tile(variance * np.eye(136), (2, 1, 1)),
        bias=np.zeros((2, 136)),
        response=np.zeros((2, 136, 136)),
        sigma=np.full((2, 68), 0.004, np.float32),
        large=np.array([False, True]),
    )


def test_the_stage_learns_shape_and_leaves_its_checkpoint(workspace: Workspace, face: MorphableModel) -> None:
    write_noise(workspace)
    params = tiny_params(train_geometry={"steps": 60, "batch_size": 64, "learning_rate": 5e-3})
    train_geometry(params, workspace)
    folder = workspace.folder("train_geometry")
    assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "curve.csv", "metrics.json"}
    restored = load_reconstructor(load_checkpoint(folder / "checkpoint.pt"), face)
    assert restored.settings == reconstructor_settings(params)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 1.0 < metrics["mean_face_mm"] < 20.0
    assert metrics["shape_error_mm"] < 0.95 * metrics["mean_face_mm"]
    with (folder / "curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    reprojection = [
        float(row["value"]) for row in rows if (row["split"], row["name"]) == ("validation", "reprojection")
    ]
    assert reprojection[-1] < 0.3 * reprojection[0]
    assert {"shape", "expression", "rotation", "pose_error_deg"} <= {row["name"] for row in rows}
    # The head for sets of photos travels with the weights.
    assert restored.sets is not None
    assert metrics["set_error_mm"] < metrics["mean_face_mm"]
    assert restored.set_confidence(torch.rand(2, 68, 2), torch.rand(2, 68)).shape == (2, face.identity_size)


def test_sets_are_left_out_where_that_is_wanted(workspace: Workspace, face: MorphableModel) -> None:
    write_noise(workspace)
    train_geometry(tiny_params(train_geometry={"set_steps": 0}), workspace)
    folder = workspace.folder("train_geometry")
    assert load_reconstructor(load_checkpoint(folder / "checkpoint.pt"), face).sets is None
    assert "set_error_mm" not in json.loads((folder / "metrics.json").read_text())
    assert not (workspace.progress("train_geometry") / "state.pt").exists()


def test_without_the_detectors_noise_the_missing_stage_is_named(workspace: Workspace) -> None:
    with pytest.raises(FileNotFoundError, match=r"noise\.npz: missing; run the stage train_detector first"):
        train_geometry(tiny_params(), workspace)
    assert not workspace.folder("train_geometry").exists()


def test_noise_that_is_none_is_refused(workspace: Workspace) -> None:
    write_noise(workspace, variance=0.0)
    with pytest.raises(ValueError, match="not positive definite; run train_detector again"):
        train_geometry(tiny_params(), workspace)


def test_settings_come_from_their_sections() -> None:
    settings = reconstructor_settings(
        tiny_params(validate_labels={"crop_scale": 1.5}, train_geometry={"width": 40, "refinements": 3})
    )
    assert (settings.crop_size_px, settings.crop_scale) == (SIZE_PX, 1.5)
    assert (settings.geometry_width, settings.geometry_blocks, settings.geometry_refinements) == (40, 1, 3)
    assert (settings.backbone, settings.width, settings.features) == ("resnet-slim", 4, 16)
