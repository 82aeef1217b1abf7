"""Shading in pure torch, for any device and any number of derivatives."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from models.face.camera import NEAR_MM
from models.face.lighting import irradiance_basis
from models.rendering.rasterize import corners_at, pixel_rays, ray_barycentrics
from models.types import Camera

MIN_GRADIENT_AREA_PX = 0.05
"""Triangles that cover less (in px²) pass no gradient to their vertices: a handful of slivers can multiply its norm."""


def vertex_normals_torch(vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "F 3"]) -> Float[Tensor, "B V 3"]:
    """See `vertex_normals`."""
    a, b, c = vertices[:, triangles].unbind(2)
    faces = torch.linalg.cross(b - a, c - a)
    normals = torch.zeros_like(vertices)
    for corner in range(3):
        normals = normals.index_add(1, triangles[:, corner], faces)
    return functional.normalize(normals, dim=-1)


def interpolate_torch(
    attributes: Float[Tensor, "B V C"],
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    triangle_ids: Int[Tensor, "B H W"],
    camera: Camera,
) -> Float[Tensor, "B C H W"]:
    """See `interpolate`."""
    hit = (triangle_ids >= 0).nonzero(as_tuple=True)
    corners = corners_at(vertices, triangles, triangle_ids, hit)
    if corners.requires_grad:
        corners = _gate_slivers(corners, camera.focal_px[hit[0]])
    weights = ray_barycentrics(corners, pixel_rays(camera, hit))
    values = corners_at(attributes, triangles, triangle_ids, hit)
    return _to_image((values * weights[..., None]).sum(1), hit, triangle_ids)


def lit_surface_torch(
    vertices: Float[Tensor, "B V 3"],
    albedo: Float[Tensor, "B V 3"],
    lighting: Float[Tensor, "B 9 3"],
    triangles: Int[Tensor, "F 3"],
    triangle_ids: Int[Tensor, "B H W"],
    camera: Camera,
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 3 H W"]]:
    """Albedo times irradiance at every pixel, and unit normals; zero where nothing is seen."""
    normals = vertex_normals_torch(vertices, triangles)
    pixels = interpolate_torch(torch.cat([albedo, normals], 2), vertices, triangles, triangle_ids, camera)
    colour, normal = pixels.split(3, 1)
    normal = functional.normalize(normal, dim=1)
    light = torch.einsum("bhwk,bkc->bchw", irradiance_basis(normal.permute(0, 2, 3, 1)), lighting)
    return colour * light, normal


def _to_image(pixels: Float[Tensor, "N C"], hit: tuple[Tensor, ...], ids: Int[Tensor, "B H W"]) -> Tensor:
    count, height, width = ids.shape
    place = (hit[0] * height + hit[1]) * width + hit[2]
    # index_add is several times faster than index_put here, and every place occurs once.
    flat = pixels.new_zeros((count * height * width, pixels.shape[1])).index_add(0, place, pixels)
    return flat.view(count, height, width, pixels.shape[1]).permute(0, 3, 1, 2)


def _gate_slivers(corners: Float[Tensor, "N 3 3"], focal_px: Float[Tensor, "N"]) -> Float[Tensor, "N 3 3"]:
    with torch.no_grad():
        a, b, c = corners.unbind(1)
        volume = (a * torch.linalg.cross(b - a, c - a)).sum(1).abs()
        # The area after projection, with corners before the near plane moved onto it.
        area = focal_px.square() * volume / (2.0 * corners[..., 2].clamp_min(NEAR_MM).prod(1))
        wide = (area >= MIN_GRADIENT_AREA_PX)[:, None, None]
    return torch.where(wide, corners, corners.detach())
