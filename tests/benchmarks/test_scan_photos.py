"""The benchmark of photos against a scan: what it reads, and that it measures what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from benchmarks.scan_photos import Measurement, read_scan
from models.face.procedural import procedural_face


def test_a_scan_of_the_face_itself_has_no_error() -> None:
    model = procedural_face(identity_modes=4)
    identity = torch.tensor([[1.5, -1.0, 0.5, 1.0]])
    mesh = model.vertices(identity)
    points = mesh[0].double().numpy() + np.array([5.0, -3.0, 20.0])
    landmarks = model.landmarks(mesh)[0].double().numpy() + np.array([5.0, -3.0, 20.0])
    measurement = Measurement(model, points, landmarks)
    expression = torch.zeros(1, model.expression_size)
    exact, mean = measurement.of(identity, expression), measurement.of(torch.zeros(1, 4), expression)
    assert exact["median_mm"] < 0.01
    assert exact["expressive_scaled_mean_mm"] < 0.01
    assert mean["median_mm"] > 0.3


def test_a_folder_is_read_and_a_missing_mesh_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "ada"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"ada: expected ada\.obj or \.ply and view_\*\.jpg"):
        read_scan(folder)
    trimesh.Trimesh([[0, 0, 0], [9, 0, 0], [0, 9, 0]], [[0, 1, 2]], process=False).export(folder / "ada.obj")
    Image.new("RGB", (8, 8)).save(folder / "view_left.jpg")
    points = np.arange(204.0).reshape(68, 3)
    lines = ["x,y,z", *[",".join(map(str, row)) for row in points]]
    (folder / "ada.landmarks.csv").write_text("\n".join(lines))
    vertices, landmarks, photos = read_scan(folder)
    assert vertices.shape == (3, 3)
    np.testing.assert_array_equal(landmarks, points)
    assert [path.name for path in photos] == ["view_left.jpg"]
