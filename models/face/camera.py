"""From model space to pixels, and the camera of a crop.

Convention: a rotation of zero faces the camera. Model space (x left of subject, y up, z out of the face) maps to camera
space (x right, y down, z forward) by the half turn about x: x_cam = diag(1, -1, -1) R(rotation) x_model + translation.
Yaw is positive when the subject turns to their own left (the nose moves to the right in the image), pitch when they
look up, roll when the head tilts clockwise in the image.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from kornia.geometry.conversions import axis_angle_to_rotation_matrix, rotation_matrix_to_axis_angle
from torch import Tensor

from models.types import Camera

FOCAL_PER_SIZE = 1015.0 / 224.0
"""Focal length of a crop as a multiple of its side: 12.6° field of view. Source: Deng et al. 2019, as in their code."""

CAMERA_DISTANCE_MM = 1000.0
"""A face that fills a crop stands about this far away; the encoder predicts translation relative to it."""

NEAR_MM = 10.0


def crop_camera(count: int, size_px: int, *, device: torch.device | str = "cpu") -> Camera:
    """The fixed camera that every aligned square crop is taken to be seen by."""
    return Camera(
        focal_px=torch.full((count,), FOCAL_PER_SIZE * size_px, device=device),
        principal_px=torch.full((count, 2), size_px / 2.0, device=device),
        size=(size_px, size_px),
    )


def to_camera_space(
    vertices: Float[Tensor, "B V 3"], *, rotation: Float[Tensor, "B 3"], translation: Float[Tensor, "B 3"]
) -> Float[Tensor, "B V 3"]:
    """Rotate points about the model's origin, turn to camera axes, translate."""
    half_turn = vertices.new_tensor([1.0, -1.0, -1.0])
    rotated = vertices @ axis_angle_to_rotation_matrix(rotation).transpose(1, 2)
    return rotated * half_turn + translation[:, None]


def project(points: Float[Tensor, "B V 3"], camera: Camera) -> Float[Tensor, "B V 2"]:
    """Pinhole projection of camera-space points to pixels; depth is clamped to the near plane."""
    depth = points[..., 2:].clamp_min(NEAR_MM)
    return points[..., :2] / depth * camera.focal_px[:, None, None] + camera.principal_px[:, None]


def rotation_from_angles(
    yaw: Float[Tensor, "B"], pitch: Float[Tensor, "B"], roll: Float[Tensor, "B"]
) -> Float[Tensor, "B 3"]:
    """Axis-angle of Rz(-roll) Rx(-pitch) Ry(yaw) in model space; all in radians."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    turn_y = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()], 1)
    turn_x = torch.stack([one, zero, zero, zero, pitch.cos(), pitch.sin(), zero, -pitch.sin(), pitch.cos()], 1)
    turn_z = torch.stack([roll.cos(), roll.sin(), zero, -roll.sin(), roll.cos(), zero, zero, zero, one], 1)
    matrix = turn_z.view(-1, 3, 3) @ turn_x.view(-1, 3, 3) @ turn_y.view(-1, 3, 3)
    return rotation_matrix_to_axis_angle(matrix)


def angles_from_rotation(rotation: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
    """Yaw, pitch and roll in radians; the inverse of `rotation_from_angles` for |pitch| below a quarter turn."""
    matrix = axis_angle_to_rotation_matrix(rotation)
    # Rows 2 and 1 of Rz Rx Ry hold the angles by themselves.
    pitch = -matrix[:, 2, 1].clamp(-1.0, 1.0).asin()
    yaw = torch.atan2(-matrix[:, 2, 0], matrix[:, 2, 2])
    roll = torch.atan2(matrix[:, 0, 1], matrix[:, 1, 1])
    return torch.stack([yaw, pitch, roll], 1)


def rotation_distance(first: Float[Tensor, "B 3"], second: Float[Tensor, "B 3"]) -> Float[Tensor, "B"]:
    """Angle in radians of the rotation that leads from one to the other."""
    relative = axis_angle_to_rotation_matrix(first).transpose(1, 2) @ axis_angle_to_rotation_matrix(second)
    cosine = (relative.diagonal(dim1=1, dim2=2).sum(1) - 1.0) / 2.0
    return cosine.clamp(-1.0, 1.0).acos()
