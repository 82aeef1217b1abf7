"""Depth and normals as images.

Convention: zero where no triangle is seen, never NaN; a depth of zero therefore means empty. Both are differentiable in
the vertices within the triangle that each pixel sees; which triangle that is carries no gradient.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import interpolate, vertex_normals
from models.types import Camera


def depth_image(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    rasterizer: str = "auto",
) -> Float[Tensor, "B H W"]:
    """Camera z in millimetres where the ray of each pixel's centre meets the mesh; zero where it does not."""
    ids, _ = rasterize_ids(vertices, triangles, camera, rasterizer=rasterizer)
    return interpolate(vertices[..., 2:], vertices, triangles, ids, camera)[:, 0]


def normal_image(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    rasterizer: str = "auto",
) -> Float[Tensor, "B 3 H W"]:
    """Unit normals in camera space, interpolated between vertices as `render` shades them; zero where nothing is seen.

    A surface that looks into the camera has the normal (0, 0, -1).
    """
    ids, _ = rasterize_ids(vertices, triangles, camera, rasterizer=rasterizer)
    return functional.normalize(
        interpolate(vertex_normals(vertices, triangles), vertices, triangles, ids, camera), dim=1
    )
