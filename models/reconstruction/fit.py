"""Pose, or pose and shape, from landmarks by damped least squares, for a batch of faces at once.

Convention: see models/face/camera.py. Landmarks are in pixels, model points in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from kornia.geometry.conversions import axis_angle_to_rotation_matrix, rotation_matrix_to_axis_angle
from torch import Tensor

from models.face.morphable import MorphableModel
from models.face.sampling import is_arkit_shape
from models.types import Camera

ITERATIONS = 12

ACTIVATION_SIGMA = 0.3
"""Spread of ARKit-named shapes around rest, which is 0; they stay within [0, 1]. Statistical modes have σ = 1."""


@dataclass(frozen=True)
class FittedFaces:
    """What 68 points tell of faces; the fields are those of `FaceCoefficients` without appearance."""

    identity: Float[Tensor, "B I"]
    """In standard deviations."""
    expression: Float[Tensor, "B E"]
    rotation: Float[Tensor, "B 3"]
    """Axis-angle in radians."""
    translation: Float[Tensor, "B 3"]
    """Model origin in camera space, millimetres."""


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
    rotation, translation = _weak_perspective(points, landmarks, confidence, camera)
    damping = points.new_full((len(points),), 1e-3)
    error = _error(points, landmarks, confidence, camera, rotation, translation)
    for _ in range(ITERATIONS):
        pixels, by_point, by_turn = _projected(points @ rotation.transpose(1, 2), translation, camera)
        residual = pixels - landmarks
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


@torch.no_grad()
def fit_face(
    model: MorphableModel,
    landmarks: Float[Tensor, "B 68 2"],
    *,
    confidence: Float[Tensor, "B 68"],
    camera: Camera,
    sigma_px: float,
    iterations: int = 8,
) -> FittedFaces:
    """The most probable faces behind landmarks: identity, expression and pose in one normal system.

    Minimises confidence |pixels - landmarks|² / `sigma_px`² + |identity|² + |expression / σ|². Expressions with ARKit's
    names stay within [0, 1]: those that a step would push out are held at the bound while the others move.
    Method: the pose of the mean face, then damped Gauss–Newton with the analytic Jacobian; a step that does not improve
    a face is taken back and damped more. Computes in the type of the landmarks.
    Degenerate: a face without confident points keeps the mean shape and a finite pose.
    Raises: ValueError if `sigma_px` is not positive.
    """
    if not sigma_px > 0.0:
        raise ValueError(f"fit_face: sigma_px is {sigma_px}, expected the landmarks' positive spread in pixels")
    problem = _Problem.build(model, landmarks, confidence / sigma_px**2, camera)
    mean = problem.mean.expand(len(landmarks), -1, -1)
    turn, translation = fit_pose(mean, landmarks, confidence=confidence, camera=camera)
    shape = landmarks.new_zeros(len(landmarks), len(problem.basis))
    state = _State(shape, axis_angle_to_rotation_matrix(turn), translation)
    damping = landmarks.new_full((len(landmarks),), 1e-3)
    energy = problem.energy(state)
    for _ in range(iterations):
        residual, jacobian = problem.linearised(state)
        root = problem.weights.sqrt().repeat_interleave(2, 1)[..., None]
        jacobian, residual = root * jacobian, root * residual[..., None]
        normal = jacobian.transpose(1, 2) @ jacobian
        gradient = (jacobian.transpose(1, 2) @ residual)[..., 0]
        normal.diagonal(dim1=1, dim2=2)[:, : len(problem.basis)].add_(problem.precision)
        gradient[:, : len(problem.basis)] += problem.precision * state.shape
        step = _damped_step(normal, gradient, problem.free(state, gradient), damping)
        tried = problem.moved(state, step)
        new_energy = problem.energy(tried)
        better = new_energy < energy
        state = tried.where(better, state)
        energy = torch.where(better, new_energy, energy)
        damping = torch.where(better, damping * 0.3, damping * 10.0).clamp(1e-9, 1e6)
    identity, expression = state.shape.split((model.identity_size, model.expression_size), 1)
    return FittedFaces(identity, expression, rotation_matrix_to_axis_angle(state.rotation), state.translation)


@dataclass(frozen=True)
class _State:
    shape: Float[Tensor, "B K"]
    """Identity, then expression."""
    rotation: Float[Tensor, "B 3 3"]
    translation: Float[Tensor, "B 3"]

    def where(self, chosen: Bool[Tensor, "B"], other: _State) -> _State:
        """The chosen faces of this state, the rest of the other."""
        return _State(
            torch.where(chosen[:, None], self.shape, other.shape),
            torch.where(chosen[:, None, None], self.rotation, other.rotation),
            torch.where(chosen[:, None], self.translation, other.translation),
        )


@dataclass(frozen=True)
class _Problem:
    """The 68 points as a function of shape and pose, what they should be, and what is probable."""

    mean: Float[Tensor, "68 3"]
    basis: Float[Tensor, "K 68 3"]
    precision: Float[Tensor, "K"]
    """Of the Gaussian prior, 1 / σ²."""
    low: Float[Tensor, "K"]
    high: Float[Tensor, "K"]
    landmarks: Float[Tensor, "B 68 2"]
    weights: Float[Tensor, "B 68"]
    camera: Camera

    @staticmethod
    def build(model: MorphableModel, landmarks: Tensor, weights: Tensor, camera: Camera) -> _Problem:
        bounded = [False] * model.identity_size + [is_arkit_shape(name) for name in model.expression_names]
        within = torch.tensor(bounded, dtype=torch.bool, device=landmarks.device)
        basis = torch.cat([model.landmark_identity_basis, model.landmark_expression_basis]).to(landmarks)
        one = landmarks.new_ones(len(basis))
        return _Problem(
            mean=model.landmark_mean.to(landmarks),
            basis=basis,
            precision=torch.where(within, one / ACTIVATION_SIGMA**2, one),
            low=torch.where(within, 0.0 * one, -torch.inf * one),
            high=torch.where(within, one, torch.inf * one),
            landmarks=landmarks,
            weights=weights,
            camera=camera,
        )

    def points(self, state: _State) -> Float[Tensor, "B 68 3"]:
        return self.mean + (state.shape @ self.basis.flatten(1)).unflatten(1, (-1, 3))

    def energy(self, state: _State) -> Float[Tensor, "B"]:
        fit = _error(self.points(state), self.landmarks, self.weights, self.camera, state.rotation, state.translation)
        return fit + (self.precision * state.shape.square()).sum(1)

    def linearised(self, state: _State) -> tuple[Float[Tensor, "B 136"], Float[Tensor, "B 136 P"]]:
        """Pixel errors and their derivatives by shape, a small turn in model axes, and translation."""
        turned = self.points(state) @ state.rotation.transpose(1, 2)
        pixels, by_point, by_turn = _projected(turned, state.translation, self.camera)
        half_turn = turned.new_tensor([1.0, -1.0, -1.0])
        by_model_point = (by_point * half_turn) @ state.rotation[:, None]
        # One product per landmark: (2 B, 3) by (3, K).
        modes = by_model_point.permute(1, 0, 2, 3).flatten(1, 2) @ self.basis.permute(1, 2, 0)
        by_shape = modes.unflatten(1, (len(turned), 2)).permute(1, 0, 2, 3)
        jacobian = torch.cat([by_shape, by_turn, by_point], 3).flatten(1, 2)
        return (pixels - self.landmarks).flatten(1), jacobian

    def free(self, state: _State, gradient: Float[Tensor, "B P"]) -> Bool[Tensor, "B P"]:
        """Parameters that may move: all but those at a bound that descent would cross."""
        slope = gradient[:, : len(self.basis)]
        held = ((state.shape <= self.low) & (slope > 0)) | ((state.shape >= self.high) & (slope < 0))
        return torch.cat([~held, held.new_ones(len(held), 6)], 1)

    def moved(self, state: _State, step: Float[Tensor, "B P"]) -> _State:
        shape, turn, shift = step.split((len(self.basis), 3, 3), 1)
        return _State(
            torch.minimum(torch.maximum(state.shape + shape, self.low), self.high),
            axis_angle_to_rotation_matrix(turn) @ state.rotation,
            state.translation + shift,
        )


def _damped_step(
    normal: Float[Tensor, "B P P"],
    gradient: Float[Tensor, "B P"],
    free: Bool[Tensor, "B P"],
    damping: Float[Tensor, "B"],
) -> Float[Tensor, "B P"]:
    """Marquardt's step of the free parameters; not a number where the system cannot be solved."""
    kept = free.to(normal)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    ridge = damping[:, None] * diagonal + 1e-9 * diagonal.amax(1, keepdim=True) + 1e-12
    # Millimetres of depth and radians differ by millions; scaled to a unit diagonal, single precision is enough.
    scale = kept * (diagonal + ridge).rsqrt()
    system = normal * scale[:, :, None] * scale[:, None, :]
    system.diagonal(dim1=1, dim2=2).copy_(torch.ones_like(diagonal))
    factor, _ = torch.linalg.cholesky_ex(system)
    return -scale * torch.cholesky_solve((scale * gradient)[..., None], factor)[..., 0]


def _projected(turned: Tensor, translation: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (B, L, 2) of turned model points, and their derivatives (B, L, 2, 3) by camera point and by a turn."""
    half_turn = turned.new_tensor([1.0, -1.0, -1.0])
    seen = turned * half_turn + translation[:, None]
    depth = seen[..., 2].clamp_min(1.0)
    pixels = seen[..., :2] / depth[..., None] * camera.focal_px[:, None, None] + camera.principal_px[:, None]
    slope = (camera.focal_px[:, None] / depth)[..., None, None]
    by_point = torch.zeros(*depth.shape, 2, 3, dtype=turned.dtype, device=turned.device)
    by_point[..., 0, 0] = by_point[..., 1, 1] = 1.0
    by_point[..., :, 2] = -seen[..., :2] / depth[..., None]
    by_point = by_point * slope
    # d(exp(w) R p) = w x (R p), so the columns are the axes crossed with the turned point, in camera axes.
    axes = torch.eye(3, dtype=turned.dtype, device=turned.device)
    by_turn = torch.linalg.cross(axes.expand(*depth.shape, 3, 3), turned[..., None, :].expand(*depth.shape, 3, 3))
    return pixels, by_point, by_point @ (by_turn * half_turn).transpose(2, 3)


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
