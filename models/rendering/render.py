"""Images of faces: albedo under spherical-harmonics light, seen by a pinhole camera."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import lit_surface
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
    image, normals = lit_surface(vertices, albedo, lighting, triangles, ids, camera)
    return Rendering(image=image, mask=ids >= 0, normals=normals)
