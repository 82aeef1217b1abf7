"""Which triangle each pixel sees: one protocol, several backends, no gradient.

Convention: vertices in camera space (x right, y down, z forward, millimetres), triangles counter-clockwise from
outside; those seen from behind are culled, and what is nearer than `NEAR_MM` is cut away. A pixel sees what the ray
through its centre meets first; the nearest wins, and where single precision cannot tell two depths apart, the triangle
with the lower index. So every backend draws the same.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.types import Camera, Fragments

MAX_FRAGMENTS = 2**16
"""Candidate pixels that a backend may hold at once; bounds the memory whatever the zoom."""


@runtime_checkable
class Rasterizer(Protocol):
    """A backend: triangle of every pixel (-1: none) and its depth in millimetres (0: none)."""

    def __call__(
        self,
        vertices: Float[Tensor, "B V 3"],
        triangles: Int[Tensor, "F 3"],
        camera: Camera,
        *,
        max_fragments: int = MAX_FRAGMENTS,
    ) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
        """Ids are int64; depth has the type of the vertices. Vertices are single or double precision, detached."""
        ...


def _torch() -> Rasterizer:
    from models.rendering.rasterize_torch import rasterize_ids_torch

    return rasterize_ids_torch


def _numba() -> Rasterizer:
    from models.rendering.rasterize_numba import rasterize_ids_numba

    return rasterize_ids_numba


def _pytorch3d() -> Rasterizer:
    if importlib.util.find_spec("pytorch3d") is None:
        raise ValueError("rasterizer pytorch3d: the package is not installed; build it from source, or choose auto")
    from models.rendering.rasterize_pytorch3d import rasterize_ids_pytorch3d

    return rasterize_ids_pytorch3d


RASTERIZERS: dict[str, Callable[[], Rasterizer]] = {"torch": _torch, "numba": _numba, "pytorch3d": _pytorch3d}
"""Backends by name; each is imported when it is asked for."""


def build_rasterizer(name: str, device: torch.device) -> Rasterizer:
    """The backend of that name; `auto` is numba on the processor and torch elsewhere.

    Raises: ValueError if there is no such backend, or its package is not installed.
    """
    chosen = ("numba" if device.type == "cpu" else "torch") if name == "auto" else name
    if chosen not in RASTERIZERS:
        raise ValueError(f"rasterizer {name!r} is unknown, expected one of auto, {', '.join(RASTERIZERS)}")
    return RASTERIZERS[chosen]()


@torch.no_grad()
def rasterize_ids(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    rasterizer: str = "auto",
    max_fragments: int = MAX_FRAGMENTS,
) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """Nearest front-facing triangle per pixel centre (-1: none) and its depth in millimetres (0: none).

    Degenerate: a triangle without area, or with a corner that is not finite, is not drawn.
    Raises: ValueError as `build_rasterizer`.
    """
    backend = build_rasterizer(rasterizer, vertices.device)
    exact = vertices.detach() if vertices.dtype == torch.float64 else vertices.detach().float()
    ids, depth = backend(exact, triangles, camera, max_fragments=max_fragments)
    return ids, depth.to(vertices.dtype)


@torch.no_grad()
def rasterize(
    vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "F 3"], camera: Camera, *, rasterizer: str = "auto"
) -> Fragments:
    """Triangle, perspective-correct barycentrics and depth at every pixel centre."""
    ids, depth = rasterize_ids(vertices, triangles, camera, rasterizer=rasterizer)
    if vertices.device.type == "cpu" and vertices.dtype in (torch.float32, torch.float64):
        from models.rendering.shade_numba import barycentrics_numba

        barycentrics = barycentrics_numba(vertices, triangles, ids, camera)
    else:
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
    """Barycentrics of the point where a ray (z = 1) meets its triangle's plane.

    w_i is proportional to ray · (v_j x v_k), exact under perspective and differentiable in the corners.
    """
    # The same volumes as cross products around the ray: no digits are lost on how far away the triangle is.
    a, b, c = (corners[..., :2] - corners[..., 2:] * rays[:, None, :2]).unbind(1)
    weights = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], 1)
    return weights / weights.sum(1, keepdim=True)


def _cross(first: Tensor, second: Tensor) -> Tensor:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
