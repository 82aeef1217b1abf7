"""Angles of heads from their points."""

from __future__ import annotations

import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.landmarks.head_pose import head_angles


def test_angles_of_a_projected_face() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(68, 3, generator=generator) * torch.tensor([50.0, 60.0, 25.0])
    angles = torch.tensor([[20.0, -10.0, 5.0], [-60.0, 15.0, -20.0], [0.0, 0.0, 0.0]])
    rotation = rotation_from_angles(*torch.deg2rad(angles).unbind(1))
    seen = to_camera_space(
        points.expand(3, -1, -1), rotation=rotation, translation=torch.tensor([0.0, 0.0, 1400.0]).expand(3, 3)
    )
    # A photo is not a crop: its own scale and offset must not matter.
    landmarks = project(seen, crop_camera(3, 160)) * 2.0 + 17.0
    found = head_angles(landmarks, confidence=torch.ones(3, 68), mean_points=points)
    assert float((found - angles).abs().max()) < 2.0


def test_no_faces() -> None:
    found = head_angles(torch.zeros(0, 68, 2), confidence=torch.zeros(0, 68), mean_points=torch.zeros(68, 3))
    assert found.shape == (0, 3)
