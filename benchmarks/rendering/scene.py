"""What the rendering benchmark draws: a face-like mesh of any resolution, turned differently in every image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.face.camera import CAMERA_DISTANCE_MM, crop_camera, rotation_from_angles, to_camera_space
from models.face.lighting import ambient_light
from models.types import Camera

WIDEST_YAW = 1.2
"""Radians; a single image shows the face from the front, where it covers most pixels."""


@dataclass(frozen=True)
class Scene:
    """The inputs of one case; every image has its own vertices, attributes and light."""

    vertices: Tensor
    """(B, V, 3) in camera space, mm."""
    triangles: Tensor
    """(F, 3)."""
    attributes: Tensor
    """(B, V, 3), smooth; albedo where a whole image is rendered."""
    lighting: Tensor
    """(B, 9, 3)."""
    weights: Tensor
    """(B, 3, H, W): the gradient that the loss passes to the image."""
    camera: Camera


def face_mesh(vertices: int) -> tuple[Tensor, Tensor]:
    """An oval face with nose, eye sockets and lips: points (vertices, 3) in mm and outward triangles (F, 3).

    A square grid bent into an oval; its last row is shortened until the number is met.
    """
    side = int((vertices - 1) ** 0.5) + 1
    line = torch.linspace(-1.0, 1.0, side, dtype=torch.float64)
    down, across = torch.meshgrid(line, line, indexing="ij")
    x = 75.0 * across * (1.0 - down.square() / 2.0).sqrt()
    y = -95.0 * down * (1.0 - across.square() / 2.0).sqrt()

    def bump(height: float, centre: tuple[float, float], radius: tuple[float, float]) -> Tensor:
        return height * torch.exp(-((x - centre[0]) / radius[0]).square() - ((y - centre[1]) / radius[1]).square())

    z = 80.0 * (1.0 - 0.85 * ((x / 75.0).square() + (y / 95.0).square())).clamp_min(0.0).sqrt() - 40.0
    z = z + bump(22.0, (0.0, -8.0), (11.0, 20.0)) + bump(5.0, (0.0, -45.0), (22.0, 8.0))
    z = z + bump(-9.0, (-32.0, 20.0), (15.0, 11.0)) + bump(-9.0, (32.0, 20.0), (15.0, 11.0))
    corner = (torch.arange(side - 1)[:, None] * side + torch.arange(side - 1)).flatten()
    upper = torch.stack([corner, corner + side, corner + 1], 1)
    lower = torch.stack([corner + 1, corner + side, corner + side + 1], 1)
    triangles = torch.stack([upper, lower], 1).flatten(0, 1)
    points = torch.stack([x, y, z], -1).flatten(0, 1)[:vertices]
    return points.float(), triangles[(triangles < vertices).all(1)]


def build_scene(vertices: int, size_px: int, batch: int, *, device: torch.device | str = "cpu") -> Scene:
    """The same on every call."""
    points, triangles = face_mesh(vertices)
    yaw = torch.linspace(-WIDEST_YAW, WIDEST_YAW, batch) if batch > 1 else torch.zeros(1)
    rotation = rotation_from_angles(yaw, 0.2 * yaw, 0.1 * yaw)
    translation = torch.tensor([0.0, 0.0, CAMERA_DISTANCE_MM]).expand(batch, 3)
    seen = to_camera_space(points.expand(batch, -1, -1), rotation=rotation, translation=translation)
    weights = torch.rand(batch, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    return Scene(
        vertices=seen.contiguous().to(device),
        triangles=triangles.to(device),
        attributes=(0.5 + points / 250.0).repeat(batch, 1, 1).to(device),
        lighting=ambient_light(batch).to(device),
        # The layout that a loss passes back to an image that is channels last.
        weights=weights.contiguous(memory_format=torch.channels_last).to(device),
        camera=crop_camera(batch, size_px, device=device),
    )
