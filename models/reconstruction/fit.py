"""Pose, or pose and shape, from landmarks by damped least squares, for a batch of faces at once.

Convention: see models/face/camera.py. Landmarks are in pixels, model points in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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
    start: FittedFaces | None = None,
    anchor: float | None = None,
    person: Int[Tensor, "B"] | None = None,
) -> FittedFaces:
    """The most probable faces behind landmarks: identity, expression and pose in one normal system.

    Minimises confidence |pixels - landmarks|² / `sigma_px`² + |identity|² + |expression / σ|². Expressions with ARKit's
    names stay within [0, 1]: those that a step would push out are held at the bound while the others move.
    `start`: where to begin; else at the pose of the mean face. `anchor`: shapes are probable around the start, that
    many times as surely as faces are around the mean face; else around the mean face.
    `person`: photos with the same number share their identity, which starts at the mean of theirs.
    Method: damped Gauss–Newton with the analytic Jacobian; what differs between the photos of a person is eliminated
    first (Schur complement). A step that does not improve a person is taken back and damped more. Computes in the type
    of the landmarks.
    Degenerate: a face without confident points keeps the shape it starts with and a finite pose.
    Raises: ValueError if `sigma_px` or `anchor` is not positive, or if an anchor is given without a start.
    """
    if not sigma_px > 0.0:
        raise ValueError(f"fit_face: sigma_px is {sigma_px}, expected the landmarks' positive spread in pixels")
    problem = LandmarkProblem.build(
        model, landmarks, confidence / sigma_px**2, camera, start=start, anchor=anchor, person=person
    )
    state = problem.start
    damping = landmarks.new_full((len(landmarks),), 1e-3)
    energy = problem.energy(state)
    for _ in range(iterations):
        normal, gradient = problem.normal_system(state)
        step = _damped_step(normal, gradient, problem.free(state, gradient), damping, problem.group, problem.identities)
        tried = problem.moved(state, step)
        new_energy = problem.energy(tried)
        better = new_energy < energy
        state = tried.where(better, state)
        energy = torch.where(better, new_energy, energy)
        damping = torch.where(better, damping * 0.3, damping * 10.0).clamp(1e-9, 1e6)
    identity, expression = state.shape.split((model.identity_size, model.expression_size), 1)
    return FittedFaces(identity, expression, rotation_matrix_to_axis_angle(state.rotation), state.translation)


@dataclass(frozen=True)
class FaceState:
    """Shape and pose while they are searched."""

    shape: Float[Tensor, "B K"]
    """Identity, then expression."""
    rotation: Float[Tensor, "B 3 3"]
    translation: Float[Tensor, "B 3"]

    def where(self, chosen: Bool[Tensor, "B"], other: FaceState) -> FaceState:
        """The chosen faces of this state, the rest of the other."""
        return FaceState(
            torch.where(chosen[:, None], self.shape, other.shape),
            torch.where(chosen[:, None, None], self.rotation, other.rotation),
            torch.where(chosen[:, None], self.translation, other.translation),
        )


@dataclass(frozen=True)
class LandmarkProblem:
    """The 68 points as a function of shape and pose, what they should be, and what is probable."""

    mean: Float[Tensor, "68 3"]
    basis: Float[Tensor, "K 68 3"]
    identities: int
    """How many of the modes are identity."""
    precision: Float[Tensor, "B K"]
    """Of the Gaussian prior, 1 / σ²; that of an identity which several photos share is dealt out among them."""
    centre: Float[Tensor, "B K"]
    """The most probable shape before the landmarks are seen."""
    low: Float[Tensor, "K"]
    high: Float[Tensor, "K"]
    landmarks: Float[Tensor, "B 68 2"]
    weights: Float[Tensor, "B 68"]
    """1 / px²."""
    camera: Camera
    group: Int[Tensor, "B"]
    """Which person, 0 to P - 1."""
    start: FaceState

    @staticmethod
    def build(
        model: MorphableModel,
        landmarks: Float[Tensor, "B 68 2"],
        weights: Float[Tensor, "B 68"],
        camera: Camera,
        *,
        start: FittedFaces | None = None,
        anchor: float | None = None,
        person: Int[Tensor, "B"] | None = None,
    ) -> LandmarkProblem:
        """Arguments as of `fit_face`, with weights in 1 / px²."""
        if anchor is not None and not (anchor > 0.0 and start is not None):
            raise ValueError(f"fit_face: anchor is {anchor}, expected a positive number together with a start")
        count = len(landmarks)
        group = torch.arange(count, device=landmarks.device)
        if person is not None:
            group = torch.unique(person.to(landmarks.device), return_inverse=True)[1]
        bounded = [False] * model.identity_size + [is_arkit_shape(name) for name in model.expression_names]
        within = torch.tensor(bounded, dtype=torch.bool, device=landmarks.device)
        mean = model.landmark_mean.to(landmarks)
        basis = torch.cat([model.landmark_identity_basis, model.landmark_expression_basis]).to(landmarks)
        one = landmarks.new_ones(len(basis))
        low, high = torch.where(within, 0.0 * one, -torch.inf * one), torch.where(within, one, torch.inf * one)
        precision = torch.where(within, one / ACTIVATION_SIGMA**2, one).repeat(count, 1)
        if start is None:
            turn, translation = fit_pose(mean.expand(count, -1, -1), landmarks, confidence=weights, camera=camera)
            shape = centre = landmarks.new_zeros(count, len(basis))
        else:
            turn, translation = start.rotation.to(landmarks), start.translation.to(landmarks)
            shape = torch.cat([start.identity, start.expression], 1).to(landmarks)
            shape = torch.minimum(torch.maximum(shape, low), high)
            centre = torch.zeros_like(shape)
        photos = _group_sum(torch.ones_like(shape[:, :1]), group)
        if anchor is None:
            precision[:, : model.identity_size] /= photos
        else:
            # Every photo's estimate is evidence of its own, so here the prior counts once for each.
            precision, centre = anchor * precision, shape
        shared = _group_sum(shape, group) / photos
        shape = torch.cat([shared[:, : model.identity_size], shape[:, model.identity_size :]], 1)
        return LandmarkProblem(
            mean=mean,
            basis=basis,
            identities=model.identity_size,
            precision=precision,
            centre=centre,
            low=low,
            high=high,
            landmarks=landmarks,
            weights=weights,
            camera=camera,
            group=group,
            start=FaceState(shape, axis_angle_to_rotation_matrix(turn), translation),
        )

    def points(self, state: FaceState) -> Float[Tensor, "B 68 3"]:
        """The points in model space."""
        return self.mean + (state.shape @ self.basis.flatten(1)).unflatten(1, (-1, 3))

    def energy(self, state: FaceState) -> Float[Tensor, "B"]:
        """Twice the negative logarithm of the posterior of each photo's person, up to a constant."""
        fit = _error(self.points(state), self.landmarks, self.weights, self.camera, state.rotation, state.translation)
        return self.sum_of_person(fit + (self.precision * (state.shape - self.centre).square()).sum(1))

    def sum_of_person(self, values: Float[Tensor, "B *N"]) -> Float[Tensor, "B *N"]:
        """For every photo the sum over all photos of its person."""
        return _group_sum(values, self.group)

    def photos_of_person(self) -> Float[Tensor, "B"]:
        """For every photo how many its person has."""
        return self.sum_of_person(torch.ones_like(self.weights[:, 0]))

    def normal_system(self, state: FaceState) -> tuple[Float[Tensor, "B P P"], Float[Tensor, "B P"]]:
        """Gauss–Newton's matrix and half the slope of each photo's energy, by shape, turn and translation."""
        residual, jacobian = self.linearised(state)
        root = self.weights.sqrt().repeat_interleave(2, 1)[..., None]
        jacobian, residual = root * jacobian, root * residual[..., None]
        normal = jacobian.transpose(1, 2) @ jacobian
        gradient = (jacobian.transpose(1, 2) @ residual)[..., 0]
        size = len(self.basis)
        normal.diagonal(dim1=1, dim2=2)[:, :size].add_(self.precision)
        gradient[:, :size] += self.precision * (state.shape - self.centre)
        return normal, gradient

    def linearised(self, state: FaceState) -> tuple[Float[Tensor, "B 136"], Float[Tensor, "B 136 P"]]:
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

    def free(self, state: FaceState, gradient: Float[Tensor, "B P"]) -> Bool[Tensor, "B P"]:
        """Parameters that may move: all but those at a bound that descent would cross."""
        slope = gradient[:, : len(self.basis)]
        held = ((state.shape <= self.low) & (slope > 0)) | ((state.shape >= self.high) & (slope < 0))
        return torch.cat([~held, held.new_ones(len(held), 6)], 1)

    def moved(self, state: FaceState, step: Float[Tensor, "B P"]) -> FaceState:
        """The state after a step, within the bounds."""
        shape, turn, shift = step.split((len(self.basis), 3, 3), 1)
        return FaceState(
            torch.minimum(torch.maximum(state.shape + shape, self.low), self.high),
            axis_angle_to_rotation_matrix(turn) @ state.rotation,
            state.translation + shift,
        )


def _damped_step(
    normal: Float[Tensor, "B P P"],
    gradient: Float[Tensor, "B P"],
    free: Bool[Tensor, "B P"],
    damping: Float[Tensor, "B"],
    group: Int[Tensor, "B"],
    identities: int,
) -> Float[Tensor, "B P"]:
    """Marquardt's step of the free parameters; not a number where the system cannot be solved."""
    kept = free.to(normal)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal = torch.cat([_group_sum(diagonal[:, :identities], group), diagonal[:, identities:]], 1)
    ridge = damping[:, None] * diagonal + 1e-9 * diagonal.amax(1, keepdim=True) + 1e-12
    # Millimetres of depth and radians differ by millions; scaled to a unit diagonal, single precision is enough. The
    # scale of a shared identity is that of the person's first photo: ridges differ by rounding only.
    scale = kept * (diagonal + ridge).rsqrt()
    scale = torch.cat([_of_first(scale[:, :identities], group), scale[:, identities:]], 1)
    system = normal * scale[:, :, None] * scale[:, None, :]
    downhill = -scale * gradient
    own, mixed = system[:, identities:, identities:].clone(), system[:, identities:, :identities]
    own.diagonal(dim1=1, dim2=2).fill_(1.0)
    factor, _ = torch.linalg.cholesky_ex(own)
    solved = torch.cholesky_solve(torch.cat([mixed, downhill[:, identities:, None]], 2), factor)
    # What is left for the identity once every photo has answered it with its own parameters.
    by_photo = mixed.transpose(1, 2) @ solved
    people = int(group.max()) + 1 if len(group) else 0
    shared = _sum_by(system[:, :identities, :identities], group, people)
    shared.diagonal(dim1=1, dim2=2).fill_(1.0)
    shared = shared - _sum_by(by_photo[..., :-1], group, people)
    wanted = _sum_by(downhill[:, :identities, None] - by_photo[..., -1:], group, people)
    shared_factor, _ = torch.linalg.cholesky_ex(shared)
    identity = torch.cholesky_solve(wanted, shared_factor)[group]
    rest = solved[..., -1:] - solved[..., :-1] @ identity
    return scale * torch.cat([identity, rest], 1)[..., 0]


def _sum_by(values: Float[Tensor, "B *N"], group: Int[Tensor, "B"], people: int) -> Float[Tensor, "P *N"]:
    return values.new_zeros(people, *values.shape[1:]).index_add_(0, group, values)


def _group_sum(values: Float[Tensor, "B *N"], group: Int[Tensor, "B"]) -> Float[Tensor, "B *N"]:
    """Sums over the photos of a person, for every photo."""
    return _sum_by(values, group, int(group.max()) + 1 if len(group) else 0)[group]


def _of_first(values: Float[Tensor, "B *N"], group: Int[Tensor, "B"]) -> Float[Tensor, "B *N"]:
    """The value of the first photo of each person, for every photo."""
    places = torch.arange(len(group), device=group.device)
    first = torch.full_like(places, len(places)).scatter_reduce_(0, group, places, "amin")
    return values[first[group]]


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
