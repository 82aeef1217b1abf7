from __future__ import annotations

import math

import pytest
import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.reconstruction.label_quality import label_quality, landmark_error


@pytest.fixture
def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([60.0, 70.0, 40.0])
    return (torch.rand(3, 68, 3, generator=generator) * 2 - 1) * spread


def seen(points: torch.Tensor, size_px: int) -> torch.Tensor:
    angles = torch.tensor([0.0, 0.5, -0.9])
    rotation = rotation_from_angles(angles, angles * 0.3, angles * 0.1)
    translation = torch.tensor([[0.0, 0.0, 1000.0], [5.0, -8.0, 1100.0], [-4.0, 3.0, 950.0]])
    return project(to_camera_space(points, rotation=rotation, translation=translation), crop_camera(3, size_px))


def test_quality_by_hand() -> None:
    quality = label_quality(
        torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0.0, 4.0, 2.0]), coverage=torch.tensor([1.0, 1.0, 0.8])
    )
    assert quality.tolist() == pytest.approx([1.0, math.exp(-2.0), 0.8 * math.exp(-1.0)], rel=1e-6)


def test_exact_label_has_no_landmark_error(points: torch.Tensor) -> None:
    error = landmark_error(points, seen(points, 224), confidence=torch.ones(3, 68), camera=crop_camera(3, 224))
    assert error.max() < 0.02


def test_error_is_the_weighted_rms_distance(points: torch.Tensor) -> None:
    """Only one point is off, and it hardly counts in the pose: (0.001 * 30²) / (67 + 0.001) under the root."""
    landmarks = seen(points, 224)
    landmarks[:, 5, 0] += 30.0
    confidence = torch.ones(3, 68)
    confidence[:, 5] = 0.001
    error = landmark_error(points, landmarks, confidence=confidence, camera=crop_camera(3, 224))
    assert error.tolist() == pytest.approx([math.sqrt(0.9 / 67.001)] * 3, rel=0.02)


def test_error_does_not_depend_on_the_size_of_the_crop(points: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    offset = torch.randn(3, 68, 2, generator=generator)
    confidence = torch.ones(3, 68)
    large = landmark_error(points, seen(points, 224) + offset, confidence=confidence, camera=crop_camera(3, 224))
    small = landmark_error(points, seen(points, 112) + offset / 2, confidence=confidence, camera=crop_camera(3, 112))
    assert small.tolist() == pytest.approx(large.tolist(), rel=1e-3)
    # Two coordinates of unit noise, less the six degrees of freedom of the pose.
    assert large.mean() == pytest.approx(math.sqrt(2 * (1 - 6 / 136)), rel=0.1)


def test_a_single_confident_point_leaves_a_finite_error(points: torch.Tensor) -> None:
    confidence = torch.zeros(3, 68)
    confidence[:, 30] = 1.0
    error = landmark_error(points, seen(points, 224), confidence=confidence, camera=crop_camera(3, 224))
    assert error.max() < 0.02


def test_without_confidence_there_is_no_quality(points: torch.Tensor) -> None:
    error = landmark_error(points, seen(points, 224), confidence=torch.zeros(3, 68), camera=crop_camera(3, 224))
    assert error.isinf().all()
    assert label_quality(torch.zeros(3), error, coverage=torch.ones(3)).tolist() == [0.0, 0.0, 0.0]
