"""Differentiable normals and attributes of the pixels that the rasteriser found, whatever backend found them.

On the processor, in single and double precision, compiled kernels with backward passes written by hand do the work;
elsewhere pure torch, which is also their reference.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.rendering.shade_torch import (
    MIN_GRADIENT_AREA_PX,
    interpolate_torch,
    lit_surface_torch,
    vertex_normals_torch,
)
from models.types import Camera

__all__ = ["MIN_GRADIENT_AREA_PX", "interpolate", "is_compiled_for", "lit_surface", "vertex_normals"]


def is_compiled_for(camera: Camera | None, *tensors: Tensor) -> bool:
    """Whether the kernels take these: on the processor, of one precision, and no gradient wanted for the camera."""
    kinds = {tensor.dtype for tensor in tensors}
    here = all(tensor.device.type == "cpu" for tensor in tensors)
    fixed = camera is None or not (camera.focal_px.requires_grad or camera.principal_px.requires_grad)
    return here and fixed and len(kinds) == 1 and kinds <= {torch.float32, torch.float64}


def vertex_normals(vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "F 3"]) -> Float[Tensor, "B V 3"]:
    """Unit normals, averaged over the adjacent triangles by area; the direction of counter-clockwise fronts.

    Degenerate: a vertex without area around it gets the zero vector.
    """
    if not is_compiled_for(None, vertices):
        return vertex_normals_torch(vertices, triangles)
    from models.rendering.shade_numba import VertexNormals

    return VertexNormals.apply(vertices, triangles)


def interpolate(
    attributes: Float[Tensor, "B V C"],
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    triangle_ids: Int[Tensor, "B H W"],
    camera: Camera,
) -> Float[Tensor, "B C H W"]:
    """Perspective-correct attributes of every pixel that sees a triangle (id >= 0), zero elsewhere.

    Differentiable in `attributes` and `vertices` (camera space); see `MIN_GRADIENT_AREA_PX` for the exception. The
    memory is laid out channels last.
    Raises: IndexError if an id is not one of the triangles.
    """
    if not is_compiled_for(camera, attributes, vertices):
        return interpolate_torch(attributes, vertices, triangles, triangle_ids, camera)
    from models.rendering.shade_numba import Interpolation

    return Interpolation.apply(attributes, vertices, triangles, triangle_ids, camera)


def lit_surface(
    vertices: Float[Tensor, "B V 3"],
    albedo: Float[Tensor, "B V 3"],
    lighting: Float[Tensor, "B 9 3"],
    triangles: Int[Tensor, "F 3"],
    triangle_ids: Int[Tensor, "B H W"],
    camera: Camera,
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 3 H W"]]:
    """Albedo times irradiance at every pixel, and unit normals; zero where nothing is seen.

    Differentiable in vertices, albedo and lighting, as `interpolate`.
    """
    if not is_compiled_for(camera, vertices, albedo, lighting):
        return lit_surface_torch(vertices, albedo, lighting, triangles, triangle_ids, camera)
    from models.rendering.shade_numba import LitSurface

    return LitSurface.apply(vertices, albedo, lighting, triangles, triangle_ids, camera)
