"""The data types that every layer shares: what a face is, where the camera stands, what a batch holds.

Convention: model space is right-handed, +x the subject's left, +y up, +z out of the face, millimetres.
Camera space is x right, y down, z forward, millimetres. Pixels are x right, y down, with pixel centres at +0.5.
B is the batch, V vertices, F triangles, L landmarks, H and W the image's height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LANDMARK_COUNT = 68

JAW_COUNT = 17
"""Points of the jaw, the first of the 68."""
"""Points of the iBUG annotation: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, outer lips 48-59, inner lips 60-67."""

MIRRORED_LANDMARKS = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    *range(27, 31),
    *range(35, 30, -1),
    *(45, 44, 43, 42, 47, 46),
    *(39, 38, 37, 36, 41, 40),
    *range(54, 47, -1),
    *range(59, 54, -1),
    *range(64, 59, -1),
    *range(67, 64, -1),
)
"""Index of every landmark's mirror image; its own inverse."""

PART_NAMES = ("skin", "lips", "brows", "eyes", "mouth")
"""What a vertex belongs to; `MorphableModel.parts` holds indices into this. `mouth` is the inside of the mouth."""

TensorFields = TypeVar("TensorFields")


def to_device(value: TensorFields, device: torch.device | str) -> TensorFields:
    """Copy of a dataclass of this module with every tensor, also in nested ones, on `device`."""
    return map_tensors(value, lambda tensor: tensor.to(device))


def map_tensors(value: TensorFields, function) -> TensorFields:  # type: ignore[no-untyped-def]
    """Copy of a dataclass of this module with `function` applied to every tensor, also in nested dataclasses."""
    changed = {}
    for field in fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        if isinstance(item, Tensor):
            changed[field.name] = function(item)
        elif hasattr(item, "__dataclass_fields__"):
            changed[field.name] = map_tensors(item, function)
    return replace(value, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class FaceCoefficients:
    """Everything the encoder predicts about one photo of one face."""

    identity: Float[Tensor, "B I"]
    """In standard deviations."""
    expression: Float[Tensor, "B E"]
    """1 is full activation (ARKit-style shapes) or one standard deviation (statistical modes)."""
    albedo: Float[Tensor, "B T"]
    """In standard deviations."""
    lighting: Float[Tensor, "B 9 3"]
    """Second-order spherical harmonics per colour channel, see models/face/lighting.py."""
    rotation: Float[Tensor, "B 3"]
    """Axis-angle in radians, in model space; zero looks straight into the camera."""
    translation: Float[Tensor, "B 3"]
    """Model origin in camera space, millimetres."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion, one per image of the batch."""

    focal_px: Float[Tensor, "B"]
    principal_px: Float[Tensor, "B 2"]
    size: tuple[int, int]
    """(H, W) of the image in pixels."""


@dataclass(frozen=True)
class Mesh:
    """Vertices of a batch of meshes that share one topology."""

    vertices: Float[Tensor, "B V 3"]
    triangles: Int[Tensor, "F 3"]


@dataclass(frozen=True)
class Fragments:
    """What the rasteriser saw: per pixel the nearest triangle. Carries no gradient."""

    triangle_ids: Int[Tensor, "B H W"]
    """Index into the triangles, -1 where nothing was hit."""
    barycentrics: Float[Tensor, "B H W 3"]
    """Perspective-correct weights of the triangle's corners at the pixel centre; zero where nothing was hit."""
    depth: Float[Tensor, "B H W"]
    """Camera z in millimetres; zero where nothing was hit."""


@dataclass(frozen=True)
class Rendering:
    """A shaded image of a face."""

    image: Float[Tensor, "B 3 H W"]
    """RGB, not clamped; zero outside the mask."""
    mask: Bool[Tensor, "B H W"]
    normals: Float[Tensor, "B 3 H W"]
    """Unit normals in camera space; zero outside the mask."""


@dataclass(frozen=True)
class Scan:
    """Labelled meshes in the topology of the morphable model."""

    vertices: Float[Tensor, "B V 3"]
    normals: Float[Tensor, "B V 3"]
    landmarks: Float[Tensor, "B 68 3"]


@dataclass(frozen=True)
class Batch:
    """Aligned crops of one source, with what is known about them."""

    source: str
    sample_ids: tuple[str, ...]
    camera: Camera
    image: Float[Tensor, "B 3 H W"]
    """RGB in [0, 1]."""
    mask: Bool[Tensor, "B H W"]
    """True where the crop lies inside the photo."""
    landmarks: Float[Tensor, "B 68 2"]
    """Detected points in pixels of the crop."""
    confidence: Float[Tensor, "B 68"]
    person: Int[Tensor, "B"]
    scan: Scan | None = None


@dataclass(frozen=True)
class Reconstruction:
    """The 3D face of every image of a batch."""

    coefficients: FaceCoefficients
    mesh: Mesh
    """In camera space."""
    neutral: Float[Tensor, "B V 3"]
    """Model space, identity only: no expression, no pose."""
    landmarks: Float[Tensor, "B 68 2"]
    """Projected model landmarks in pixels of the crop."""
    rendering: Rendering | None = None
