"""Per-photo optimisation: coefficients that explain landmarks and pixels, starting from what the network says.

Landmarks first, by a few Gauss–Newton steps (models/reconstruction/fit.py), then everything by the photo itself: shape,
pose, albedo and light. Photos of one person may share identity and albedo.
Method: the energy is that of the landmark fit plus a robust photo term, half the squares of albedo in σ, and a price on
coloured light. Adam walks in coordinates in which the landmark energy is a unit ball, so that what the landmarks know
is held, and what they leave open moves freely; every coordinate has its own step, so no face depends on its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from kornia.geometry.conversions import axis_angle_to_rotation_matrix, rotation_matrix_to_axis_angle
from torch import Tensor

from models.face.camera import project, to_camera_space
from models.face.morphable import MorphableModel
from models.losses.coefficients import light_chroma, squared_norm
from models.reconstruction.fit import FaceState, FittedFaces, LandmarkProblem, fit_face
from models.reconstruction.geometry_branch import CONFIDENCE_SIGMA
from models.reconstruction.reconstructor import Reconstructor
from models.rendering.rasterize import rasterize_ids
from models.rendering.relight import render_under_fitted_light
from models.rendering.shade import lit_surface
from models.types import Batch, FaceCoefficients

LANDMARK_STEPS = 4
PHOTO_STEPS = 120

ANCHOR = 1.0
"""How surely a face is near the network's estimate, in units of how surely faces are near the mean face."""

LANDMARK_TEMPER = 0.25
"""Share of the landmarks' information that counts: neighbouring points err together."""

SMALLEST_SIGMA = 0.003
"""Landmarks are never believed to be better than this share of the face's larger side."""

PHOTO_WEIGHT = 100.0
"""Independent observations that the pixels of a face are worth. Renders of the face model itself would bear 400; on
real skin, which no albedo mode describes fully, 200 are too many already, see benchmarks/scan_photos.py."""

PIXEL_SPREAD = (0.02, 0.2)
"""Bounds of the spread of RGB errors that an image is believed to have."""

LIGHT_ROUNDS, LIGHT_TRIM = 4, 2.0
"""Rounds in which the first light is fitted, each without the pixels that were off by more than twice the median."""

LIGHT_WEIGHT = 100.0
"""Price of coloured light: skin is coloured, lamps hardly are."""

RATES = {"shape": 0.2, "albedo": 0.2, "lighting": 0.05}
LAST_RATE = 0.05
"""Of the first rate, reached along half a cosine."""

OUTSIDE = ("skin", "lips", "brows")
"""Parts whose colour the model can explain; eyes look elsewhere, and a mouth has teeth and shadow."""


def landmark_precision(
    landmarks: Float[Tensor, "B 68 2"], confidence: Float[Tensor, "B 68"], *, temper: float = LANDMARK_TEMPER
) -> Float[Tensor, "B 68"]:
    """What confidences mean in 1 / px²: the inverse of the expected squared error of each coordinate, times `temper`.

    Degenerate: points that coincide count as if the face were one pixel large.
    """
    side = (landmarks.amax(1) - landmarks.amin(1)).amax(1).clamp_min(1.0)
    # Zero confidence is infinite spread; one million pixels come to the same and stay finite.
    sigma = CONFIDENCE_SIGMA * (1.0 / confidence.clamp_min(1e-12) - 1.0).clamp_min(0.0).sqrt()
    return temper / (sigma.clamp_min(SMALLEST_SIGMA) * side[:, None]).square()


def mean_start(
    model: MorphableModel, batch: Batch, *, person: Int[Tensor, "B"] | None = None, steps: int = 8
) -> FaceCoefficients:
    """What can be said without any network: the fit to the landmarks from the mean face, under the best light."""
    precision = landmark_precision(batch.landmarks, batch.confidence)
    fitted = fit_face(
        model, batch.landmarks, confidence=precision, camera=batch.camera, sigma_px=1.0, iterations=steps, person=person
    )
    albedo = fitted.identity.new_zeros(len(fitted.identity), model.albedo_size)
    seen = to_camera_space(
        model.vertices(fitted.identity, fitted.expression), rotation=fitted.rotation, translation=fitted.translation
    )
    mask = batch.mask
    for _ in range(LIGHT_ROUNDS):
        drawn, lighting = render_under_fitted_light(
            seen, model.triangles, albedo=model.albedo(albedo), camera=batch.camera, image=batch.image, mask=mask
        )
        # The light of a face must not explain what covers it.
        distance = torch.where(drawn.mask & batch.mask, (batch.image - drawn.image).norm(dim=1), torch.nan)
        usual = distance.flatten(1).nanmedian(1).values.nan_to_num()
        mask = batch.mask & (distance <= LIGHT_TRIM * usual[:, None, None])
    return FaceCoefficients(
        identity=fitted.identity,
        expression=fitted.expression,
        albedo=albedo,
        lighting=lighting,
        rotation=fitted.rotation,
        translation=fitted.translation,
    )


def refine(
    reconstructor: Reconstructor,
    batch: Batch,
    *,
    person: Int[Tensor, "B"] | None = None,
    landmark_steps: int = LANDMARK_STEPS,
    photo_steps: int = PHOTO_STEPS,
    rasterizer: str = "auto",
) -> FaceCoefficients:
    """The network's coefficients, improved photo by photo.

    `person`: photos with the same number share identity and albedo. Zero steps leave a part out.
    """
    with torch.no_grad():
        start = reconstructor(batch.image, batch.landmarks, batch.confidence)
    return refine_coefficients(
        reconstructor.model,
        batch,
        start,
        anchor=ANCHOR,
        person=person,
        landmark_steps=landmark_steps,
        photo_steps=photo_steps,
        rasterizer=rasterizer,
    )


def refine_coefficients(
    model: MorphableModel,
    batch: Batch,
    start: FaceCoefficients,
    *,
    anchor: float | None,
    person: Int[Tensor, "B"] | None = None,
    landmark_steps: int = LANDMARK_STEPS,
    photo_steps: int = PHOTO_STEPS,
    photo_weight: float = PHOTO_WEIGHT,
    rasterizer: str = "auto",
) -> FaceCoefficients:
    """As `refine`, from coefficients of any origin; `anchor` as in `fit_face`: None if the start knows nothing."""
    precision = landmark_precision(batch.landmarks, batch.confidence)
    faces = FittedFaces(start.identity, start.expression, start.rotation, start.translation)
    problem = LandmarkProblem.build(
        model, batch.landmarks, precision, batch.camera, start=faces, anchor=anchor, person=person
    )
    if landmark_steps:
        fitted = fit_face(
            model,
            batch.landmarks,
            confidence=precision,
            camera=batch.camera,
            sigma_px=1.0,
            iterations=landmark_steps,
            start=faces,
            anchor=anchor,
            person=person,
        )
    else:
        identity, expression = problem.start.shape.split((model.identity_size, model.expression_size), 1)
        fitted = FittedFaces(identity, expression, start.rotation, start.translation)
    coefficients = FaceCoefficients(
        identity=fitted.identity,
        expression=fitted.expression,
        albedo=problem.sum_of_person(start.albedo) / problem.photos_of_person()[:, None],
        lighting=start.lighting,
        rotation=fitted.rotation,
        translation=fitted.translation,
    )
    if not photo_steps:
        return coefficients
    search = _PhotoSearch.build(model, batch, problem, coefficients, photo_weight=photo_weight, rasterizer=rasterizer)
    return search.run(photo_steps)


@dataclass(frozen=True)
class _PhotoSearch:
    """Everything that stays the same while coefficients move."""

    model: MorphableModel
    batch: Batch
    problem: LandmarkProblem
    start: FaceCoefficients
    photo_weight: float
    rasterizer: str
    drawn: Bool[Tensor, "F"]
    """Triangles that are compared with the photo."""
    identity_unit: Float[Tensor, "P I I"]
    """Leads from the search's coordinates to identity."""
    rest_unit: Float[Tensor, "B R R"]
    """Leads to expression, turn and translation."""
    answer: Float[Tensor, "B R I"]
    """How these follow a change of identity so that the landmarks stay explained."""

    @staticmethod
    def build(
        model: MorphableModel,
        batch: Batch,
        problem: LandmarkProblem,
        start: FaceCoefficients,
        *,
        photo_weight: float,
        rasterizer: str,
    ) -> _PhotoSearch:
        shape = torch.cat([start.identity, start.expression], 1)
        state = FaceState(shape, axis_angle_to_rotation_matrix(start.rotation), start.translation)
        identity_unit, rest_unit, answer = _whitening(problem, state)
        outside = torch.stack([model.part(name) for name in OUTSIDE]).any(0)
        return _PhotoSearch(
            model=model,
            batch=batch,
            problem=problem,
            start=start,
            photo_weight=photo_weight,
            rasterizer=rasterizer,
            drawn=outside[model.triangles].all(1),
            identity_unit=identity_unit,
            rest_unit=rest_unit,
            answer=answer,
        )

    @torch.enable_grad()
    def run(self, steps: int) -> FaceCoefficients:
        """Walk that many steps; a person whose energy did not fall keeps the start."""
        people = len(self.identity_unit)
        start = self.start
        identity = start.identity.new_zeros(people, self.model.identity_size, requires_grad=True)
        rest = start.identity.new_zeros(*self.rest_unit.shape[:2], requires_grad=True)
        albedo = start.identity.new_zeros(people, self.model.albedo_size, requires_grad=True)
        lighting = start.lighting.new_zeros(start.lighting.shape, requires_grad=True)
        optimizer = torch.optim.Adam(
            [
                {"params": [identity, rest], "lr": RATES["shape"]},
                {"params": [albedo], "lr": RATES["albedo"]},
                {"params": [lighting], "lr": RATES["lighting"]},
            ],
            betas=(0.9, 0.99),
            # Of an energy in nats: a coordinate about which nothing is known must not walk by rounding errors.
            eps=1e-3,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        )
        for _ in range(steps):
            coefficients, beyond = self.at(identity, rest, albedo, lighting)
            energy, _ = self.energy(coefficients, beyond)
            optimizer.zero_grad()
            energy.sum().backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            found, _ = self.at(identity, rest, albedo, lighting)
            before, spread = self.energy(start, None)
            after, _ = self.energy(found, None, spread=spread)
            # Not a number compares as worse.
            better = self.problem.sum_of_person(after) < self.problem.sum_of_person(before)
        return _chosen(better, found, start)

    def at(
        self, identity: Tensor, rest: Tensor, albedo: Tensor, lighting: Tensor
    ) -> tuple[FaceCoefficients, Float[Tensor, "B K"]]:
        """Coefficients at a place of the search, and the shape before it is held within its bounds."""
        start, group, problem = self.start, self.problem.group, self.problem
        new_identity = (self.identity_unit @ identity[..., None])[group]
        change = (self.rest_unit @ rest[..., None] - self.answer @ new_identity)[..., 0]
        expression, turn, shift = change.split((self.model.expression_size, 3, 3), 1)
        shape = torch.cat([start.identity + new_identity[..., 0], start.expression + expression], 1)
        held = torch.minimum(torch.maximum(shape, problem.low), problem.high)
        matrix = axis_angle_to_rotation_matrix(turn) @ axis_angle_to_rotation_matrix(start.rotation)
        coefficients = FaceCoefficients(
            identity=held[:, : self.model.identity_size],
            expression=held[:, self.model.identity_size :],
            albedo=start.albedo + albedo[group],
            lighting=start.lighting + lighting,
            rotation=rotation_matrix_to_axis_angle(matrix),
            translation=start.translation + shift,
        )
        return coefficients, shape

    def energy(
        self, coefficients: FaceCoefficients, shape: Tensor | None, *, spread: Tensor | None = None
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Negative logarithm of each photo's posterior, up to a constant, and the spread of its RGB errors.

        `shape`: the shape before it was held, so that the prior leads it back.
        """
        model, batch, problem = self.model, self.batch, self.problem
        vertices = model.vertices(coefficients.identity, coefficients.expression)
        seen = to_camera_space(vertices, rotation=coefficients.rotation, translation=coefficients.translation)
        ids, _ = rasterize_ids(seen.detach(), model.triangles, batch.camera, rasterizer=self.rasterizer)
        ids = torch.where((ids >= 0) & self.drawn[ids.clamp_min(0)], ids, -1)
        albedo = model.albedo(coefficients.albedo)
        image, _ = lit_surface(seen, albedo, coefficients.lighting, model.triangles, ids, batch.camera)
        mask = (ids >= 0) & batch.mask
        squared = (batch.image - image).square().sum(1)
        if spread is None:
            distance = torch.where(mask, squared.detach().sqrt(), torch.nan).flatten(1)
            spread = distance.nanmedian(1).values.nan_to_num(PIXEL_SPREAD[1]).clamp(*PIXEL_SPREAD)
        photo = robust_distance(squared, spread, mask=mask)
        points = project(model.landmarks(seen), batch.camera)
        landmark = (problem.weights * (points - batch.landmarks).square().sum(2)).sum(1)
        if shape is None:
            shape = torch.cat([coefficients.identity, coefficients.expression], 1)
        prior = (problem.precision * (shape - problem.centre).square()).sum(1)
        tint = squared_norm(coefficients.albedo) / problem.photos_of_person()
        light = light_chroma(coefficients.lighting)
        return self.photo_weight * photo + 0.5 * (landmark + prior + tint) + LIGHT_WEIGHT * light, spread


def robust_distance(
    squared: Float[Tensor, "B H W"], spread: Float[Tensor, "B"], *, mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B"]:
    """Mean over the mask of half the logarithm of 1 + d² / spread², for squared RGB distances d².

    Glasses, hair and highlights are far from anything a face can be, and soon count no more.
    Degenerate: a face without a masked pixel returns 0.
    Source: the Cauchy (Lorentzian) function, Black and Anandan 1996.
    """
    value = 0.5 * torch.log1p(squared / spread[:, None, None].square()) * mask
    return value.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)


def _whitening(problem: LandmarkProblem, state: FaceState) -> tuple[Tensor, Tensor, Tensor]:
    """`identity_unit`, `rest_unit` and `answer` of the search: a triangular root of the landmark energy's matrix."""
    normal, _ = problem.normal_system(state)
    # In double precision, because depth and size trade places up to one part in a million.
    normal = normal.double()
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal.add_(1e-9 * diagonal.amax(1, keepdim=True)).mul_(1.0 + 1e-6)
    count = problem.identities
    own, mixed = normal[:, count:, count:], normal[:, count:, :count]
    factor = torch.linalg.cholesky(own)
    answer = torch.cholesky_solve(mixed, factor)
    left = normal[:, :count, :count] - mixed.transpose(1, 2) @ answer
    people = int(problem.group.max()) + 1
    shared = left.new_zeros(people, count, count).index_add_(0, problem.group, left)
    units = []
    for triangle in (torch.linalg.cholesky(shared), factor):
        one = torch.eye(triangle.shape[1], dtype=triangle.dtype, device=triangle.device).expand_as(triangle)
        units.append(torch.linalg.solve_triangular(triangle.transpose(1, 2), one, upper=True))
    identity_unit, rest_unit, answer = (value.to(state.shape) for value in (*units, answer))
    return identity_unit, rest_unit, answer


def _chosen(chosen: Bool[Tensor, "B"], first: FaceCoefficients, second: FaceCoefficients) -> FaceCoefficients:
    """The chosen faces of the first, the rest of the second."""
    values = {}
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        values[field.name] = torch.where(chosen.view(-1, *[1] * (one.dim() - 1)), one, other)
    return FaceCoefficients(**values)
