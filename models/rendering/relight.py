"""The light that explains a photo best, given shape, pose and albedo: linear in SH, so in closed form."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.face.lighting import irradiance_basis
from models.rendering.render import render
from models.types import Camera, Rendering

RIDGE = 1e-4
"""Relative to the mean of the normal matrix' diagonal: bands that no visible normal tells apart stay small."""


@torch.no_grad()
def fit_lighting(
    image: Float[Tensor, "B 3 H W"],
    mask: Bool[Tensor, "B H W"],
    *,
    albedo: Float[Tensor, "B 3 H W"],
    normals: Float[Tensor, "B 3 H W"],
) -> Float[Tensor, "B 9 3"]:
    """Spherical-harmonics light per colour channel with the least squared error over the mask.

    Degenerate: without a masked pixel the light is zero.
    """
    basis = irradiance_basis(normals.permute(0, 2, 3, 1)).flatten(1, 2) * mask.flatten(1)[..., None]
    lights = []
    for channel in range(3):
        design = basis * albedo[:, channel].flatten(1)[..., None]
        normal = design.transpose(1, 2) @ design
        ridge = (RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-9)[:, None].expand(-1, normal.shape[1])
        target = design.transpose(1, 2) @ image[:, channel].flatten(1)[..., None]
        lights.append(torch.linalg.solve(normal + torch.diag_embed(ridge), target)[..., 0])
    return torch.stack(lights, 2)


@torch.no_grad()
def render_under_fitted_light(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    *,
    albedo: Float[Tensor, "B V 3"],
    camera: Camera,
    image: Float[Tensor, "B 3 H W"],
    mask: Bool[Tensor, "B H W"],
    rasterizer: str = "auto",
) -> tuple[Rendering, Float[Tensor, "B 9 3"]]:
    """Render a face (camera space) under the light that explains the photo best, and that light."""
    unit = image.new_zeros(len(image), 9, 3)
    unit[:, 0] = 1.0
    plain = render(vertices, triangles, albedo=albedo, lighting=unit, camera=camera, rasterizer=rasterizer)
    lighting = fit_lighting(image, mask & plain.mask, albedo=plain.image, normals=plain.normals)
    light = torch.einsum("bhwk,bkc->bchw", irradiance_basis(plain.normals.permute(0, 2, 3, 1)), lighting)
    return replace(plain, image=plain.image * light), lighting
