"""A face as it is shown: from the front, in the light of a few lamps, as pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from models.face.camera import to_camera_space
from models.face.lighting import irradiance_basis
from models.rendering.render import render
from models.types import Camera

# Towards the lamps in camera space, and their strengths: a key from above left, a weak one from the right.
LAMPS = (((-0.42, -0.52, -0.74), 0.72), ((0.80, -0.05, -0.60), 0.18))
AMBIENT = 0.40
BACKGROUND = 0.91
DISTANCE_PER_HEIGHT = 4.5
FINER = 2
"""Pixels are rendered this many times finer on each side: the renderer's silhouettes are hard."""


@dataclass(frozen=True)
class Framing:
    """What of model space is seen: millimetres."""

    centre: Float[Tensor, "3"]
    height_mm: float

    @classmethod
    def around(cls, vertices: Float[Tensor, "V 3"], *, margin: float = 1.12) -> Framing:
        """The whole of a mesh."""
        low, high = vertices.amin(0), vertices.amax(0)
        return cls(centre=0.5 * (low + high), height_mm=margin * float((high - low)[:2].max()))


def draw_faces(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    albedo: Float[Tensor, "V 3"],
    *,
    framing: Framing,
    size_px: int,
) -> UInt8[np.ndarray, "B S S 3"]:
    """Square pictures of meshes in model space."""
    count = len(vertices)
    seen = to_camera_space(
        vertices - framing.centre,
        rotation=torch.zeros(count, 3),
        translation=torch.tensor([0.0, 0.0, DISTANCE_PER_HEIGHT * framing.height_mm]).expand(count, 3),
    )
    side = size_px * FINER
    camera = Camera(
        focal_px=torch.full((count,), side * DISTANCE_PER_HEIGHT),
        principal_px=torch.full((count, 2), side / 2.0),
        size=(side, side),
    )
    drawn = render(
        seen,
        triangles,
        albedo=albedo.expand(count, -1, -1),
        lighting=_lamp_light().expand(count, 9, 3),
        camera=camera,
    )
    image = torch.where(drawn.mask[:, None], drawn.image, BACKGROUND)
    image = functional.avg_pool2d(image, FINER).clamp(0.0, 1.0)
    return (image * 255.0).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _lamp_light() -> Float[Tensor, "1 9 3"]:
    # The bands of a clamped cosine in the units of models/face/lighting.py.
    bands = torch.tensor([0.25] + 3 * [0.375] + 5 * [1.0])
    directions = functional.normalize(torch.tensor([direction for direction, _ in LAMPS]), dim=1)
    strengths = torch.tensor([strength for _, strength in LAMPS])
    light = (strengths[:, None] * irradiance_basis(directions) * bands).sum(0)
    light[0] += AMBIENT
    return light[None, :, None].expand(1, 9, 3)
