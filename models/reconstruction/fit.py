"""Pose from landmarks by damped least squares, for a batch of faces at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from kornia.geometry.conversions import axis_angle_to_rotation_matrix, rotation_matrix_to_axis_angle
from torch import Tensor

from models.types import Camera

ITERATIONS = 12


def fit_pose(
    points: Float[Tensor, "B L 3"],
    landmarks: Float[Tensor, "B L 2"],
    *,
    confidence: Float[Tensor, "B L"],
    camera: Camera,
) -> tuple[Float[Tensor, "B 3"], Float[Tensor, "B 3"]]:
    """Rotation (axis-angle) and translation (mm) that bring model points closest to their landmarks in the image.

    Convention: see models/face/camera.py. Points are in model space, landmarks in pixels.
    Method: closed-form weak-perspective start, then Levenberg–Marquardt with the analytic Jacobian.
    """
    half_turn = points.new_tensor([1.0, -1.0, -1.0])
    rotation, translation = _weak_perspective(points, landmarks, confidence, camera)
    damping = points.new_full((len(points),), 1e-3)
    error = _error(points, landmarks, confidence, camera, rotation, translation)
    for _ in range(ITERATIONS):
        turned = points @ rotation.transpose(1, 2)
        seen = turned * half_turn + translation[:, None]
        depth = seen[..., 2].clamp_min(1.0)
        pixels = seen[..., :2] / depth[..., None] * camera.focal_px[:, None, None] + camera.principal_px[:, None]
        residual = pixels - landmarks
        slope = (camera.focal_px[:, None] / depth)[..., None, None]
        by_point = torch.zeros(*depth.shape, 2, 3, dtype=points.dtype, device=points.device)
        by_point[..., 0, 0] = by_point[..., 1, 1] = 1.0
        by_point[..., :, 2] = -seen[..., :2] / depth[..., None]
        by_point = by_point * slope
        # d(exp(w) R p) = w x (R p), so the columns are the axes crossed with the turned point, in camera axes.
        axes = torch.eye(3, dtype=points.dtype, device=points.device)
        by_turn = torch.linalg.cross(axes.expand(*depth.shape, 3, 3), turned[..., None, :].expand(*depth.shape, 3, 3))
        by_turn = by_point @ (by_turn * half_turn).transpose(2, 3)
        jacobian = torch.cat([by_turn, by_point], 3).flatten(1, 2)
        weights = confidence.repeat_interleave(2, 1)[..., None]
        normal = jacobian.transpose(1, 2) @ (weights * jacobian)
        gradient = jacobian.transpose(1, 2) @ (weights * residual.flatten(1)[..., None])
        # Marquardt's scaling; the floor keeps a face without confident points solvable.
        diagonal = normal.diagonal(dim1=1, dim2=2)
        damped = normal + torch.diag_embed(damping[:, None] * diagonal + 1e-9 * diagonal.amax(1, keepdim=True) + 1e-12)
        step = -torch.linalg.solve(damped, gradient)[..., 0]
        new_rotation = axis_angle_to_rotation_matrix(step[:, :3]) @ rotation
        new_translation = translation + step[:, 3:]
        new_error = _error(points, landmarks, confidence, camera, new_rotation, new_translation)
        better = new_error < error
        rotation = torch.where(better[:, None, None], new_rotation, rotation)
        translation = torch.where(better[:, None], new_translation, translation)
        error = torch.where(better, new_error, error)
        damping = torch.where(better, damping * 0.3, damping * 10.0).clamp(1e-9, 1e6)
    return rotation_matrix_to_axis_angle(rotation), translation


def _error(
    points: Tensor, landmarks: Tensor, confidence: Tensor, camera: Camera, rotation: Tensor, translation: Tensor
) -> Tensor:
    seen = points @ rotation.transpose(1, 2) * points.new_tensor([1.0, -1.0, -1.0]) + translation[:, None]
    pixels = seen[..., :2] / seen[..., 2:].clamp_min(1.0) * camera.focal_px[:, None, None]
    error = (confidence * (pixels + camera.principal_px[:, None] - landmarks).square().sum(2)).sum(1)
    behind = seen[..., 2].amin(1) <= 1.0
    return torch.where(behind, torch.inf, error)


def _weak_perspective(points: Tensor, landmarks: Tensor, confidence: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Start: an affine camera in closed form, made a rotation, with the depth from its scale."""
    # Every point counts a little, so that the start is defined where none or one is confident.
    weights = confidence + 1e-6
    share = (weights / weights.sum(1, keepdim=True))[..., None]
    point_mean, landmark_mean = (points * share).sum(1, keepdim=True), (landmarks * share).sum(1, keepdim=True)
    centred, seen = points - point_mean, landmarks - landmark_mean
    normal = centred.transpose(1, 2) @ (share * centred)
    ridge = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1)
    normal = normal + ridge[:, None, None] * torch.eye(3, dtype=points.dtype, device=points.device)
    affine = torch.linalg.solve(normal, centred.transpose(1, 2) @ (share * seen)).transpose(1, 2)
    left, singular, right = torch.linalg.svd(affine, full_matrices=False)
    scale = singular.mean(1).clamp_min(1e-6)
    first_rows = left @ right
    rows = torch.cat([first_rows, torch.linalg.cross(first_rows[:, 0], first_rows[:, 1])[:, None]], 1)
    # Rows are in camera axes; the half turn leads back to model axes.
    rotation = points.new_tensor([1.0, -1.0, -1.0])[:, None] * rows
    depth = camera.focal_px / scale
    offset = (landmark_mean[:, 0] - camera.principal_px) / camera.focal_px[:, None] * depth[:, None]
    centre = torch.cat([offset, depth[:, None]], 1)
    half_turned = (point_mean @ rotation.transpose(1, 2))[:, 0] * points.new_tensor([1.0, -1.0, -1.0])
    return rotation, centre - half_turned
