"""Differentiable attributes and colours of the pixels that the rasteriser found."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from models.rendering.rasterize import corners_at, pixel_rays, ray_barycentrics
from models.types import Camera

MIN_GRADIENT_AREA_PX = 0.05
"""Triangles that cover less (in px²) pass no gradient to their vertices: a handful of slivers can multiply its norm."""


def vertex_normals(vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "F 3"]) -> Float[Tensor, "B V 3"]:
    """Unit normals, averaged over the adjacent triangles by area; the direction of counter-clockwise fronts.

    Degenerate: a vertex without area around it gets the zero vector.
    """
    a, b, c = vertices[:, triangles].unbind(2)
    faces = torch.linalg.cross(b - a, c - a)
    normals = torch.zeros_like(vertices)
    for corner in range(3):
        normals = normals.index_add(1, triangles[:, corner], faces)
    return functional.normalize(normals, dim=-1)


def interpolate(
    attributes: Float[Tensor, "B V C"],
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    triangle_ids: Int[Tensor, "B H W"],
    camera: Camera,
) -> tuple[Float[Tensor, "N C"], tuple[Tensor, ...]]:
    """Perspective-correct attributes of the pixels that hit something, and the (image, row, column) of those pixels.

    Differentiable in `attributes` and `vertices` (camera space); see `MIN_GRADIENT_AREA_PX` for the exception.
    """
    hit = (triangle_ids >= 0).nonzero(as_tuple=True)
    corners = corners_at(vertices, triangles, triangle_ids, hit)
    if corners.requires_grad:
        corners = _gate_slivers(corners, camera.focal_px[hit[0]])
    weights = ray_barycentrics(corners, pixel_rays(camera, hit))
    values = corners_at(attributes, triangles, triangle_ids, hit)
    return (values * weights[..., None]).sum(1), hit


def _gate_slivers(corners: Float[Tensor, "N 3 3"], focal_px: Float[Tensor, "N"]) -> Float[Tensor, "N 3 3"]:
    with torch.no_grad():
        pixels = corners[..., :2] / corners[..., 2:] * focal_px[:, None, None]
        first, second = pixels[:, 1] - pixels[:, 0], pixels[:, 2] - pixels[:, 0]
        area = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).abs() / 2
        wide = (area >= MIN_GRADIENT_AREA_PX)[:, None, None]
    return torch.where(wide, corners, corners.detach())
