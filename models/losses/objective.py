"""The weighted sum of a training step: which terms exist, what each needs, and how they are put together.

Gradients are routed as in method A.2: on labelled photos the mesh terms reach shape only (their pose is a label moved
onto the prediction), and the `…_on_scan` terms draw the label itself, so they reach pose, light and albedo only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from models.face.camera import project, to_camera_space
from models.face.morphable import MorphableModel
from models.losses.coefficients import light_chroma, squared_norm
from models.losses.geometry import align_scan, normal_distance, vertex_distance
from models.losses.image import landmark_distance, photo_distance
from models.rendering.render import render
from models.rendering.shade import vertex_normals
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

    def pose(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
        """Model space to camera space under the predicted pose."""
        return to_camera_space(vertices, rotation=self.coefficients.rotation, translation=self.coefficients.translation)

    def draw(self, seen: Float[Tensor, "B V 3"]) -> Rendering:
        """Render a mesh in camera space with the predicted albedo and light."""
        return render(
            seen,
            self.model.triangles,
            albedo=self.model.albedo(self.coefficients.albedo),
            lighting=self.coefficients.lighting,
            camera=self.batch.camera,
            rasterizer=self.rasterizer,
        )


def _photo(step: Step, seen: Tensor) -> Tensor:
    drawn = step.draw(seen)
    return photo_distance(step.batch.image, drawn.image, mask=drawn.mask & step.batch.mask)


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


@dataclass(frozen=True)
class Term:
    """A loss per face, and what it needs from its source beside photo and landmarks."""

    value: Callable[[Step], Tensor]
    needs: frozenset[str] = field(default_factory=frozenset)


SCAN = frozenset({"scan"})

TERMS: dict[str, Term] = {
    "photo": Term(lambda step: _photo(step, step.seen)),
    "landmark": Term(lambda step: _landmark(step, step.seen)),
    "vertex": Term(_vertex, SCAN),
    "normal": Term(_normal, SCAN),
    "photo_on_scan": Term(lambda step: _photo(step, step.pose(step.scan.vertices)), SCAN),
    "landmark_on_scan": Term(lambda step: _landmark(step, step.pose(step.scan.vertices)), SCAN),
    "identity_anchor": Term(_identity_anchor),
    "identity_prior": Term(lambda step: squared_norm(step.coefficients.identity)),
    "expression_prior": Term(lambda step: squared_norm(step.coefficients.expression)),
    "albedo_prior": Term(lambda step: squared_norm(step.coefficients.albedo)),
    "light_prior": Term(lambda step: light_chroma(step.coefficients.lighting)),
}
"""Every loss that `params.yaml` may name: L1 to L6 of method A in this order, then the priors."""


def objective(step: Step, weights: Mapping[str, float]) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Weighted sum of the mean of every named term, and the unweighted means for the log.

    Raises: KeyError for an unknown term, ValueError if a term needs labels that the batch lacks.
    """
    means = {name: TERMS[name].value(step).mean() for name in weights}
    total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
    return total, {name: mean.detach() for name, mean in means.items()}
