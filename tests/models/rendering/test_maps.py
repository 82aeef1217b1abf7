from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.face.camera import crop_camera
from models.face.morphable import MorphableModel
from models.rendering.maps import depth_image, normal_image
from models.rendering.rasterize import rasterize
from models.rendering.render import render
from models.types import Camera
from tests.sheet_face import filling_camera, in_front, sheet


def test_depth_of_a_slanted_sheet() -> None:
    vertices, _, triangles = sheet(2, half_mm=30.0)
    size_px, turn = 40, math.radians(30.0)
    depth = depth_image(in_front(vertices, turn_deg=30.0), triangles, filling_camera(size_px))[0]
    # The plane is z = 1000 + x tan, so the ray (s, 0, 1) meets it at z = 1000 / (1 - s tan).
    for column in (10, 19, 20, 28):
        slope = (column + 0.5 - size_px / 2) / (size_px * 10)
        assert float(depth[20, column]) == pytest.approx(1000.0 / (1.0 - slope * math.tan(turn)), rel=1e-6)
    assert float(depth[20, 28] - depth[20, 10]) > 10.0
    assert not depth[:, :5].any()
    assert not depth[:5].any()


def test_normals_of_slanted_sheets_are_unit_and_zero_beside() -> None:
    vertices, _, triangles = sheet(3, half_mm=30.0)
    turned = torch.cat([in_front(vertices), in_front(vertices, turn_deg=40.0)])
    normals = normal_image(turned, triangles, filling_camera(32, 2))
    angle = math.radians(40.0)
    torch.testing.assert_close(normals[0, :, 16, 16], torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(normals[1, :, 16, 16], torch.tensor([math.sin(angle), 0.0, -math.cos(angle)]))
    length = normals.norm(dim=1)
    covered = depth_image(turned, triangles, filling_camera(32, 2)) > 0
    torch.testing.assert_close(length, covered.float())
    # 9.6 pixels to either side of the middle: 20 centres.
    assert int(covered[0].sum()) == 400


def test_maps_of_a_face_are_what_the_renderer_draws(face: MorphableModel) -> None:
    vertices = (face.mean * torch.tensor([1.0, -1.0, -1.0]) + torch.tensor([0.0, 0.0, 1000.0]))[None]
    camera = crop_camera(1, 48)
    torch.testing.assert_close(
        depth_image(vertices, face.triangles, camera), rasterize(vertices, face.triangles, camera).depth
    )
    lighting = torch.ones(1, 9, 3)
    drawn = render(vertices, face.triangles, albedo=face.albedo_mean[None], lighting=lighting, camera=camera)
    torch.testing.assert_close(normal_image(vertices, face.triangles, camera), drawn.normals)


def test_an_empty_image_is_zero_and_not_nan() -> None:
    vertices, _, triangles = sheet(2)
    behind = in_front(vertices) - torch.tensor([0.0, 0.0, 3000.0])
    assert torch.equal(depth_image(behind, triangles, filling_camera(8)), torch.zeros(1, 8, 8))
    assert torch.equal(normal_image(behind, triangles, filling_camera(8)), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("draw", [depth_image, normal_image])
def test_gradients(draw) -> None:  # type: ignore[no-untyped-def]
    vertices, _, triangles = sheet(3, half_mm=42.0)
    bent = vertices + 4.0 * torch.randn(vertices.shape, generator=torch.Generator().manual_seed(0))
    place = in_front(bent).double().requires_grad_()
    camera = Camera(torch.tensor([60.0]).double(), torch.tensor([[3.1, 2.9]]).double(), (6, 6))

    def image(vertices: Tensor) -> Tensor:
        drawn: Tensor = draw(vertices, triangles, camera)
        return drawn

    assert image(place).count_nonzero() > 15
    # Small steps, so that no pixel changes its triangle.
    assert torch.autograd.gradcheck(image, (place,), eps=1e-6, atol=1e-6)
