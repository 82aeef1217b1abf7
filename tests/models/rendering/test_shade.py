from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import interpolate, vertex_normals
from models.types import Camera


def square_camera(size_px: int, *, focal: float, dtype: torch.dtype = torch.float64) -> Camera:
    return Camera(
        focal_px=torch.tensor([focal], dtype=dtype),
        principal_px=torch.full((1, 2), size_px / 2, dtype=dtype),
        size=(size_px, size_px),
    )


def octahedron() -> tuple[Tensor, Tensor]:
    """Corners on the axes, triangles counter-clockwise from outside."""
    vertices = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    triangles = []
    for x in (0, 3):
        for y in (1, 4):
            for z in (2, 5):
                turned = (x == 3) ^ (y == 4) ^ (z == 5)
                triangles.append([x, z, y] if turned else [x, y, z])
    return vertices, torch.tensor(triangles)


def test_normals_point_outwards() -> None:
    vertices, triangles = octahedron()
    torch.testing.assert_close(vertex_normals(vertices[None], triangles)[0], vertices)


def test_normals_are_weighted_by_area() -> None:
    # A floor of area 2 and a wall of area 1 meet in the first corner: their cross products are (0, 0, 4) and (2, 0, 0).
    vertices = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 1]]])
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    torch.testing.assert_close(normals[0, 0], functional.normalize(torch.tensor([2.0, 0, 4]), dim=0))


def test_a_vertex_without_area_has_no_normal() -> None:
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]]])
    assert not vertex_normals(vertices, torch.tensor([[0, 1, 2]]))[0, 3].any()


def test_normals_turn_with_the_mesh() -> None:
    vertices, triangles = octahedron()
    bent = vertices + 0.3 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.3, 0.5], [0.3, 0, -0.2], [-0.5, 0.2, 0]]).double())
    torch.testing.assert_close(
        vertex_normals((bent @ turn.T)[None], triangles), vertex_normals(bent[None], triangles) @ turn.T
    )


def slanted() -> tuple[Tensor, Tensor]:
    """A triangle that recedes from 100 mm on the left to 200 mm on the right: z = 150 + 5 x."""
    return torch.tensor([[[-10.0, -30, 100], [-10, 30, 100], [10, 0, 200]]]).double(), torch.tensor([[0, 1, 2]])


def test_interpolation_is_correct_under_perspective() -> None:
    vertices, triangles = slanted()
    camera = square_camera(5, focal=100.0)
    ids, _ = rasterize_ids(vertices, triangles, camera)
    assert int(ids[0, 2, 2]) == 0
    values = interpolate(torch.tensor([[[0.0], [0.0], [1.0]]]).double(), vertices, triangles, ids, camera)
    # The ray along the axis meets the plane at x = 0, halfway; interpolation in the image would give 2/3.
    assert values[0, 0, 2, 2].item() == pytest.approx(0.5)
    # One pixel to the right: x = 150 s / (1 - 5 s) with s = 0.01.
    assert values[0, 0, 2, 3].item() == pytest.approx((150 * 0.01 / (1 - 0.05) + 10) / 20)


def test_gradients_of_interpolation() -> None:
    generator = torch.Generator().manual_seed(1)
    vertices, triangles = octahedron()
    vertices = (20 * vertices + torch.randn(6, 3, generator=generator, dtype=torch.float64))[None]
    vertices = (vertices + torch.tensor([1.0, -2.0, 100.0])).requires_grad_()
    camera = square_camera(6, focal=12.0)
    ids, _ = rasterize_ids(vertices, triangles.flip(1), camera)
    assert len(ids.unique()) > 3
    attributes = torch.rand(1, 6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda values, place: interpolate(values, place, triangles.flip(1), ids, camera), (attributes, vertices)
    )


@pytest.mark.parametrize(("width_px", "passes"), [(0.12, True), (0.08, False)])
def test_slivers_pass_no_gradient_to_their_vertices(width_px: float, passes: bool) -> None:
    # In pixels: a triangle of height 1 and the given width around the centre of the middle pixel.
    pixels = torch.tensor([[1.5, 1.0], [1.5 - width_px / 2, 2.0], [1.5 + width_px / 2, 2.0]]).double()
    depth = torch.tensor([[100.0], [120.0], [110.0]]).double()
    vertices = torch.cat([(pixels - 1.5) * depth / 50.0, depth], 1)[None].requires_grad_()
    triangles, camera = torch.tensor([[0, 1, 2]]), square_camera(3, focal=50.0)
    ids = torch.full((1, 3, 3), -1)
    ids[0, 1, 1] = 0
    attributes = torch.tensor([[[0.0], [1.0], [5.0]]]).double().requires_grad_()
    values = interpolate(attributes, vertices, triangles, ids, camera)
    values.sum().backward()
    assert vertices.grad is not None
    assert attributes.grad is not None
    assert bool(vertices.grad.any()) is passes
    assert attributes.grad.sum().item() == pytest.approx(1.0)
