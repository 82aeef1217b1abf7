from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch import Tensor

from models.face.camera import (
    FOCAL_PER_SIZE,
    NEAR_MM,
    angles_from_rotation,
    crop_camera,
    project,
    rotation_distance,
    rotation_from_angles,
    to_camera_space,
)
from models.types import Camera

turn = st.floats(-3.0, 3.0)
tilt = st.floats(-1.5, 1.5)


def angles(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Tensor:
    return rotation_from_angles(*torch.tensor([[yaw], [pitch], [roll]], dtype=torch.float64))


@given(yaw=turn, pitch=tilt, roll=turn)
def test_angles_come_back_from_the_rotation(yaw: float, pitch: float, roll: float) -> None:
    found = angles_from_rotation(angles(yaw, pitch, roll))
    torch.testing.assert_close(found, torch.tensor([[yaw, pitch, roll]]).double(), atol=2e-4, rtol=0)


@given(yaw=turn, pitch=tilt, roll=turn)
def test_rotations_are_proper(yaw: float, pitch: float, roll: float) -> None:
    matrix = axis_angle_to_rotation_matrix(angles(yaw, pitch, roll))
    torch.testing.assert_close(matrix @ matrix.transpose(1, 2), torch.eye(3).double()[None], atol=1e-5, rtol=0)
    assert torch.det(matrix).item() == pytest.approx(1.0, abs=1e-5)


def in_image(point: list[float], rotation: Tensor) -> Tensor:
    """Where a model point is seen, relative to the middle of the image; x right, y down."""
    camera = Camera(torch.tensor([1000.0]).double(), torch.zeros(1, 2).double(), (200, 200))
    seen = to_camera_space(
        torch.tensor([[point]]).double(), rotation=rotation, translation=torch.tensor([[0.0, 0.0, 1000.0]]).double()
    )
    return project(seen, camera)[0, 0]


NOSE, CROWN, LEFT_EAR = [0.0, 0.0, 100.0], [0.0, 100.0, 0.0], [70.0, 0.0, 0.0]


def test_a_face_without_rotation_looks_into_the_camera() -> None:
    torch.testing.assert_close(in_image(NOSE, angles()), torch.zeros(2).double())
    assert in_image(CROWN, angles())[1] < -90
    # The subject's left is the right of the image.
    assert in_image(LEFT_EAR, angles())[0] > 60


def test_positive_yaw_moves_the_nose_to_the_right() -> None:
    x, y = in_image(NOSE, angles(yaw=0.5))
    assert x > 40
    assert y == pytest.approx(0.0, abs=1e-9)


def test_positive_pitch_moves_the_nose_up() -> None:
    x, y = in_image(NOSE, angles(pitch=0.5))
    assert y < -40
    assert x == pytest.approx(0.0, abs=1e-9)


def test_positive_roll_turns_the_crown_clockwise() -> None:
    x, y = in_image(CROWN, angles(roll=0.5))
    assert x > 40
    assert y < -80


def test_projection_by_hand() -> None:
    camera = Camera(torch.tensor([1000.0]), torch.tensor([[50.0, 60.0]]), (100, 100))
    found = project(torch.tensor([[[10.0, -20.0, 500.0]]]), camera)
    assert found.flatten().tolist() == [70.0, 20.0]


def test_depth_is_clamped_to_the_near_plane() -> None:
    camera = Camera(torch.tensor([10.0]), torch.zeros(1, 2), (100, 100))
    found = project(torch.tensor([[[3.0, 4.0, -5.0]]]), camera)
    torch.testing.assert_close(found, torch.tensor([[[3.0, 4.0]]]) * 10.0 / NEAR_MM)


def test_the_camera_of_a_crop_scales_with_its_side() -> None:
    camera = crop_camera(3, 112)
    assert camera.focal_px.tolist() == [112 * FOCAL_PER_SIZE] * 3
    assert camera.principal_px.tolist() == [[56.0, 56.0]] * 3
    assert camera.size == (112, 112)


@pytest.mark.parametrize("degrees", [0.5, 30.0, 90.0, 170.0])
def test_distance_of_rotations_is_the_angle_between_them(degrees: float) -> None:
    start = angles(0.4, -0.3, 0.2)
    axis = torch.tensor([[1.0, 2.0, -2.0]]).double() / 3.0 * math.radians(degrees)
    from kornia.geometry.conversions import rotation_matrix_to_axis_angle

    end = rotation_matrix_to_axis_angle(axis_angle_to_rotation_matrix(axis) @ axis_angle_to_rotation_matrix(start))
    assert rotation_distance(start, end).rad2deg().item() == pytest.approx(degrees, abs=0.05)
    assert rotation_distance(end, start).rad2deg().item() == pytest.approx(degrees, abs=0.05)
