"""Several checkpoints asked about the same photo: what they say together, and how far they are apart.

Members of one face model are averaged in its coefficients; members of others in their vertices, after alignment, if
they share a topology. How far the members lie apart, vertex by vertex, is a measure of what nobody can know: it grows
where training left the answer open. What the photo itself leaves open is told by the covariance of its identity
(models/reconstruction/aggregate.py); the two add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from kornia.geometry.conversions import axis_angle_to_rotation_matrix, rotation_matrix_to_axis_angle
from torch import Tensor, nn

from models.face.alignment import rigid_alignment, transform
from models.face.morphable import MorphableModel
from models.reconstruction.reconstructor import Reconstructor
from models.types import FaceCoefficients

ALIGNMENT_ROUNDS = 3
"""Rounds in which shapes are aligned to their mean; the second already moves it by less than a micrometre."""


@dataclass(frozen=True)
class AveragedShapes:
    """What members say of neutral shapes."""

    vertices: Float[Tensor, "B V 3"]
    """Their mean, mm."""
    spread: Float[Tensor, "B V"]
    """Standard deviation of each vertex in mm: root of the summed variances of x, y and z."""


class Ensemble(Reconstructor):
    """A reconstructor that asks several and gives their mean, in the face model of the first."""

    def __init__(self, members: Sequence[Reconstructor]) -> None:
        """Members must cut photos alike, and their face models must share a topology.

        Raises: ValueError if they do not, or if there is none.
        """
        if not members:
            raise ValueError("ensemble: no members, expected at least one")
        nn.Module.__init__(self)
        first = members[0]
        for member in members[1:]:
            for name in ("crop_size_px", "crop_scale"):
                here, there = getattr(first.settings, name), getattr(member.settings, name)
                if here != there:
                    raise ValueError(f"ensemble: checkpoints of {name} {here:g} and {there:g}, expected one for all")
            if not torch.equal(first.model.triangles, member.model.triangles):
                raise ValueError(
                    f"ensemble: face models {first.model.name} and {member.model.name} differ in topology; choose "
                    "checkpoints of one face model"
                )
        self.members = nn.ModuleList(members)
        self.model, self.settings = first.model, first.settings
        self.encoder = first.encoder
        self.sets = first.sets if all(member.sets is not None for member in members) else None
        self.one_basis = len({member.model.content_hash() for member in members}) == 1

    def forward(
        self,
        image: Float[Tensor, "B 3 S S"],
        landmarks: Float[Tensor, "B 68 2"],
        confidence: Float[Tensor, "B 68"],
    ) -> FaceCoefficients:
        """The mean of the members' answers."""
        found = self.answers(image, landmarks, confidence)
        if self.one_basis:
            return average_coefficients(found)
        models = [member.model for member in self._members()]
        # Another basis: pose and light can be averaged all the same, shape only as vertices.
        averaged = self.shapes(found)
        alike = [one for model, one in zip(models, found, strict=True) if _same_appearance(model, self.model)]
        shared = average_coefficients([replace(one, identity=found[0].identity) for one in alike])
        placed = average_coefficients(
            [
                replace(found[0], lighting=one.lighting, rotation=one.rotation, translation=one.translation)
                for one in found
            ]
        )
        return replace(
            placed,
            identity=nearest_identity(self.model, averaged.vertices),
            expression=shared.expression,
            albedo=shared.albedo,
        )

    def set_confidence(
        self, landmarks: Float[Tensor, "B 68 2"], confidence: Float[Tensor, "B 68"]
    ) -> Float[Tensor, "B I"]:
        """The geometric mean of what the members of the first one's face model have learned.

        Raises: ValueError if one of them has not.
        """
        own = self.model.content_hash()
        found = [
            member.set_confidence(landmarks, confidence).log()
            for member in self._members()
            if member.model.content_hash() == own
        ]
        return torch.stack(found).mean(0).exp()

    def identity_map(self) -> tuple[Float[Tensor, "I I"], Float[Tensor, "I"]]:
        """The mean of those of the members of the first one's face model."""
        own = self.model.content_hash()
        found = [member.identity_map() for member in self._members() if member.model.content_hash() == own]
        return torch.stack([matrix for matrix, _ in found]).mean(0), torch.stack([last for _, last in found]).mean(0)

    def answers(
        self,
        image: Float[Tensor, "B 3 S S"],
        landmarks: Float[Tensor, "B 68 2"],
        confidence: Float[Tensor, "B 68"],
    ) -> list[FaceCoefficients]:
        """What each member says, in its own face model."""
        return [member(image, landmarks, confidence) for member in self._members()]

    def shapes(self, answers: Sequence[FaceCoefficients]) -> AveragedShapes:
        """Mean and spread of the members' neutral faces."""
        return average_shapes(
            [member.model.vertices(one.identity) for member, one in zip(self._members(), answers, strict=True)]
        )

    def _members(self) -> list[Reconstructor]:
        return [member for member in self.members if isinstance(member, Reconstructor)]


def _same_appearance(model: MorphableModel, other: MorphableModel) -> bool:
    """Whether expression and albedo mean the same."""
    return (
        model.expression_names == other.expression_names
        and torch.equal(model.expression_basis, other.expression_basis)
        and torch.equal(model.albedo_basis, other.albedo_basis)
    )


def average_coefficients(members: Sequence[FaceCoefficients]) -> FaceCoefficients:
    """The mean of what members of one face model say of the same photos; rotations are averaged as rotations.

    Raises: ValueError if there is no member, or if they differ in shape.
    """
    if not members:
        raise ValueError("ensemble: no members, expected at least one")
    values: dict[str, Tensor] = {}
    for field in fields(FaceCoefficients):
        found = [getattr(member, field.name) for member in members]
        shapes = {tuple(one.shape) for one in found}
        if len(shapes) > 1:
            raise ValueError(
                f"ensemble: {field.name} of shapes {', '.join(map(str, sorted(shapes)))}, expected one basis; average "
                "the vertices instead"
            )
        stacked = torch.stack(found)
        values[field.name] = mean_rotation(stacked) if field.name == "rotation" else stacked.mean(0)
    return FaceCoefficients(**values)


def mean_rotation(rotations: Float[Tensor, "M B 3"]) -> Float[Tensor, "B 3"]:
    """The rotation (axis-angle) that is nearest to all: the mean of the matrices, made a rotation.

    Source: the chordal mean, Moakher 2002.
    """
    matrices = axis_angle_to_rotation_matrix(rotations.flatten(0, 1)).unflatten(0, rotations.shape[:2]).mean(0)
    left, _, right = torch.linalg.svd(matrices)
    sign = torch.ones_like(matrices[:, 0])
    sign[:, 2] = torch.det(left @ right)
    return rotation_matrix_to_axis_angle(left @ (sign[..., None] * right))


def average_shapes(shapes: Sequence[Float[Tensor, "B V 3"]]) -> AveragedShapes:
    """Mean and spread of several meshes of the same faces, in one topology, each aligned rigidly to their mean.

    Convention: scale is a face's own and is not taken away. The spread is that of a sample, over members less one.
    Degenerate: a single member has no spread.
    Raises: ValueError if there is none, or if they are not in one topology.
    """
    if not shapes:
        raise ValueError("ensemble: no members, expected at least one")
    counts = sorted({shape.shape[1] for shape in shapes})
    if len(counts) > 1:
        raise ValueError(
            f"ensemble: meshes of {', '.join(map(str, counts))} vertices, expected one topology; choose checkpoints of "
            "one face model"
        )
    moved = torch.stack(list(shapes))
    members, faces = moved.shape[:2]
    mean = moved[0]
    for _ in range(ALIGNMENT_ROUNDS):
        target = mean.expand_as(moved).flatten(0, 1)
        rotation, translation, _ = rigid_alignment(moved.flatten(0, 1), target)
        moved = transform(moved.flatten(0, 1), rotation, translation).unflatten(0, (members, faces))
        mean = moved.mean(0)
    variance = (moved - mean).square().sum((0, 3)) / max(1, members - 1)
    return AveragedShapes(vertices=mean, spread=variance.sqrt())


def posterior_spread(model: MorphableModel, covariance: Float[Tensor, "B I I"]) -> Float[Tensor, "B V"]:
    """Standard deviation in mm of each vertex of a neutral face whose identity is known up to a covariance.

    Convention: as of `AveragedShapes`, after the best small rigid motion, which is not shape.
    """
    basis = without_rigid_motion(model.identity_basis, model.mean)
    factor, _ = torch.linalg.cholesky_ex(covariance.double())
    moved = factor.transpose(1, 2).to(basis) @ basis.flatten(1)
    return moved.unflatten(2, (-1, 3)).square().sum((1, 3)).sqrt()


def without_rigid_motion(basis: Float[Tensor, "I V 3"], mean: Float[Tensor, "V 3"]) -> Float[Tensor, "I V 3"]:
    """What modes do to a face beside shifting it and turning it a little."""
    axes = torch.eye(3, dtype=mean.dtype, device=mean.device)
    centred = mean - mean.mean(0)
    turns = torch.linalg.cross(axes[:, None].expand(-1, len(mean), -1), centred.expand(3, -1, -1))
    shifts = axes[:, None].expand(-1, len(mean), -1)
    motions, _ = torch.linalg.qr(torch.cat([turns, shifts]).flatten(1).T.double())
    flat = basis.flatten(1).double()
    return (flat - (flat @ motions) @ motions.T).to(basis.dtype).unflatten(1, (-1, 3))


def nearest_identity(model: MorphableModel, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B I"]:
    """The identity of a face model whose neutral face is nearest to meshes in its topology, in least squares.

    The meshes are aligned first; pose is not shape.
    """
    rotation, translation, _ = rigid_alignment(vertices, model.mean.expand_as(vertices))
    offsets = (transform(vertices, rotation, translation) - model.mean).flatten(1)
    basis = without_rigid_motion(model.identity_basis, model.mean).flatten(1).double()
    gram = basis @ basis.T
    ridge = 1e-9 * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, basis @ offsets.double().T).T.to(vertices.dtype)
