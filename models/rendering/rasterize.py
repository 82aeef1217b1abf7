"""Which triangle each pixel sees, in pure torch and without gradient.

Every triangle proposes the pixels of its bounding box; those whose centre lies inside keep the smallest (depth,
triangle) key by one scatter. So the winner is deterministic: the nearest, and on an exact tie the triangle with the
lower index.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.face.camera import NEAR_MM, project
from models.types import Camera, Fragments

MAX_FRAGMENTS = 2**18
"""Candidate pixels tested at once; bounds the memory (about 45 MB) whatever the zoom."""

EMPTY_KEY = torch.iinfo(torch.int64).max


@torch.no_grad()
def rasterize_ids(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    max_fragments: int = MAX_FRAGMENTS,
) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """Nearest front-facing triangle per pixel centre (-1: none) and its depth in millimetres (0: none).

    Convention: camera space, triangles counter-clockwise from outside; those seen from behind are culled.
    Degenerate: a triangle with a corner nearer than `NEAR_MM`, or without area, is not drawn.
    """
    count, height, width = len(vertices), *camera.size
    corners = project(vertices, camera)[:, triangles]
    depths = vertices[..., 2][:, triangles]
    first, second, third = corners.unbind(2)
    # Doubled signed area with y down: negative means counter-clockwise as the viewer sees it, the front.
    area = _cross(second - first, third - first)
    low = (corners.amin(2) - 0.5).ceil()
    high = (corners.amax(2) - 0.5).floor()
    limit = corners.new_tensor([width - 1, height - 1])
    low = low.clamp_min(0.0)
    high = torch.minimum(high, limit)
    extent = (high - low + 1).clamp_min(0.0)
    drawable = (area < 0) & (depths.amin(2) > NEAR_MM)
    sizes = torch.where(drawable, extent[..., 0] * extent[..., 1], 0.0).flatten().long()
    candidates = sizes.nonzero()[:, 0]
    sizes = sizes[candidates]
    corners, depths = corners.flatten(0, 1)[candidates], depths.flatten(0, 1)[candidates]
    low, columns = low.flatten(0, 1)[candidates].long(), extent[..., 0].flatten()[candidates].long()
    area = area.flatten()[candidates]
    keys = torch.full((count * height * width,), EMPTY_KEY, dtype=torch.int64, device=vertices.device)
    for chunk in _chunks(sizes, max_fragments):
        owner, place = _enumerate(sizes[chunk])
        owner = owner + chunk.start
        row = torch.div(place, columns[owner], rounding_mode="floor")
        x = low[owner, 0] + place - row * columns[owner]
        y = low[owner, 1] + row
        centre = torch.stack([x, y], 1).to(vertices.dtype) + 0.5
        # Relative to the pixel centre, so that rounding does not grow with the image.
        a, b, c = (corners[owner] - centre[:, None]).unbind(1)
        weights = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], 1)
        inside = (weights <= 0).all(1).nonzero()[:, 0]
        owner, x, y = owner[inside], x[inside], y[inside]
        weights = weights[inside] / area[owner, None]
        depth = 1.0 / (weights / depths[owner]).sum(1)
        image, triangle = _divide(candidates[owner], len(triangles))
        # The bits of a positive float sort like the number itself.
        key = (depth.float().view(torch.int32).long() << 32) | triangle
        keys.scatter_reduce_(0, (image * height + y) * width + x, key, "amin")
    empty = keys == EMPTY_KEY
    ids = torch.where(empty, -1, keys & 0xFFFFFFFF)
    depth = torch.where(empty, 0, keys >> 32).int().view(torch.float32).to(vertices.dtype)
    return ids.view(count, height, width), depth.view(count, height, width)


@torch.no_grad()
def rasterize(vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "F 3"], camera: Camera) -> Fragments:
    """Triangle, perspective-correct barycentrics and depth at every pixel centre."""
    ids, depth = rasterize_ids(vertices, triangles, camera)
    hit = (ids >= 0).nonzero(as_tuple=True)
    barycentrics = vertices.new_zeros((*ids.shape, 3))
    barycentrics[hit] = ray_barycentrics(corners_at(vertices, triangles, ids, hit), pixel_rays(camera, hit))
    return Fragments(triangle_ids=ids, barycentrics=barycentrics, depth=depth)


def corners_at(
    vertices: Float[Tensor, "B V C"],
    triangles: Int[Tensor, "F 3"],
    triangle_ids: Int[Tensor, "B H W"],
    hit: tuple[Tensor, ...],
) -> Float[Tensor, "N 3 C"]:
    """Attributes of the three corners of the triangle that each hit pixel sees."""
    corners = triangles[triangle_ids[hit]] + (hit[0] * vertices.shape[1])[:, None]
    return vertices.flatten(0, 1).index_select(0, corners.flatten()).unflatten(0, (-1, 3))


def pixel_rays(camera: Camera, hit: tuple[Tensor, ...]) -> Float[Tensor, "N 3"]:
    """Directions (z = 1) from the camera through the centres of pixels given as (image, row, column)."""
    image, row, column = hit
    centre = torch.stack([column, row], 1) + 0.5
    slope = (centre - camera.principal_px[image]) / camera.focal_px[image, None]
    return torch.cat([slope, torch.ones_like(slope[:, :1])], 1)


def ray_barycentrics(corners: Float[Tensor, "N 3 3"], rays: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Barycentrics of the point where a ray meets its triangle's plane: w_i is proportional to ray · (v_j x v_k).

    Exact under perspective and differentiable in the corners.
    """
    a, b, c = corners.unbind(1)
    volumes = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 1)
    weights = (volumes * rays[:, None]).sum(2)
    return weights / weights.sum(1, keepdim=True)


def _cross(first: Tensor, second: Tensor) -> Tensor:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _divide(value: Tensor, by: int) -> tuple[Tensor, Tensor]:
    quotient = torch.div(value, by, rounding_mode="floor")
    return quotient, value - quotient * by


def _enumerate(sizes: Int[Tensor, "N"]) -> tuple[Int[Tensor, "M"], Int[Tensor, "M"]]:
    """For boxes of given sizes: the box of every pixel, and the pixel's place in its box."""
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    start = sizes.cumsum(0) - sizes
    return owner, torch.arange(len(owner), device=sizes.device) - start[owner]


def _chunks(sizes: Int[Tensor, "N"], limit: int) -> list[slice]:
    """Runs of boxes of at most `limit` pixels together; a box larger than that stands alone."""
    ends = sizes.cumsum(0)
    chunks, start = [], 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = int(torch.searchsorted(ends, before + limit, right=True))
        stop = max(stop, start + 1)
        chunks.append(slice(start, stop))
        start = stop
    return chunks
