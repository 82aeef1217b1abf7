"""Hard light for strong randomisation: a lamp that casts shadows, warm skin where they begin, and reflections.

Convention: camera space (x right, y down, z forward), millimetres; a direction leads from the face to the lamp.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from models.face.lighting import irradiance_basis
from models.rendering.maps import depth_image
from models.types import Camera
from tasks.paint import Painted
from tasks.subjects import Lamp

Floats = NDArray[np.floating]

SHADOW_PX = 160
SHADOW_DISTANCE_MM = 4000.0
SHADOW_BIAS_MM, SHADOW_LIFT_MM = 3.0, 5.0
"""A point is compared as if it lay so much nearer to the lamp, and so far above its surface; less gives stripes."""

SCATTER = np.array([0.35, 0.14, 0.09])
"""How far round the corner each colour of light comes in skin; most in red."""


def light_skin(
    painted: Painted, *, normal: Floats, position: Floats, lighting: Floats, lamp: Lamp, lit: Floats
) -> Floats:
    """Colours (N, 3), not limited above, of pixels with normals and positions (N, 3).

    `lighting` (9, 3) is the soft light, `lit` (N,) the share of the lamp that reaches each pixel.
    """
    soft = irradiance_basis(torch.from_numpy(normal)).numpy() @ lighting
    facing = (normal @ lamp.direction)[:, None]
    spread = SCATTER + 0.4 * lamp.softness
    hard = ((facing + spread) / (1.0 + spread)).clip(0.0, 1.0) * lit[:, None]
    view = -position / np.maximum(np.linalg.norm(position, axis=1, keepdims=True), 1e-6)
    half = view + lamp.direction
    half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-6)
    reflection = (normal * half).sum(1).clip(0.0, 1.0) ** painted.sharpness * painted.gloss * lit * (facing[:, 0] > 0.0)
    # Grazing skin is bright, whatever its colour.
    grazing = (1.0 - np.abs((normal * view).sum(1))).clip(0.0, 1.0) ** 4 * 0.5 * painted.gloss
    shine = reflection[:, None] * lamp.colour + grazing[:, None] * soft.clip(0.0)
    return np.asarray(painted.albedo * (soft.clip(0.02) + hard * lamp.colour) + shine)


@torch.no_grad()
def lamp_light(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    *,
    positions: Float[Tensor, "B H W 3"],
    normals: Float[Tensor, "B H W 3"],
    directions: Float[Tensor, "B 3"],
) -> Float[Tensor, "B H W"]:
    """1 where a lamp in the direction sees the surface at a pixel, 0 where the mesh is in between; edges are blended.

    Source: Williams 1978, Casting curved shadows on curved surfaces: a depth image from the lamp, compared.
    """
    forward = -directions
    right = torch.linalg.cross(forward.new_tensor([0.0, 1.0, 0.0]).expand_as(forward), forward)
    steep = right.norm(dim=1, keepdim=True) < 1e-3
    right = torch.where(steep, right.new_tensor([1.0, 0.0, 0.0]).expand_as(right), right)
    right = torch.nn.functional.normalize(right, dim=1)
    down = torch.linalg.cross(forward, right)
    turn = torch.stack([right, down, forward], 2)
    middle = vertices.mean(1, keepdim=True)
    away = vertices.new_tensor([0.0, 0.0, SHADOW_DISTANCE_MM])
    seen = (vertices - middle) @ turn + away
    reach = (seen[..., :2].abs() / seen[..., 2:]).amax((1, 2)).clamp_min(1e-3)
    camera = Camera(
        focal_px=0.48 * SHADOW_PX / reach,
        principal_px=torch.full((len(vertices), 2), SHADOW_PX / 2.0),
        size=(SHADOW_PX, SHADOW_PX),
    )
    depth = depth_image(seen, triangles, camera)
    count, height, width = positions.shape[:3]
    lifted = positions + SHADOW_LIFT_MM * normals
    points = (lifted.reshape(count, -1, 3) - middle) @ turn + away
    pixels = points[..., :2] / points[..., 2:].clamp_min(1.0) * camera.focal_px[:, None, None] + SHADOW_PX / 2.0 - 0.5
    base, share = pixels.floor(), pixels - pixels.floor()
    lit = torch.zeros_like(points[..., 2])
    row = torch.arange(count)[:, None]
    for across in (0, 1):
        for up in (0, 1):
            place = (base + base.new_tensor([across, up])).long().clamp(0, SHADOW_PX - 1)
            nearest = depth[row, place[..., 1], place[..., 0]]
            free = (nearest == 0.0) | (nearest > points[..., 2] - SHADOW_BIAS_MM)
            weight = (share[..., 0] if across else 1.0 - share[..., 0]) * (share[..., 1] if up else 1.0 - share[..., 1])
            lit += weight * free
    return lit.reshape(count, height, width)
