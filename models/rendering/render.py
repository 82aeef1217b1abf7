"""Images of faces: albedo under spherical-harmonics light, seen by a pinhole camera."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from models.face.lighting import irradiance_basis
from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import interpolate, vertex_normals
from models.types import Camera, Rendering


def render(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    *,
    albedo: Float[Tensor, "B V 3"],
    lighting: Float[Tensor, "B 9 3"],
    camera: Camera,
    rasterizer: str = "auto",
) -> Rendering:
    """Shade a batch of meshes given in camera space.

    Colour is albedo times irradiance, per pixel from interpolated normals; differentiable in vertices, albedo and
    lighting. Silhouettes are hard and carry no gradient. `rasterizer` is one of `RASTERIZERS`, or `auto`.
    """
    ids, _ = rasterize_ids(vertices.detach(), triangles, camera, rasterizer=rasterizer)
    normals = vertex_normals(vertices, triangles)
    pixels = interpolate(torch.cat([albedo, normals], 2), vertices, triangles, ids, camera)
    colour, normal = pixels.split(3, 1)
    normal = functional.normalize(normal, dim=1)
    light = torch.einsum("bhwk,bkc->bchw", irradiance_basis(normal.permute(0, 2, 3, 1)), lighting)
    return Rendering(image=colour * light, mask=ids >= 0, normals=normal)
