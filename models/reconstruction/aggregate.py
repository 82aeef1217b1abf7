"""One identity from several photos of a person, and what each photo then says of expression, pose and light.

A network answers a photo with the middle of what is possible, so its identities are drawn towards the mean face, each
as far as its photo is silent; their mean is drawn as far, however many photos agree. Here every photo gives evidence
instead: how sharply its landmarks, seen in its pose and at its expression, tell identities apart (the Gauss–Newton
matrix of the landmark error once expression and pose have answered). Evidence adds up, and the prior that faces are
near the mean counts once and not once for every photo.

With identities a_j, evidence L_j and the prior's unit precision: a = (1 + s sum L_j)^-1 s sum (1 + L_j) a_j, where
s = 1 / (1 + (J - 1) r) and r is the share of an error that all J photos of a person have in common, since network and
detector err alike on one face. That is a_1 for a single photo, and the mean for photos that tell all there is. Photos
that are less to be trusted than their landmarks say, such as blurred ones, have less evidence; those that show someone
else are left out.
Source: method B; the information form of fusing Gaussians takes the place of its scalar weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from kornia.geometry.conversions import axis_angle_to_rotation_matrix, rotation_matrix_to_axis_angle
from torch import Tensor

from models.face.camera import project, to_camera_space
from models.face.morphable import MorphableModel
from models.losses.coefficients import geometry_embedding
from models.reconstruction.expression_bounds import expression_bounds
from models.reconstruction.fit import FittedFaces, LandmarkProblem
from models.reconstruction.photo_fit import landmark_precision
from models.types import Batch, FaceCoefficients

METHODS = ("mean", "analytic", "learned")

TEMPER = 0.25
"""Share of the landmarks' information that counts as evidence: neighbouring points err together."""

COMMON_ERROR = 0.1
"""Share of a photo's error that the other photos of the person repeat; measured, see benchmarks/photo_sets.py."""

EXPRESSION_SCALE = 3.0
"""Norm of the expression at which a photo's evidence has fallen to 1 / e. Source: method B."""

LEAST_MISFIT = 0.03
"""Squared misses of the landmarks, in units of their expected squared errors, below which a fit is as good as any."""

OUTLIER_DEVIATIONS = 3.0
"""Median deviations beyond which a photo of a set shows someone else. Source: method B."""

OUTLIER_FLOOR_MM = 0.5
"""Photos that differ by less are never outliers, however much the others agree."""

OUTLIER_PHOTOS = 4
"""Of fewer photos nobody can say which is the odd one."""

MAP_FADING = 2
"""Power of what several photos leave open, as a share of what one does, by which an identity map is still applied.

Measured, benchmarks/photo_sets.py: eight photos have 18 % less error than one where the map is applied as a whole by
the mean of the shares, 21 % where by the share of each direction, 24 % by its square; sets of four photos are less
distinct by 1 and 4 % for it, and by 11 % without the map.
"""


@dataclass(frozen=True)
class Evidence:
    """What the landmarks of each photo can tell."""

    information: Float[Tensor, "B I I"]
    """Precision about identity, in 1 / σ²."""
    answer: Float[Tensor, "B R I"]
    """How expression, turn and translation follow a change of identity so that the landmarks stay explained."""
    misfit: Float[Tensor, "B"]
    """Mean squared miss of the landmarks, each in units of its expected squared error."""


@dataclass(frozen=True)
class Aggregate:
    """The faces of a batch after the photos of each person have been put together."""

    coefficients: FaceCoefficients
    """Identity and albedo are the person's; the others answer them photo by photo."""
    weight: Float[Tensor, "B"]
    """Share of each photo in its person's identity; they add up to 1 over a person."""
    kept: Bool[Tensor, "B"]
    """Whether the photo counted."""
    shrinkage: Float[Tensor, "B"]
    """Norm of the person's mean identity over the mean norm of its photos': below 1 where they disagree."""
    norm_ratio: Float[Tensor, "B"]
    """The same of the identity that was found."""
    covariance: Float[Tensor, "B I I"]
    """Of the person's identity, in σ²."""


def landmark_evidence(
    model: MorphableModel, batch: Batch, coefficients: FaceCoefficients, *, temper: float = TEMPER
) -> Evidence:
    """What the landmarks of each photo, at the pose and expression found, can tell about identity.

    Method: the normal matrix of the landmark error with its prior on expression, less what expression and pose explain
    (Schur complement), in double precision because depth and size trade places.
    """
    count = model.identity_size
    start = FittedFaces(coefficients.identity, coefficients.expression, coefficients.rotation, coefficients.translation)
    precision = landmark_precision(batch.landmarks, batch.confidence, temper=temper)
    problem = LandmarkProblem.build(model, batch.landmarks, precision, batch.camera, start=start)
    normal, _ = problem.normal_system(problem.start)
    normal = normal.double()
    normal.diagonal(dim1=1, dim2=2)[:, :count].sub_(1.0)
    own, mixed = normal[:, count:, count:].clone(), normal[:, count:, :count]
    diagonal = own.diagonal(dim1=1, dim2=2)
    diagonal.add_(1e-9 * diagonal.amax(1, keepdim=True))
    answer = torch.cholesky_solve(mixed, torch.linalg.cholesky(own))
    information = normal[:, :count, :count] - mixed.transpose(1, 2) @ answer
    points = model.landmark_points(coefficients.identity, coefficients.expression)
    seen = to_camera_space(points, rotation=coefficients.rotation, translation=coefficients.translation)
    missed = (project(seen, batch.camera) - batch.landmarks).square().sum(2)
    misfit = (precision / temper * missed).sum(1) / (2 * missed.shape[1])
    return Evidence((information + information.transpose(1, 2)) / 2.0, answer, misfit)


def fuse_identities(
    identity: Float[Tensor, "B I"],
    information: Float[Tensor, "B I I"],
    trust: Float[Tensor, "B"],
    group: Int[Tensor, "B"],
    *,
    common_error: float | Float[Tensor, ""] = COMMON_ERROR,
) -> tuple[Float[Tensor, "P I"], Float[Tensor, "P I I"]]:
    """The identity of each person (0 to P - 1 in `group`) and its covariance.

    `trust` in [0, 1] is a photo's part of its own evidence relative to the best photo of the person; 0 leaves it out.
    Differentiable in everything but the group.
    """
    people = int(group.max()) + 1
    one = torch.eye(identity.shape[1], dtype=information.dtype, device=information.device)
    said = ((one + information) @ identity.to(information)[..., None])[..., 0]
    trust = trust.to(information)
    # Unequal trust counts as fewer photos.
    photos = _sum_by(trust, group, people).square() / _sum_by(trust.square(), group, people).clamp_min(1e-12)
    share = 1.0 / (1.0 + (photos - 1.0).clamp_min(0.0) * common_error)
    total = one + share[:, None, None] * _sum_by(trust[:, None, None] * information, group, people)
    heard = share[:, None] * _sum_by(trust[:, None] * said, group, people)
    factor = torch.linalg.cholesky(total)
    fused = torch.cholesky_solve(heard[..., None], factor)[..., 0]
    return fused.to(identity), torch.cholesky_inverse(factor).to(identity)


def photo_trust(
    batch: Batch, coefficients: FaceCoefficients, misfit: Float[Tensor, "B"], group: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """How much of its evidence each photo deserves, relative to the best photo of its person, in (0, 1].

    Photos whose landmarks no face explains are trusted least: there the detector went astray, be it by blur, a hand or
    an edge of the photo. Neutral faces are trusted more than grimaces, and whole ones more than those that are cut off.
    Pose needs no word here: the evidence itself knows what a profile cannot tell.
    Source: method B's factors, but for those of pose.
    """
    neutral = torch.exp(-coefficients.expression.norm(dim=1) / EXPRESSION_SCALE)
    inside = batch.mask.flatten(1).float().mean(1)
    trust = (neutral * inside / (LEAST_MISFIT + misfit)).clamp_min(1e-6)
    return relative_trust(trust, group)


def relative_trust(trust: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Trust as shares of the largest of each group; zero where nothing of a group is trusted."""
    best = trust.new_zeros(int(group.max()) + 1).scatter_reduce(0, group, trust, "amax", include_self=False)
    return trust / best.clamp_min(1e-12)[group]


def without_outliers(
    identity: Float[Tensor, "B I"], embedding: Float[Tensor, "I I"], group: Int[Tensor, "B"]
) -> Bool[Tensor, "B"]:
    """Which photos show the same person as the others of their group.

    A photo is left out if its distance in mm (RMS of vertices) from the median identity exceeds the usual distance by
    more than three median deviations; at least half of a person's photos stay.
    Degenerate: of fewer than four photos all stay.
    """
    kept = torch.ones(len(identity), dtype=torch.bool, device=identity.device)
    for person in range(int(group.max()) + 1):
        places = torch.nonzero(group == person)[:, 0]
        if len(places) < OUTLIER_PHOTOS:
            continue
        shapes = identity[places] @ embedding
        distance = (shapes - shapes.quantile(0.5, dim=0)).norm(dim=1)
        usual = distance.quantile(0.5)
        deviation = 1.4826 * (distance - usual).abs().quantile(0.5)
        limit = usual + torch.maximum(OUTLIER_DEVIATIONS * deviation, deviation.new_tensor(OUTLIER_FLOOR_MM))
        kept[places] = distance <= limit
    return kept


def weighted_evidence(information: Float[Tensor, "B I I"], confidence: Float[Tensor, "B I"]) -> Float[Tensor, "B I I"]:
    """Evidence under factors per coefficient."""
    root = confidence.to(information).sqrt()
    return information * root[:, :, None] * root[:, None, :]


@torch.no_grad()
def aggregate(
    model: MorphableModel,
    batch: Batch,
    coefficients: FaceCoefficients,
    *,
    method: str,
    person: Int[Tensor, "B"] | None = None,
    confidence: Float[Tensor, "B I"] | None = None,
    identity_map: tuple[Float[Tensor, "I I"], Float[Tensor, "I"]] | None = None,
) -> Aggregate:
    """One identity and albedo for all photos of a person; `person` says who is who, else the batch's own.

    `mean` takes plain means, `analytic` the evidence of each photo without outliers, `learned` the same under the
    `confidence` of a head. Expression and pose follow the new identity so that landmarks stay explained, and light
    follows albedo so that skin keeps its colour in the photo.
    `identity_map` is what a network ends with that does not leave identities at the middle of what is possible, see
    `Reconstructor.identity_map`: evidence is put together before it, and the result goes through it. It drops what one
    photo cannot tell; so the more several photos tell of a direction of shape, the less of it is done there, except for
    `mean`, which does not know.
    Raises: ValueError for another method, or if learned confidences are wanted but not given.
    """
    if method not in METHODS:
        raise ValueError(f"aggregation {method!r} is unknown, expected one of {', '.join(METHODS)}")
    if method == "learned" and confidence is None:
        raise ValueError("aggregation 'learned' needs the confidences of a trained head; give them, or take 'analytic'")
    if identity_map is not None:
        matrix, offset = (value.to(coefficients.identity).double() for value in identity_map)
        before = torch.linalg.solve(matrix, (coefficients.identity.double() - offset).T).T
        coefficients = replace(coefficients, identity=before.to(coefficients.identity))
    group = torch.unique(batch.person if person is None else person, return_inverse=True)[1]
    people = int(group.max()) + 1 if len(group) else 0
    evidence = landmark_evidence(model, batch, coefficients)
    information, identity = evidence.information, coefficients.identity
    kept = torch.ones(len(group), dtype=torch.bool, device=group.device)
    trust = kept.to(identity)
    if method != "mean":
        kept = without_outliers(identity, geometry_embedding(model.identity_basis, model.mean), group)
        trust = photo_trust(batch, coefficients, evidence.misfit, group) * kept
        trust = relative_trust(trust, group)
        if method == "learned":
            assert confidence is not None
            information = weighted_evidence(information, confidence)
    fused, covariance = fuse_identities(identity, information, trust, group)
    mean = _mean_by(identity, torch.ones_like(trust), group, people)
    if method == "mean":
        fused = mean
    weight = trust * information.diagonal(dim1=1, dim2=2).sum(1).to(trust) if method != "mean" else trust
    weight = weight / _sum_by(weight, group, people).clamp_min(1e-12)[group]
    albedo = _mean_by(coefficients.albedo, weight, group, people)[group]
    norm = _mean_by(identity.norm(dim=1, keepdim=True), torch.ones_like(trust), group, people).clamp_min(1e-12)[:, 0]
    answered = _answered(model, coefficients, fused[group], evidence.answer)
    if identity_map is not None:
        read = answered.identity.double()
        change = read @ matrix.T + offset - read
        if method != "mean":
            share = torch.linalg.matrix_power(left_open(information, covariance, group), MAP_FADING)
            change = (share[group] @ change[..., None])[..., 0]
        ended = read + change
        answered = replace(answered, identity=ended.to(answered.identity))
    return Aggregate(
        coefficients=replace(
            answered, albedo=albedo, lighting=_relit(model, coefficients.lighting, coefficients.albedo, albedo)
        ),
        weight=weight,
        kept=kept,
        shrinkage=(mean.norm(dim=1) / norm)[group],
        norm_ratio=(fused.norm(dim=1) / norm)[group],
        covariance=covariance[group],
    )


def left_open(
    information: Float[Tensor, "B I I"], covariance: Float[Tensor, "P I I"], group: Int[Tensor, "B"]
) -> Float[Tensor, "P I I"]:
    """Covariance of each person's identity over that which one of the photos leaves on average: one for one photo."""
    one = torch.eye(information.shape[1], dtype=information.dtype, device=information.device)
    alone = torch.linalg.inv(one + information)
    single = _mean_by(alone.flatten(1), torch.ones_like(alone[:, 0, 0]), group, len(covariance)).view_as(covariance)
    return torch.linalg.solve(single, covariance.to(single), left=False)


def _answered(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    identity: Float[Tensor, "B I"],
    answer: Float[Tensor, "B R I"],
) -> FaceCoefficients:
    """The coefficients with another identity, and with what expression and pose make of it, to first order."""
    change = -(answer @ (identity - coefficients.identity).to(answer)[..., None])[..., 0].to(identity)
    expression, turn, shift = change.split((model.expression_size, 3, 3), 1)
    low, high = expression_bounds(model, identity)
    matrix = axis_angle_to_rotation_matrix(turn) @ axis_angle_to_rotation_matrix(coefficients.rotation)
    return replace(
        coefficients,
        identity=identity,
        expression=torch.minimum(torch.maximum(coefficients.expression + expression, low), high),
        rotation=rotation_matrix_to_axis_angle(matrix),
        translation=coefficients.translation + shift,
    )


def _relit(
    model: MorphableModel,
    lighting: Float[Tensor, "B 9 3"],
    before: Float[Tensor, "B T"],
    after: Float[Tensor, "B T"],
) -> Float[Tensor, "B 9 3"]:
    """The light under which skin of another albedo has the same mean colour in the photo."""
    skin = model.part("skin")
    skin = skin if bool(skin.any()) else torch.ones_like(skin)
    colours = [model.albedo(one)[:, skin].mean(1).clamp_min(1e-3) for one in (before, after)]
    return lighting * (colours[0] / colours[1])[:, None]


def _sum_by(values: Float[Tensor, "B *N"], group: Int[Tensor, "B"], people: int) -> Float[Tensor, "P *N"]:
    return values.new_zeros(people, *values.shape[1:]).index_add_(0, group, values)


def _mean_by(
    values: Float[Tensor, "B N"], weight: Float[Tensor, "B"], group: Int[Tensor, "B"], people: int
) -> Float[Tensor, "P N"]:
    total = _sum_by(weight, group, people).clamp_min(1e-12)
    return _sum_by(weight[:, None] * values, group, people) / total[:, None]
