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
) -> Rendering:
    """Shade a batch of meshes given in camera space.

    Colour is albedo times irradiance, per pixel from interpolated normals; differentiable in vertices, albedo and
    lighting. Silhouettes are hard and carry no gradient.
    """
    ids, _ = rasterize_ids(vertices.detach(), triangles, camera)
    normals = vertex_normals(vertices, triangles)
    attributes = torch.cat([albedo, normals], 2)
    pixels, hit = interpolate(attributes, vertices, triangles, ids, camera)
    colour, normal = pixels.split(3, 1)
    normal = functional.normalize(normal, dim=1)
    # One matrix product per image would need padding; the sum over bands keeps every pixel beside its own light.
    light = (irradiance_basis(normal)[..., None] * lighting.index_select(0, hit[0])).sum(1)
    return Rendering(
        image=_to_image(colour * light, hit, ids),
        mask=ids >= 0,
        normals=_to_image(normal, hit, ids),
    )


def _to_image(pixels: Float[Tensor, "N C"], hit: tuple[Tensor, ...], ids: Int[Tensor, "B H W"]) -> Tensor:
    count, height, width = ids.shape
    place = (hit[0] * height + hit[1]) * width + hit[2]
    # index_add is several times faster than index_put here, and every place occurs once.
    flat = pixels.new_zeros((count * height * width, pixels.shape[1])).index_add(0, place, pixels)
    return flat.view(count, height, width, -1).permute(0, 3, 1, 2)
