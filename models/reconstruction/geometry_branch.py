"""The geometry branch: from 68 landmarks to shape and pose, learned from the face model alone.

The shape of a face is in the sub-pixel layout of its landmarks, which a small image network hardly learns to read. This
branch learns it from unlimited simulated projections of the face model under the detector's measured noise; no photo is
needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch import Generator, Tensor, nn

from models.face.camera import CAMERA_DISTANCE_MM, FOCAL_PER_SIZE, angles_from_rotation, project, to_camera_space
from models.face.crop import apply_affine, crop_affine
from models.face.morphable import MorphableModel
from models.face.sampling import sample_rotation
from models.types import LANDMARK_COUNT, MIRRORED_LANDMARKS, Camera

POSE_SIZE = 6
"""Rotation (3) and position (3)."""

POSITION_SCALE_MM = 50.0
DEPTH_SCALE = 0.2

UNIT_FOCAL = 2.0 * FOCAL_PER_SIZE
"""Focal length of the crop's camera in units of half the crop."""

LARGE_YAW = math.pi / 6.0
"""From here on (radians) the second of the two noise models holds."""

CONFIDENCE_SIGMA = 0.02
"""Error, as a fraction of the face box, at which a landmark's confidence is one half."""


def confidence_of(sigma: Tensor) -> Tensor:
    """Confidence of a landmark whose expected error is `sigma` times the larger side of the face box."""
    return 1.0 / (1.0 + (sigma / CONFIDENCE_SIGMA).square())


class Perceptron(nn.Module):
    """Residual multilayer perceptron: features (B, width) and outputs (B, K)."""

    def __init__(self, *, inputs: int, outputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.output = nn.Sequential(nn.LayerNorm(width), nn.SiLU())
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Float[Tensor, "B J"]) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B K"]]:
        """Features before the head, and the head's numbers."""
        features = self.input(inputs)
        for block in self.blocks:
            features = features + block(features)
        features = self.output(features)
        return features, self.head(features)


class GeometryBranch(nn.Module):
    """A learned fit of the face model to landmarks, unrolled.

    A first network guesses identity, expression and pose. Every further one sees how the guess misses the landmarks, as
    the gradient of the weighted reprojection error carried back to each model point and coefficient, and corrects it.
    Plain landmarks in, plain matrix products inside, so that it runs on any device and exports to ONNX.
    Computes in 32 bits even under autocast: eight bits of mantissa are coarser than a sub-pixel shift.
    Source: the unrolling follows learned gradient descent (Adler and Öktem 2017; for faces Choutas et al. 2022).
    """

    mean: Tensor
    identity_basis: Tensor
    expression_basis: Tensor

    def __init__(self, model: MorphableModel, *, width: int, blocks: int, refinements: int) -> None:
        super().__init__()
        self.register_buffer("mean", model.landmark_mean, persistent=False)
        self.register_buffer("identity_basis", model.landmark_identity_basis.flatten(1), persistent=False)
        self.register_buffer("expression_basis", model.landmark_expression_basis.flatten(1), persistent=False)
        self.sizes = (model.identity_size, model.expression_size, POSE_SIZE)
        self.width = width
        state = sum(self.sizes)
        seen = LANDMARK_COUNT * 3
        self.guess = Perceptron(inputs=seen, outputs=state, width=width, blocks=blocks)
        # Landmark gradients in model space, confidences, coefficient gradients, the present state, the rotation matrix.
        inputs = seen + LANDMARK_COUNT + 2 * state + 9
        corrections = [Perceptron(inputs=inputs, outputs=state, width=width, blocks=blocks) for _ in range(refinements)]
        for network in corrections:
            nn.init.normal_(network.head.weight, std=1e-3)
            nn.init.zeros_(network.head.bias)
        self.corrections = nn.ModuleList(corrections)

    def forward(
        self, landmarks: Float[Tensor, "B 68 2"], confidence: Float[Tensor, "B 68"]
    ) -> tuple[Float[Tensor, "B W"], Float[Tensor, "S B K"]]:
        """Landmarks in units of half the crop, zero at its centre.

        Returns features and the states (identity, expression, raw pose) after the guess and after every correction.
        """
        with torch.autocast(landmarks.device.type, enabled=False):
            landmarks, confidence = landmarks.float(), confidence.float()
            features, state = self.guess(torch.cat([landmarks.flatten(1), confidence], 1))
            states = [state]
            for network in self.corrections:
                features, change = network(self._misses(state, landmarks, confidence))
                state = state + change
                states.append(state)
            return features, torch.stack(states)

    def _misses(self, state: Tensor, landmarks: Tensor, confidence: Tensor) -> Tensor:
        """How the state misses the landmarks, as numbers of about unit size."""
        identity, expression, pose = state.split(self.sizes, 1)
        offsets = identity @ self.identity_basis + expression @ self.expression_basis
        points = self.mean + offsets.unflatten(1, (LANDMARK_COUNT, 3))
        rotation = axis_angle_to_rotation_matrix(pose[:, :3])
        centre = place(pose[:, 3:])
        half_turn = points.new_tensor([1.0, -1.0, -1.0])
        turned = (points - self.mean.mean(0)) @ rotation.transpose(1, 2)
        seen = turned * half_turn + centre[:, None]
        slope = UNIT_FOCAL / seen[..., 2:]
        miss = confidence[..., None] * (landmarks - seen[..., :2] * slope)
        by_depth = -(miss * seen[..., :2]).sum(2, keepdim=True) / seen[..., 2:]
        # In units where a miss of one millimetre at the usual distance is 1.
        pull = torch.cat([miss, by_depth], 2) * slope * (CAMERA_DISTANCE_MM / UNIT_FOCAL) ** 2
        turned_pull = pull * half_turn
        model_pull = turned_pull @ rotation
        flat = model_pull.flatten(1)
        by_turn = torch.linalg.cross(turned, turned_pull).mean(1) / 30.0
        return torch.cat(
            [
                flat / 3.0,
                confidence,
                (flat @ self.identity_basis.T) / 100.0,
                (flat @ self.expression_basis.T) / 100.0,
                by_turn,
                pull.mean(1),
                state,
                rotation.flatten(1),
            ],
            1,
        )


def place(position: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
    """Camera-space position (mm) of the middle of the landmarks from raw numbers of about unit size."""
    depth = CAMERA_DISTANCE_MM * (DEPTH_SCALE * position[:, 2:]).exp()
    return torch.cat([POSITION_SCALE_MM * position[:, :2], depth], 1)


@dataclass(frozen=True)
class LandmarkNoise:
    """How a detector errs, as fractions of the larger side of the landmarks' box; index 0 below 30° of yaw, 1 above.

    Convention: on faces with a yaw of zero or more; on others it errs in mirror image.
    """

    factor: Float[Tensor, "2 136 136"]
    """Cholesky factor of the covariance of errors, each in units of the error that the detector expects."""
    bias: Float[Tensor, "2 136"]
    response: Float[Tensor, "2 136 136"]
    """Error per unit of what is individual about a face, see `pose_residual`."""
    sigma: tuple[Float[Tensor, "N 68"], Float[Tensor, "M 68"]]
    """Expected errors as they occur together on one face."""

    @staticmethod
    def build(
        *,
        covariance: Float[Tensor, "2 136 136"],
        bias: Float[Tensor, "2 136"],
        response: Float[Tensor, "2 136 136"],
        sigma: Float[Tensor, "N 68"],
        large: Bool[Tensor, "N"],
    ) -> LandmarkNoise:
        """Raises: ValueError if a covariance is not positive definite, or if a group of faces has no member."""
        factor, info = torch.linalg.cholesky_ex(covariance.double())
        if bool((info != 0).any()):
            raise ValueError("noise.npz: the covariance is not positive definite; run train_detector again")
        if not bool(large.any()) or bool(large.all()):
            raise ValueError("noise.npz: no expected errors for small or for large poses; run train_detector again")
        return LandmarkNoise(
            factor=factor.float(),
            bias=bias.float(),
            response=response.float(),
            sigma=(sigma[~large], sigma[large]),
        )


def pose_residual(points: Float[Tensor, "B L 2"], reference: Float[Tensor, "B L 3"]) -> Float[Tensor, "B L 2"]:
    """How points differ from the mean face, less what a small change of its pose explains, in their unit.

    `reference`: the mean face in about the same pose, x and y in the image and depth in the same unit. Place, size,
    tilt, turn and nod are gone to first order; what is left makes a face individual.
    """
    x, y, depth = (reference - reference.mean(1, keepdim=True)).unbind(2)
    one, none = torch.ones_like(x), torch.zeros_like(x)
    fields = ((one, none), (none, one), (x, y), (-y, x), (depth, none), (none, depth))
    columns = torch.stack([torch.stack(field, 2).flatten(1) for field in fields], 2)
    offsets = (points - reference[..., :2]).flatten(1)[..., None]
    normal = columns.transpose(1, 2) @ columns
    solution = torch.linalg.solve(normal, columns.transpose(1, 2) @ offsets)
    return (offsets - columns @ solution)[..., 0].unflatten(1, (-1, 2))


def with_depth(seen: Float[Tensor, "B L 3"], camera: Camera) -> Float[Tensor, "B L 3"]:
    """Projected points with their depth in pixels of the plane through their middle, from camera space."""
    middle = seen[..., 2:].mean(1, keepdim=True)
    depth = seen[..., 2:] * (camera.focal_px[:, None, None] / middle)
    return torch.cat([project(seen, camera), depth], 2)


@dataclass(frozen=True)
class SimulatedFaces:
    """Landmarks as a detector would find them, with the faces behind them."""

    landmarks: Float[Tensor, "B 68 2"]
    """Pixels of the aligned crop."""
    truth: Float[Tensor, "B 68 2"]
    """The same without noise, in the same crop."""
    confidence: Float[Tensor, "B 68"]
    identity: Float[Tensor, "B I"]
    expression: Float[Tensor, "B E"]
    rotation: Float[Tensor, "B 3"]


def simulate_faces(
    model: MorphableModel,
    count: int,
    *,
    expressions: Float[Tensor, "N E"],
    noise: LandmarkNoise,
    size_px: int,
    crop_scale: float,
    max_yaw_deg: float,
    generator: Generator,
    photos_per_person: int = 1,
    shared_noise: float = 0.0,
) -> SimulatedFaces:
    """Project random faces, disturb the points as the detector does, and crop around them.

    `expressions` is a stock to draw from, see `sample_expressions`. The camera's focal length and distance vary
    together, as they do between photos, while the crop's camera is fixed.
    `photos_per_person`: so many faces in a row are of one person. `shared_noise`: the share of the noise's variance
    that all of them have in common, since a detector errs alike on one face.
    """
    identity = torch.randn(-(-count // photos_per_person), model.identity_size, generator=generator)
    identity = identity.repeat_interleave(photos_per_person, 0)[:count]
    expression = expressions[torch.randint(len(expressions), (count,), generator=generator)]
    rotation = sample_rotation(count, max_yaw_deg=max_yaw_deg, generator=generator)
    points = model.landmark_points(identity, expression)
    zoom = 0.75 + 0.6 * torch.rand(count, generator=generator)
    offset = torch.randn(count, 3, generator=generator) * torch.tensor([20.0, 20.0, 50.0])
    translation = offset + torch.tensor([0.0, 0.0, CAMERA_DISTANCE_MM]) * zoom[:, None]
    camera = Camera(
        focal_px=FOCAL_PER_SIZE * size_px * zoom,
        principal_px=torch.full((count, 2), size_px / 2.0),
        size=(size_px, size_px),
    )
    seen, mean_seen = (
        to_camera_space(shape, rotation=rotation, translation=translation)
        for shape in (points, model.landmark_mean.expand_as(points))
    )
    true_points = project(seen, camera)
    side = (true_points.amax(1) - true_points.amin(1)).amax(1)
    yaw = angles_from_rotation(rotation)[:, 0]
    large = (yaw.abs() > LARGE_YAW).long()
    drawn = torch.rand(count, generator=generator)
    stock = [group[(drawn * len(group)).long()] for group in noise.sigma]
    # The spread keeps the branch useful for photos that are better or worse than those the detector was measured on.
    sigma = torch.where(large[:, None] == 1, stock[1], stock[0])
    sigma = sigma * torch.exp(0.25 * torch.randn(count, 1, generator=generator))
    unit = torch.randn(count, 2 * LANDMARK_COUNT, generator=generator)
    if shared_noise:
        common = torch.randn(-(-count // photos_per_person), 2 * LANDMARK_COUNT, generator=generator)
        common = common.repeat_interleave(photos_per_person, 0)[:count]
        unit = math.sqrt(1.0 - shared_noise) * unit + math.sqrt(shared_noise) * common
    individual = pose_residual(true_points, with_depth(mean_seen, camera)) / side[:, None, None]
    individual = _mirror_where(yaw < 0.0, individual).flatten(1)
    # A detector that has seen many faces draws every face towards the common one, most of all in its fine motions.
    error = (
        _apply_by_group(noise.response, individual, large)
        + noise.bias[large]
        + sigma.repeat_interleave(2, 1) * _apply_by_group(noise.factor, unit, large)
    )
    noisy = true_points + side[:, None, None] * _mirror_where(yaw < 0.0, error.unflatten(1, (LANDMARK_COUNT, 2)))
    sigma = torch.where((yaw < 0.0)[:, None], sigma[:, list(MIRRORED_LANDMARKS)], sigma)
    affine = torch.linalg.inv(crop_affine(noisy, size_px=size_px, scale=crop_scale))
    return SimulatedFaces(
        landmarks=apply_affine(affine, noisy),
        truth=apply_affine(affine, true_points),
        confidence=confidence_of(sigma),
        identity=identity,
        expression=expression,
        rotation=rotation,
    )


def _apply_by_group(
    matrices: Float[Tensor, "2 J J"], vectors: Float[Tensor, "B J"], group: Int[Tensor, "B"]
) -> Float[Tensor, "B J"]:
    """Each vector times the matrix of its group; two whole products are faster than a matrix gathered per vector."""
    first, second = (vectors @ matrix.T for matrix in matrices)
    return torch.where(group[:, None] == 1, second, first)


def _mirror_where(chosen: Bool[Tensor, "B"], offsets: Float[Tensor, "B 68 2"]) -> Float[Tensor, "B 68 2"]:
    mirrored = offsets[:, list(MIRRORED_LANDMARKS)] * offsets.new_tensor([-1.0, 1.0])
    return torch.where(chosen[:, None, None], mirrored, offsets)
