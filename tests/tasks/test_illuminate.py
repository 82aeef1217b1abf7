"""Lamps: what faces them is bright, what something stands before is not."""

from __future__ import annotations

import numpy as np
import torch

from tasks.illuminate import lamp_light, light_skin
from tasks.paint import Painted
from tasks.subjects import Lamp


def plate(centre: tuple[float, float, float], half: float, count: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """A square that faces the camera (normal -z), with its triangles."""
    line = torch.linspace(-half, half, count)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y, torch.zeros_like(x)], 2).reshape(-1, 3) + torch.tensor(centre)
    index = torch.arange(count * count).view(count, count)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    return points, torch.cat([torch.stack([a, c, b], 2).view(-1, 3), torch.stack([a, d, c], 2).view(-1, 3)])


def test_a_small_plate_shades_a_large_one() -> None:
    wall, wall_triangles = plate((0.0, 0.0, 1000.0), 100.0)
    shade, shade_triangles = plate((0.0, 0.0, 940.0), 20.0)
    vertices = torch.cat([wall, shade])[None]
    triangles = torch.cat([wall_triangles, shade_triangles + len(wall)])
    positions = torch.tensor([[-80.0, 0.0, 1000.0], [0.0, 0.0, 1000.0], [60.0, 0.0, 1000.0], [0.0, 0.0, 940.0]])
    positions = positions.view(1, 1, 4, 3).expand(2, 1, 4, 3)
    normals = torch.tensor([0.0, 0.0, -1.0]).expand_as(positions)
    slanted = np.array([1.0, 0.0, -1.0]) / np.sqrt(2.0)
    directions = torch.tensor(np.array([[0.0, 0.0, -1.0], slanted])).float()
    lit = lamp_light(
        vertices.expand(2, -1, -1), triangles, positions=positions, normals=normals, directions=directions
    )[:, 0]
    # From the front the shadow lies behind the plate; a lamp on the right throws it 60 mm to the left.
    np.testing.assert_allclose(lit[0], [1.0, 0.0, 1.0, 1.0], atol=0.05)
    assert lit[1, 1] > 0.95
    moved = torch.tensor([[[[-60.0, 0.0, 1000.0], [60.0, 0.0, 1000.0]]]])
    lit = lamp_light(vertices, triangles, positions=moved, normals=normals[:1, :, :2], directions=directions[1:])[0, 0]
    np.testing.assert_allclose(lit, [0.0, 1.0], atol=0.05)


def lit_pixels(normals: np.ndarray, *, lit: float, gloss: float = 0.0, softness: float = 0.0) -> np.ndarray:
    count = len(normals)
    painted = Painted(
        albedo=np.full((count, 3), 0.5),
        gloss=np.full(count, gloss),
        sharpness=np.full(count, 30.0),
        bare=np.ones(count, bool),
        hairy=np.zeros(count, bool),
    )
    ambient = np.zeros((9, 3))
    ambient[0] = 0.2
    return light_skin(
        painted,
        normal=normals.astype(np.float32),
        position=np.tile(np.array([[0.0, 0.0, 1000.0]]), (count, 1)),
        lighting=ambient,
        lamp=Lamp(np.array([0.0, 0.0, -1.0]), np.ones(3), softness),
        lit=np.full(count, lit),
    )


def test_values_by_hand() -> None:
    front, away = np.array([[0.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 1.0]])
    np.testing.assert_allclose(lit_pixels(front, lit=1.0), [[0.6] * 3], atol=1e-6)
    np.testing.assert_allclose(lit_pixels(front, lit=0.0), [[0.1] * 3], atol=1e-6)
    np.testing.assert_allclose(lit_pixels(away, lit=1.0), [[0.1] * 3], atol=1e-6)


def test_skin_is_red_where_the_shadow_begins() -> None:
    side = lit_pixels(np.array([[1.0, 0.0, 0.0]]), lit=1.0)[0]
    assert side[0] > side[1] > side[2] > 0.1


def test_gloss_adds_light_towards_the_mirror_only() -> None:
    normals = np.array([[0.0, 0.0, -1.0], [0.8, 0.0, -0.6]])
    added = lit_pixels(normals, lit=1.0, gloss=0.5) - lit_pixels(normals, lit=1.0)
    np.testing.assert_allclose(added[0], 0.5, atol=1e-3)
    assert added[1].max() < 0.05
