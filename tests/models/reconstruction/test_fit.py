from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from models.face.camera import crop_camera, project, rotation_distance, rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from models.reconstruction.fit import fit_pose
from models.types import Camera

ANGLES = torch.deg2rad(torch.tensor(list(itertools.product([-90.0, -60, -20, 0, 45, 90], [-30.0, 10], [-40.0, 15])))).T


def posed(face: MorphableModel, angles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Camera]:
    """Points, exact landmarks, rotation, translation and camera of one face in several poses."""
    count = angles.shape[1]
    rotation = rotation_from_angles(*angles)
    offsets = 30 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    translation = torch.tensor([0.0, 0.0, 950.0]) + offsets
    points = face.landmarks(face.mean.expand(count, -1, -1))
    camera = crop_camera(count, 112)
    return (
        points,
        project(to_camera_space(points, rotation=rotation, translation=translation), camera),
        rotation,
        translation,
        camera,
    )


def test_poses_up_to_profile_are_recovered(face: MorphableModel) -> None:
    points, landmarks, rotation, translation, camera = posed(face, ANGLES)
    found = fit_pose(points, landmarks, confidence=torch.ones(len(points), 68), camera=camera)
    assert rotation_distance(found[0], rotation).rad2deg().max() < 0.1
    torch.testing.assert_close(found[1], translation, atol=0.5, rtol=0)


def test_another_camera_is_respected(face: MorphableModel) -> None:
    points, _, rotation, translation, _ = posed(face, ANGLES)
    count = len(points)
    camera = Camera(torch.full((count,), 300.0), torch.tensor([[200.0, 90.0]]).expand(count, 2), (240, 320))
    near = translation - torch.tensor([0.0, 0.0, 400.0])
    landmarks = project(to_camera_space(points, rotation=rotation, translation=near), camera)
    found = fit_pose(points, landmarks, confidence=torch.ones(count, 68), camera=camera)
    assert rotation_distance(found[0], rotation).rad2deg().max() < 0.1
    torch.testing.assert_close(found[1], near, atol=0.5, rtol=0)


def test_points_without_confidence_do_not_count(face: MorphableModel) -> None:
    points, landmarks, rotation, _, camera = posed(face, ANGLES)
    confidence = torch.ones(len(points), 68)
    confidence[:, ::3] = 0.0
    landmarks = landmarks + 60 * (1 - confidence)[..., None]
    found, _ = fit_pose(points, landmarks, confidence=confidence, camera=camera)
    assert rotation_distance(found, rotation).rad2deg().max() < 0.1


@pytest.mark.parametrize("confident", [0, 1, 2])
def test_a_face_without_confident_points_does_not_spoil_the_batch(face: MorphableModel, confident: int) -> None:
    points, landmarks, rotation, _, camera = posed(face, ANGLES)
    confidence = torch.ones(len(points), 68)
    confidence[3, confident:] = 0.0
    found, translation = fit_pose(points, landmarks, confidence=confidence, camera=camera)
    others = torch.arange(len(points)) != 3
    assert rotation_distance(found, rotation)[others].rad2deg().max() < 0.1
    assert found.isfinite().all()
    assert translation.isfinite().all()


def test_the_fit_is_a_minimum(face: MorphableModel) -> None:
    points, landmarks, _, _, camera = posed(face, ANGLES)
    generator = torch.Generator().manual_seed(1)
    noisy = (landmarks + torch.randn(landmarks.shape, generator=generator)).double()
    points = points.double()
    camera = Camera(camera.focal_px.double(), camera.principal_px.double(), camera.size)
    confidence = torch.rand(len(points), 68, generator=generator, dtype=torch.float64)
    found = fit_pose(points, noisy, confidence=confidence, camera=camera)
    rotation, translation = (value.clone().requires_grad_() for value in found)
    pixels = project(to_camera_space(points, rotation=rotation, translation=translation), camera)
    energy = (confidence * (pixels - noisy).square().sum(2)).sum(1)
    energy.sum().backward()
    assert rotation.grad is not None
    assert translation.grad is not None
    # Against the slope of a start that is one degree or one millimetre off, which is in the thousands.
    assert rotation.grad.abs().max() < 1.0
    assert translation.grad.abs().max() < 0.1


@pytest.mark.parametrize("noise_px", [0.5])
def test_noise_turns_the_face_little(face: MorphableModel, noise_px: float) -> None:
    points, landmarks, rotation, _, camera = posed(face, ANGLES)
    noise = noise_px * torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(2))
    found, _ = fit_pose(points, landmarks + noise, confidence=torch.ones(len(points), 68), camera=camera)
    assert rotation_distance(found, rotation).max() < math.radians(3.0)
