"""The fitted light against the light that made the picture."""

from __future__ import annotations

import torch
from torch.nn import functional

from models.face.camera import crop_camera
from models.rendering.relight import fit_lighting, render_under_fitted_light
from models.rendering.render import render


def ball(rings: int = 24, *, radius_mm: float = 60.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A sphere in front of the camera, triangles counter-clockwise from outside."""
    polar = torch.linspace(0, torch.pi, rings)
    around = torch.arange(2 * rings) * (torch.pi / rings)
    theta, phi = torch.meshgrid(polar, around, indexing="ij")
    place = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], 2).view(-1, 3)
    index = torch.arange(len(place)).view(rings, 2 * rings)
    a, b, c, d = index[:-1], index[:-1].roll(-1, 1), index[1:], index[1:].roll(-1, 1)
    triangles = torch.cat([torch.stack([a, c, d], 2).view(-1, 3), torch.stack([a, d, b], 2).view(-1, 3)])
    return radius_mm * place[None] + torch.tensor([0.0, 0.0, 1000.0]), triangles


def test_the_light_that_made_the_picture_explains_it() -> None:
    vertices, triangles = ball()
    camera = crop_camera(1, 48)
    generator = torch.Generator().manual_seed(0)
    lighting = 0.1 * torch.randn(1, 9, 3, generator=generator)
    lighting[:, 0] += 0.8
    albedo = torch.rand(vertices.shape, generator=generator) * 0.5 + 0.3
    photo = render(vertices, triangles, albedo=albedo, lighting=lighting, camera=camera)
    assert photo.mask.sum() > 500
    found, fitted = render_under_fitted_light(
        vertices, triangles, albedo=albedo, camera=camera, image=photo.image, mask=torch.ones_like(photo.mask)
    )
    assert (found.image - photo.image).abs().max() < 5e-3
    assert (fitted - lighting).abs().max() < 0.1
    assert torch.equal(found.mask, photo.mask)


def test_pixels_outside_the_mask_do_not_count() -> None:
    generator = torch.Generator().manual_seed(1)
    normals = functional.normalize(torch.randn(2, 3, 20, 20, generator=generator), dim=1)
    albedo, image = torch.rand(2, 2, 3, 20, 20, generator=generator)
    mask = torch.zeros(2, 20, 20, dtype=torch.bool)
    mask[:, :12] = True
    changed = torch.where(mask[:, None], image, 5.0)
    torch.testing.assert_close(
        fit_lighting(image, mask, albedo=albedo, normals=normals),
        fit_lighting(changed, mask, albedo=albedo, normals=normals),
    )


def test_without_a_pixel_there_is_no_light() -> None:
    image = torch.rand(1, 3, 8, 8)
    nothing = torch.zeros(1, 8, 8, dtype=torch.bool)
    assert not fit_lighting(image, nothing, albedo=image, normals=image).any()
