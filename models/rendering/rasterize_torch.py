"""The rasteriser in pure torch, for any device.

Every triangle proposes the pixels of its bounding box; those whose ray it meets keep the smallest (depth, triangle)
key by one scatter. So the winner is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.face.camera import NEAR_MM
from models.rendering.rasterize import MAX_FRAGMENTS
from models.types import Camera

EMPTY_KEY = torch.iinfo(torch.int64).max

BOX_MARGIN_PX = 1e-6
"""Rounding of a projection must not lose the pixel whose centre lies on a corner; the edges decide in the end."""


def rasterize_ids_torch(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    max_fragments: int = MAX_FRAGMENTS,
) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """See `Rasterizer`."""
    count, (height, width) = len(vertices), camera.size
    ids = torch.full((count, height, width), -1, dtype=torch.int64, device=vertices.device)
    depth = vertices.new_zeros(ids.shape)
    together = max(1, max_fragments // max(1, len(triangles)))
    for first in range(0, count, together):
        part = slice(first, first + together)
        some = Camera(camera.focal_px[part].double(), camera.principal_px[part].double(), camera.size)
        _rasterize_some(vertices[part], triangles, some, max_fragments, ids[part], depth[part])
    return ids, depth


def _rasterize_some(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    max_fragments: int,
    ids: Int[Tensor, "B H W"],
    depth: Float[Tensor, "B H W"],
) -> None:
    """Fill `ids` and `depth` of a few images."""
    count, (height, width) = len(vertices), camera.size
    low, high = _boxes(vertices.double(), triangles, camera)
    extent = (high - low + 1).clamp_min(0)
    sizes = (extent[..., 0] * extent[..., 1]).flatten()
    candidates = sizes.nonzero()[:, 0]
    image = torch.div(candidates, max(1, len(triangles)), rounding_mode="floor")
    index = candidates - image * len(triangles)
    corners = triangles[index] + (image * vertices.shape[1])[:, None]
    a, b, c = vertices.flatten(0, 1).index_select(0, corners.flatten()).double().unflatten(0, (-1, 3)).unbind(1)
    # The planes through the camera and the edges; a point inside is on the same side of all three.
    planes = torch.stack([_cross(c, b), _cross(a, c), _cross(b, a)], 1)
    volume = _dot(a, planes[:, 0])
    front = ((volume > 0) & (volume < torch.inf)).nonzero()[:, 0]
    image, index, planes, volume = image[front], index[front], planes[front], volume[front]
    crossing = (torch.stack([a, b, c], 1)[front, :, 2] < NEAR_MM).any(1)
    box = candidates[front]
    low, columns, sizes = low.flatten(0, 1)[box], extent.flatten(0, 1)[box, 0], sizes[box]
    keys = torch.full((count * height * width,), EMPTY_KEY, dtype=torch.int64, device=vertices.device)
    for owner, place in _candidate_pixels(sizes, max_fragments):
        row = torch.div(place, columns[owner], rounding_mode="floor")
        x = low[owner, 0] + place - row * columns[owner]
        y = low[owner, 1] + row
        seen_by = image[owner]
        focal, principal = camera.focal_px[seen_by], camera.principal_px[seen_by]
        along = torch.stack([(x + 0.5) - principal[:, 0], (y + 0.5) - principal[:, 1], focal], 1)
        sides = _dot(along[:, None], planes[owner])
        total = sides[:, 0] + sides[:, 1] + sides[:, 2]
        distance = focal * volume[owner] / total
        inside = (sides >= 0).all(1) & (total > 0) & ((distance >= NEAR_MM) | ~crossing[owner])
        inside = inside.nonzero()[:, 0]
        owner, x, y = owner[inside], x[inside], y[inside]
        # The bits of a positive float sort like the number itself.
        key = (distance[inside].float().view(torch.int32).long() << 32) | index[owner]
        keys.scatter_reduce_(0, (image[owner] * height + y) * width + x, key, "amin")
    keys = keys.view(ids.shape)
    hit = keys != EMPTY_KEY
    ids.copy_(torch.where(hit, keys & 0xFFFFFFFF, -1))
    depth.copy_(torch.where(hit, keys >> 32, 0).int().view(torch.float32))


def _boxes(
    vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "F 3"], camera: Camera
) -> tuple[Int[Tensor, "B F 2"], Int[Tensor, "B F 2"]]:
    """First and last (column, row) that each triangle may cover beyond the near plane; none where last < first."""
    height, width = camera.size
    focal, principal = camera.focal_px[:, None, None], camera.principal_px[:, None]
    near = vertices[..., 2] < NEAR_MM
    pixels = focal * vertices[..., :2] / vertices[..., 2:].clamp_min(NEAR_MM) + principal
    low, high = pixels, pixels
    if near.any():
        low = torch.where(near[..., None], torch.inf, pixels)
        high = torch.where(near[..., None], -torch.inf, pixels)
    first, second, third = (triangles[:, corner] for corner in range(3))
    low = torch.minimum(torch.minimum(low[:, first], low[:, second]), low[:, third])
    high = torch.maximum(torch.maximum(high[:, first], high[:, second]), high[:, third])
    if near.any():
        image, index = (near[:, triangles].any(2) & ~near[:, triangles].all(2)).nonzero(as_tuple=True)
        corners = vertices[image[:, None], triangles[index]]
        start, end = corners, corners.roll(-1, 1)
        share = (NEAR_MM - start[..., 2:]) / (end[..., 2:] - start[..., 2:])
        cut = focal[image] * (start + share * (end - start))[..., :2] / NEAR_MM + principal[image]
        crosses = ((start[..., 2:] < NEAR_MM) != (end[..., 2:] < NEAR_MM)).expand_as(cut)
        low[image, index] = torch.minimum(low[image, index], torch.where(crosses, cut, torch.inf).amin(1))
        high[image, index] = torch.maximum(high[image, index], torch.where(crosses, cut, -torch.inf).amax(1))
    limit = vertices.new_tensor([width - 1, height - 1])
    low = (low - 0.5 - BOX_MARGIN_PX).ceil().clamp_min(0.0)
    high = torch.minimum((high - 0.5 + BOX_MARGIN_PX).floor(), limit)
    drawn = _known(low, high)
    return torch.where(drawn, low, 0.0).long(), torch.where(drawn, high, -1.0).long()


def _known(low: Float[Tensor, "B F 2"], high: Float[Tensor, "B F 2"]) -> Bool[Tensor, "B F 1"]:
    """Whether a box holds a pixel; a corner that is not a number makes every comparison false."""
    return (low <= high).all(2, keepdim=True)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return first[..., 0] * second[..., 0] + (first[..., 1] * second[..., 1] + first[..., 2] * second[..., 2])


def _cross(first: Tensor, second: Tensor) -> Tensor:
    """Not `torch.linalg.cross`: two triangles must get exactly opposite planes for the edge that they share."""
    x, y, z = first.unbind(-1)
    u, v, w = second.unbind(-1)
    return torch.stack([y * w - z * v, z * u - x * w, x * v - y * u], -1)


def _candidate_pixels(sizes: Int[Tensor, "N"], limit: int) -> Iterator[tuple[Int[Tensor, "M"], Int[Tensor, "M"]]]:
    """For boxes of given sizes: the box of every pixel and its place there, `limit` pixels at a time."""
    ends = sizes.cumsum(0)
    starts = ends - sizes
    total = int(sizes.sum())
    begins = torch.arange(0, total, limit, device=sizes.device)
    stops = (begins + limit).clamp_max(total)
    boxes = torch.stack([torch.searchsorted(ends, begins, right=True), torch.searchsorted(ends, stops - 1, right=True)])
    for begin, first, last in zip(range(0, total, limit), *boxes.tolist()):
        stop = min(begin + limit, total)
        inside = ends[first : last + 1].clamp_max(stop) - starts[first : last + 1].clamp_min(begin)
        owner = torch.arange(first, last + 1, device=sizes.device).repeat_interleave(inside, output_size=stop - begin)
        yield owner, torch.arange(begin, stop, device=sizes.device) - starts[owner]
