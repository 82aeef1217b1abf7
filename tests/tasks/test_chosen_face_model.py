"""Faces by a face model that the workspace does not know, and packages that need no workspace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.face.formats import save_face_model
from models.landmarks.cascade import HierarchicalDetector
from models.reconstruction import load_package, read_photo, save_face
from tasks.artifacts import Workspace
from tasks.chosen_face_model import open_with_face_model
from tasks.export_package import export_package
from tasks.face_reader import open_checkpoint
from tasks.params import load_params
from tasks.reconstruct import reconstruct_photos
from tests.tasks.trained_workspace import front_points, trained_workspace, write_photo
from tests.tiny_face import tiny_face


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("trained")
    trained_workspace(root)
    return Workspace(root)


@pytest.fixture(scope="module")
def package(registered: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "model"
    files, difference = export_package(folder, workspace=registered)
    names = {"settings.json", "face_model.npz", "reconstructor.pt", "reconstructor.onnx", "landmarks.onnx"}
    assert {path.name for path in files} == names
    assert difference < 1e-4
    return folder


def table(path: Path) -> Path:
    header = ",".join(["file", *[f"{axis}{point}" for point in range(68) for axis in "xy"]])
    path.write_text("\n".join([header, ",".join(["face.png", *map(str, front_points().ravel())])]))
    return path


def test_a_face_model_alone_is_fitted(workspace: Workspace, tmp_path: Path) -> None:
    model = tiny_face()
    model.name = "another"
    save_face_model(model, tmp_path / "another.npz")
    report = reconstruct_photos(
        [write_photo(tmp_path / "face.png")],
        tmp_path / "out",
        workspace=workspace,
        landmarks=table(tmp_path / "points.csv"),
        face_model=tmp_path / "another.npz",
        outputs="json",
    )
    document = json.loads(report.files[0].read_text())
    assert document["face_model"]["name"] == "another"
    assert document["model"] == {"fitted": str(tmp_path / "another.npz"), "network": None}
    misses = np.array(document["landmarks"]["projected_px"]) - front_points()
    assert np.linalg.norm(misses, axis=1).mean() < 1.5


def test_a_checkpoint_of_another_face_model_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    model = tiny_face()
    model.mean += 1.0
    save_face_model(model, tmp_path / "moved.npz")
    params = load_params(workspace.params)
    with pytest.raises(ValueError, match="was trained with face model"):
        open_with_face_model(tmp_path / "moved.npz", params, workspace, workspace.folder("refusion"))


def test_a_package_says_what_the_workspace_says(registered: Workspace, package: Path, tmp_path: Path) -> None:
    reader = load_package(package)
    photo = read_photo(write_photo(tmp_path / "face.png"))
    (face,) = reader.read([photo], points=[front_points()])[0]
    own = open_checkpoint(registered.folder("refusion"), load_params(registered.params), registered)
    (expected,) = own.photos.read([photo], points=[front_points()])[0]
    assert torch.equal(face.coefficients.identity, expected.coefficients.identity)
    assert isinstance(reader.detector, HierarchicalDetector)
    save_face(face, tmp_path / "face.ply", reader.model)
    assert b"face model licence: CC0-1.0" in (tmp_path / "face.ply").read_bytes()


def test_packages_that_are_not_whole_are_named(registered: Workspace, package: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"settings\.json: no such file; make the folder with `mien export`"):
        load_package(tmp_path)
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        export_package(package, workspace=registered)
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(ValueError, match="not a picture"):
        read_photo(tmp_path / "text.jpg")
