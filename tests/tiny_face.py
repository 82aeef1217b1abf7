"""A hand-made face model that is small enough for tests: a bumpy patch with a nose, 210 vertices."""

from __future__ import annotations

import torch

from models.face.morphable import MorphableModel

ROWS, COLUMNS = 15, 14


def tiny_face() -> MorphableModel:
    """Four identity modes, three expressions with ARKit names, two albedo modes; nothing about it is symmetric."""
    generator = torch.Generator().manual_seed(7)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, ROWS), torch.linspace(-1, 1, COLUMNS), indexing="ij")
    up, left = rows.flatten(), columns.flatten()
    nose = torch.exp(-8 * (left - 0.05).square() - 5 * (up + 0.1).square())
    depth = 30 * nose - 35 * left.square() - 20 * up.square() + 3 * torch.sin(5 * left + 2 * up)
    mean = torch.stack([70 * left, 90 * up, depth], 1)
    mean = mean + 0.5 * torch.randn(mean.shape, generator=generator)
    lower, eye_left, eye_right = (
        torch.exp(-4 * (up + 0.8).square()),
        torch.exp(-20 * ((left - 0.4).square() + (up - 0.3).square())),
        torch.exp(-20 * ((left + 0.4).square() + (up - 0.3).square())),
    )
    none = torch.zeros_like(up)
    identity = torch.stack(
        [
            torch.stack([5 * left, none, none], 1),
            torch.stack([none, none, 5 * nose], 1),
            torch.stack([none, 6 * up * left.square(), none], 1),
            torch.stack([2 * torch.sin(3 * up), none, 4 * torch.cos(3 * left)], 1),
        ]
    )
    expression = torch.stack(
        [
            torch.stack([none, -20 * lower, -6 * lower], 1),
            torch.stack([none, -6 * eye_left, none], 1),
            torch.stack([none, -6 * eye_right, none], 1),
        ]
    )
    albedo = torch.stack([torch.full((len(up), 3), 0.08), torch.stack([0.05 * left, -0.03 * left, none], 1)])
    index = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    triangles = torch.cat([torch.stack([a, b, c], 2).view(-1, 3), torch.stack([a, c, d], 2).view(-1, 3)])
    parts = torch.zeros(len(up), dtype=torch.int64)
    parts[(up + 0.5).abs() < 0.1] = 1
    parts[(up - 0.5).abs() < 0.1] = 2
    parts[(eye_left + eye_right) > 0.6] = 3
    parts[-2:] = 4
    return MorphableModel(
        name="tiny",
        licence="CC0-1.0",
        mean=mean,
        identity_basis=identity,
        expression_basis=expression,
        expression_names=["jawOpen", "eyeBlinkLeft", "eyeBlinkRight"],
        albedo_mean=0.5 + 0.15 * torch.rand(len(up), 3, generator=generator),
        albedo_basis=albedo,
        triangles=triangles,
        landmark_vertices=torch.linspace(0, ROWS * COLUMNS - 1, 68).long(),
        uv=torch.stack([(left + 1) / 2, (up + 1) / 2], 1),
        parts=parts,
    )
