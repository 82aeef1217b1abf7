"""A workspace as the training stages leave it, in seconds: small networks with random weights, and made-up metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.formats import save_face_model
from models.face.lighting import ambient_light
from models.landmarks.cascade import detector_content
from models.landmarks.hierarchical import HierarchicalNetwork
from models.reconstruction.reconstructor import Reconstructor, ReconstructorSettings, reconstructor_content
from models.rendering.render import render
from tasks.artifacts import CLEAN, Workspace, save_checkpoint, write_json, write_table
from tasks.params import Params, load_params
from tests.tiny_face import tiny_face

PHOTO_SIZE_PX = 150

METRICS = {
    "mean_face": {"scan_error_mm_median": 2.0, "landmark_nme": 0.08, "pose_error_deg": 6.0, "by_yaw": {}},
    "refusion": {"scan_error_mm_median": 1.5, "landmark_nme": 0.04, "pose_error_deg": 5.0, "by_yaw": {}},
}

PARAMS = """
project: {crop_size_px: 64}
face_model: {kind: npz, path: face.npz}
ingest: {sources: [{kind: synthetic, name: faces, persons: 2}]}
detect_landmarks: {detector: hierarchical, min_face_score: 0}
train_self_supervised: &training
  init: train_geometry
  steps: 1
  sources: [{source: faces, share: 1, losses: {photo: 1}}]
train_supervised: *training
train_fused: *training
"""


SMALL_NETWORK = ReconstructorSettings(
    crop_size_px=64,
    crop_scale=1.35,
    geometry_width=32,
    geometry_blocks=1,
    geometry_refinements=1,
    backbone="resnet-slim",
    width=8,
    features=32,
)


def trained_workspace(root: Path) -> tuple[Params, Workspace]:
    """Everything that register and reconstruct read; the detector takes anything for a face."""
    workspace = Workspace(root)
    (root / "params.yaml").write_text(PARAMS)
    model = tiny_face()
    save_face_model(model, root / "face.npz")
    torch.manual_seed(0)
    reconstructor = Reconstructor(model, SMALL_NETWORK)
    torch.nn.init.normal_(reconstructor.encoder.correction.weight, std=0.1)
    remembered = {"persons": ["ann"], "state": {"centers": torch.ones(1, 4)}}
    content = {**reconstructor_content(reconstructor), "persons": remembered}
    save_checkpoint(workspace.folder("refusion") / "checkpoint.pt", content)
    points = front_points()
    shape = (points - (points.min(0) + points.max(0)) / 2) / np.ptp(points, axis=0).max()
    mean = torch.from_numpy(shape / 1.25).flatten()
    network = HierarchicalNetwork(64, modes=(mean, 0.02 * torch.eye(len(mean))))
    content = detector_content(network, mean_shape=shape, sigma_scale=1.5)
    save_checkpoint(workspace.folder("train_detector") / "checkpoint.pt", content)
    write_json(workspace.folder("evaluate") / "metrics.json", METRICS)
    write_table(workspace.folder("validate_labels") / "clean.parquet", [_clean_row()], CLEAN)
    return load_params(workspace.params), workspace


def front_points(size_px: int = PHOTO_SIZE_PX) -> np.ndarray:
    """Landmarks (68, 2) of the face in `write_photo`."""
    _, points = _drawn(size_px)
    return points


def write_photo(path: Path, size_px: int = PHOTO_SIZE_PX) -> Path:
    """A photo of the tiny face, a little turned."""
    pixels, _ = _drawn(size_px)
    Image.fromarray(pixels).save(path)
    return path


def _drawn(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    model = tiny_face()
    camera = crop_camera(1, size_px)
    turn = rotation_from_angles(torch.tensor([0.2]), torch.zeros(1), torch.tensor([0.1]))
    seen = to_camera_space(model.mean[None], rotation=turn, translation=torch.tensor([[0.0, 0.0, 1300.0]]))
    drawn = render(seen, model.triangles, albedo=model.albedo_mean[None], lighting=ambient_light(1), camera=camera)
    noise = torch.rand(3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    image = torch.where(drawn.mask, drawn.image[0], 0.3 * noise)
    pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    return pixels, project(model.landmarks(seen), camera)[0].double().numpy()


def _clean_row() -> dict[str, Any]:
    return dict.fromkeys(CLEAN.names) | {"sample_id": "one", "split": "test"}
