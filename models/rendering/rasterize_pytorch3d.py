"""Adapter to PyTorch3D's `rasterize_meshes`, for those who have it: its triangle ids and depths, in our conventions.

Convention there: x to the left and y up, from -1 to 1 along the image's shorter side and proportionally further along
the longer one; z stays in millimetres. Both axes are ours turned round, so the corners keep their order: what it calls
a front is what we call one. Everything is computed in single precision.
Its gradients are not used, as no gradient passes a rasteriser here (see `models/rendering/shade.py`).
Differs from the other backends: a pixel whose centre lies exactly on an edge sees neither triangle, and a triangle of
less than 1e-8 square units, about 1e-4 px² at 224 px, is not drawn.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
from pytorch3d.structures import Meshes
from torch import Tensor

from models.face.camera import NEAR_MM
from models.rendering.rasterize import MAX_FRAGMENTS
from models.types import Camera

MIN_DEPTH_MM = 1e-3
"""Corners are moved this far from the camera's plane, where a projection has no value; the near plane cuts them off."""


def rasterize_ids_pytorch3d(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    max_fragments: int = MAX_FRAGMENTS,  # noqa: ARG001 - it holds one candidate per pixel whatever the zoom
) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """See `Rasterizer`."""
    count, (height, width) = len(vertices), camera.size
    if not count or not len(triangles):
        empty = torch.full((count, height, width), -1, dtype=torch.int64, device=vertices.device)
        return empty, vertices.new_zeros(empty.shape)
    known = vertices.isfinite().all(2, keepdim=True)
    # A corner that is not a number would be drawn everywhere; the whole triangle shrinks to a point behind the camera.
    behind = vertices.new_tensor([0.0, 0.0, -1.0])
    screen = to_pytorch3d(torch.where(known, vertices, behind), camera)
    faces = torch.where(known[:, triangles, 0].all(2, keepdim=True), triangles, triangles.new_zeros(()))
    packed, depth, _, _ = rasterize_meshes(
        Meshes(verts=screen, faces=faces),
        image_size=camera.size,
        blur_radius=0.0,
        faces_per_pixel=1,
        perspective_correct=True,
        cull_backfaces=True,
        z_clip_value=NEAR_MM,
    )
    packed, depth = packed[..., 0], depth[..., 0]
    hit = packed >= 0
    # Its ids count on from image to image.
    ids = torch.where(hit, packed % len(triangles), -1)
    return ids, torch.where(hit, depth, 0.0).to(vertices.dtype)


def to_pytorch3d(vertices: Float[Tensor, "B V 3"], camera: Camera) -> Float[Tensor, "B V 3"]:
    """Single-precision screen coordinates of PyTorch3D for points in camera space; differentiable."""
    height, width = camera.size
    exact = vertices.double()
    depth = exact[..., 2:]
    away = torch.where(depth < 0, depth.clamp_max(-MIN_DEPTH_MM), depth.clamp_min(MIN_DEPTH_MM))
    pixels = exact[..., :2] / away * camera.focal_px.double()[:, None, None] + camera.principal_px.double()[:, None]
    middle = pixels.new_tensor([width / 2.0, height / 2.0])
    return torch.cat([(middle - pixels) * (2.0 / min(height, width)), away], 2).float()
