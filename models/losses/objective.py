"""The weighted sum of a training step: which terms exist, what each needs, and how they are put together.

Gradients are routed as in method A.2: on labelled photos the mesh terms reach shape only (their pose is a label moved
onto the prediction), and the `…_on_scan` terms draw the label itself, so they reach pose, light and albedo only.
Terms of persons (method D) reach identity only, and what is remembered of persons from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.face.camera import angles_from_rotation, project, to_camera_space
from models.face.morphable import MorphableModel
from models.losses.coefficients import light_chroma, squared_norm
from models.losses.geometry import align_scan, normal_distance, vertex_distance
from models.losses.identity import (
    center_distance,
    distance_separation,
    distribution,
    frontal_neutral_weight,
    separation,
)
from models.losses.image import landmark_distance, photo_distance
from models.losses.likelihood import FLIPPED_WEIGHT, laplacian_likelihood
from models.losses.needs import NEEDS
from models.losses.priors import (
    albedo_variance,
    asymmetry_basis,
    attended_photo_distance,
    skin_attention,
    symmetry_distance,
)
from models.reconstruction.confidence import ConfidenceNetwork
from models.rendering.render import render
from models.rendering.shade import vertex_normals
from models.training.person_memory import PersonMemory
from models.types import Batch, FaceCoefficients, Rendering, Scan


@dataclass(frozen=True)
class Step:
    """A batch with its predicted coefficients; what several terms share is computed once and only when asked for."""

    model: MorphableModel
    batch: Batch
    coefficients: FaceCoefficients
    shape_weights: Float[Tensor, "V"]
    """How much each vertex counts in the mesh terms."""
    landmark_identity: Float[Tensor, "B I"]
    """Identity as the pretrained geometry branch reads it from the landmarks alone."""
    identity_embedding: Float[Tensor, "I I"]
    """Turns differences of identity into millimetres, see `geometry_embedding`."""
    rasterizer: str = "auto"
    """One of `RASTERIZERS`, or `auto`."""
    memory: PersonMemory | None = None
    """What is known of the batch's persons, for terms that need it."""
    confidence: ConfidenceNetwork | None = None
    mirror: Int[Tensor, "V"] | None = None
    """The vertex on the other side of the face, for terms that need the network of confidence."""

    @cached_property
    def vertices(self) -> Float[Tensor, "B V 3"]:
        """Predicted mesh in model space."""
        return self.model.vertices(self.coefficients.identity, self.coefficients.expression)

    @cached_property
    def seen(self) -> Float[Tensor, "B V 3"]:
        """Predicted mesh in camera space."""
        return self.pose(self.vertices)

    @cached_property
    def scan(self) -> Scan:
        """The labels, moved onto the prediction."""
        if self.batch.scan is None:
            raise ValueError(f"source {self.batch.source}: has no labelled meshes, but a loss needs them")
        return align_scan(self.batch.scan, self.model.landmarks(self.vertices))

    @cached_property
    def embedding(self) -> Float[Tensor, "B I"]:
        """Identity in millimetres, see `geometry_embedding`."""
        return self.coefficients.identity @ self.identity_embedding

    @cached_property
    def persons(self) -> tuple[PersonMemory, Int[Tensor, "B"]]:
        """The memory of persons, and the row in it of every face's person."""
        if self.memory is None:
            raise ValueError(f"source {self.batch.source}: no persons are remembered, but a loss needs them")
        return self.memory, self.memory.rows_of(self.batch.person)

    @cached_property
    def person_weight(self) -> Float[Tensor, "B"]:
        """How much each photo says of its person's shape; without gradient."""
        angles = angles_from_rotation(self.coefficients.rotation.detach())
        return frontal_neutral_weight(angles, self.coefficients.expression.detach())

    def note(self, terms: Mapping[str, float]) -> None:
        """Tell the memory what it keeps of this batch for the given terms; `settle` makes it so after the step."""
        if "center" in terms or "distance_separation" in terms:
            memory, rows = self.persons
            memory.note_centers(rows, self.embedding, self.person_weight)
        if "distribution" in terms:
            self.persons[0].note_moments(self.coefficients.identity)

    def pose(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
        """Model space to camera space under the predicted pose."""
        return to_camera_space(vertices, rotation=self.coefficients.rotation, translation=self.coefficients.translation)

    def draw(self, seen: Float[Tensor, "B V 3"], *, mirrored: bool = False) -> Rendering:
        """Render a mesh in camera space with the predicted albedo, or its mirror image, and the predicted light."""
        albedo = self.model.albedo(self.coefficients.albedo)
        return render(
            seen,
            self.model.triangles,
            albedo=albedo[:, self.mirror] if mirrored else albedo,
            lighting=self.coefficients.lighting,
            camera=self.batch.camera,
            rasterizer=self.rasterizer,
        )


def _photo(step: Step, seen: Tensor) -> Tensor:
    drawn = step.draw(seen)
    return photo_distance(step.batch.image, drawn.image, mask=drawn.mask & step.batch.mask)


def _skin_photo(step: Step) -> Tensor:
    """The photo where it shows this face's skin, see `skin_attention`."""
    drawn = step.draw(step.seen)
    attention = skin_attention(step.batch.image, drawn.mask & step.batch.mask)
    return attended_photo_distance(step.batch.image, drawn.image, attention=attention)


def _symmetry(step: Step) -> Tensor:
    return symmetry_distance(step.coefficients.identity, asymmetry_basis(step.model).to(step.vertices))


def _landmark(step: Step, seen: Tensor) -> Tensor:
    points = project(step.model.landmarks(seen), step.batch.camera)
    return landmark_distance(points, step.batch.landmarks, confidence=step.batch.confidence, camera=step.batch.camera)


def _vertex(step: Step) -> Tensor:
    return vertex_distance(step.vertices, step.scan.vertices, weights=step.shape_weights)


def _normal(step: Step) -> Tensor:
    normals = vertex_normals(step.vertices, step.model.triangles)
    return normal_distance(normals, step.scan.normals, weights=step.shape_weights)


def _identity_anchor(step: Step) -> Tensor:
    """Squared distance in mm² from the shape that the landmarks tell.

    That shape is the mean of what the landmarks leave possible, so the image has to move it, not the mean face: a
    photo loss alone would trade identity for light and albedo long before it knows either.
    """
    return squared_norm((step.coefficients.identity - step.landmark_identity) @ step.identity_embedding)


def _separation(step: Step) -> Tensor:
    memory, rows = step.persons
    return separation(step.embedding, rows, memory.class_weights)


def _distance_separation(step: Step) -> Tensor:
    memory, rows = step.persons
    return distance_separation(step.embedding, rows, memory.centers)


def _center(step: Step) -> Tensor:
    memory, rows = step.persons
    return center_distance(step.embedding, memory.centers[rows])


def _distribution(step: Step) -> Tensor:
    memory, _ = step.persons
    return distribution(step.coefficients.identity, memory.mean, memory.square)


def _photo_likelihood(step: Step) -> Tensor:
    """The photo explained by the face with its own skin and, half as much, with its skin mirrored."""
    if step.confidence is None:
        raise ValueError(f"source {step.batch.source}: a loss needs the network of confidence, but there is none")
    sigma = step.confidence(step.batch.image)
    values = []
    for mirrored, weight in ((False, 1.0), (True, FLIPPED_WEIGHT)):
        drawn = step.draw(step.seen, mirrored=mirrored)
        mask = drawn.mask & step.batch.mask
        values.append(weight * laplacian_likelihood(step.batch.image, drawn.image, sigma[:, int(mirrored)], mask=mask))
    return torch.stack(values).sum(0)


@dataclass(frozen=True)
class Term:
    """A loss per face, and what it needs beside photo and landmarks, see `NEEDS`."""

    value: Callable[[Step], Tensor]
    needs: frozenset[str]


VALUES: dict[str, Callable[[Step], Tensor]] = {
    "photo": lambda step: _photo(step, step.seen),
    "landmark": lambda step: _landmark(step, step.seen),
    "vertex": _vertex,
    "normal": _normal,
    "photo_on_scan": lambda step: _photo(step, step.pose(step.scan.vertices)),
    "landmark_on_scan": lambda step: _landmark(step, step.pose(step.scan.vertices)),
    "photo_likelihood": _photo_likelihood,
    "separation": _separation,
    "distance_separation": _distance_separation,
    "center": _center,
    "distribution": _distribution,
    "identity_anchor": _identity_anchor,
    "identity_prior": lambda step: squared_norm(step.coefficients.identity),
    "expression_prior": lambda step: squared_norm(step.coefficients.expression),
    "albedo_prior": lambda step: squared_norm(step.coefficients.albedo),
    "light_prior": lambda step: light_chroma(step.coefficients.lighting),
    "skin_photo": _skin_photo,
    "albedo_variance": lambda step: albedo_variance(
        step.model.albedo(step.coefficients.albedo), step.model.part("skin")
    ),
    "symmetry": _symmetry,
}

TERMS: dict[str, Term] = {name: Term(VALUES[name], needs) for name, needs in NEEDS.items()}
"""Every loss that `params.yaml` may name."""


LAST_SHARES = {"symmetry": 0.2}
"""Share of their weight that priors end with, falling evenly over a stage: early they guide, late the photo knows."""


def objective(step: Step, weights: Mapping[str, float]) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Weighted sum of the mean of every named term, and the unweighted means for the log.

    Raises: KeyError for an unknown term, ValueError if a term needs labels that the batch lacks.
    """
    means = {name: TERMS[name].value(step).mean() for name in weights}
    total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
    return total, {name: mean.detach() for name, mean in means.items()}
