"""Flat face models on which the place of every texel can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from models.face.morphable import MorphableModel
from models.types import Camera

HALF_MM = 50.0


def sheet(count: int = 2, *, centre_x: float = 0.0, half_mm: float = HALF_MM) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices of a square sheet in the plane z = 0 that looks along +z, its uv over the unit square, its triangles."""
    side = torch.linspace(-1, 1, count)
    up, right = (axis.flatten() for axis in torch.meshgrid(side, side, indexing="ij"))
    vertices = torch.stack([centre_x + half_mm * right, half_mm * up, torch.zeros_like(up)], 1)
    index = torch.arange(count * count).view(count, count)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    triangles = torch.cat([torch.stack([a, b, c], 2).view(-1, 3), torch.stack([a, c, d], 2).view(-1, 3)])
    return vertices, torch.stack([(right + 1) / 2, (up + 1) / 2], 1), triangles


def sheet_face(vertices: Tensor, uv: Tensor, triangles: Tensor) -> MorphableModel:
    """A face model with this mean and no modes to speak of."""
    count = len(vertices)
    return MorphableModel(
        name="sheet",
        licence="CC0-1.0",
        mean=vertices,
        identity_basis=torch.zeros(1, count, 3),
        expression_basis=torch.zeros(0, count, 3),
        expression_names=[],
        albedo_mean=torch.full((count, 3), 0.5),
        albedo_basis=torch.zeros(1, count, 3),
        triangles=triangles,
        landmark_vertices=torch.zeros(68, dtype=torch.int64),
        uv=uv,
        parts=torch.zeros(count, dtype=torch.int64),
    )


def filling_camera(size_px: int, count: int = 1) -> Camera:
    """Sees the sheet, one metre away, over exactly the whole image."""
    return Camera(
        focal_px=torch.full((count,), size_px * 1000.0 / (2 * HALF_MM)),
        principal_px=torch.full((count, 2), size_px / 2.0),
        size=(size_px, size_px),
    )


def in_front(vertices: Tensor, *, turn_deg: float = 0.0) -> Tensor:
    """Camera space, one metre away, turned about the vertical axis."""
    turn = torch.tensor(turn_deg).deg2rad()
    matrix = torch.tensor([[turn.cos(), 0.0, turn.sin()], [0.0, 1.0, 0.0], [-turn.sin(), 0.0, turn.cos()]])
    turned = (vertices @ matrix.T) * torch.tensor([1.0, -1.0, -1.0])
    return (turned + torch.tensor([0.0, 0.0, 1000.0]))[None]
