from __future__ import annotations

import torch
from torch import Tensor

from models.face.camera import crop_camera, to_camera_space
from models.face.lighting import irradiance
from models.face.morphable import MorphableModel
from models.rendering.render import render
from models.types import Camera


def seen(face: MorphableModel, yaw: tuple[float, ...] = (0.0,)) -> Tensor:
    rotation = torch.zeros(len(yaw), 3)
    rotation[:, 1] = torch.tensor(yaw)
    translation = torch.tensor([0.0, 0.0, 1000.0]).expand(len(yaw), 3)
    return to_camera_space(face.mean.expand(len(yaw), -1, -1), rotation=rotation, translation=translation)


def ambient(count: int) -> Tensor:
    lighting = torch.zeros(count, 9, 3)
    lighting[:, 0] = 1.0
    return lighting


def test_light_from_everywhere_shows_the_albedo(face: MorphableModel) -> None:
    colour = torch.tensor([0.2, 0.5, 0.8])
    vertices = seen(face, (0.0, 0.7))
    drawn = render(
        vertices,
        face.triangles,
        albedo=colour.expand(2, face.vertex_count, 3),
        lighting=ambient(2),
        camera=crop_camera(2, 32),
    )
    assert drawn.mask.sum((1, 2)).min() > 200
    pixels = drawn.image.permute(0, 2, 3, 1)
    torch.testing.assert_close(pixels[drawn.mask], colour.expand(int(drawn.mask.sum()), 3))
    assert not pixels[~drawn.mask].any()


def test_normals_are_unit_and_look_at_the_camera(face: MorphableModel) -> None:
    drawn = render(
        seen(face), face.triangles, albedo=face.albedo_mean[None], lighting=ambient(1), camera=crop_camera(1, 48)
    )
    normals = drawn.normals.permute(0, 2, 3, 1)
    torch.testing.assert_close(normals[drawn.mask].norm(dim=1), torch.ones(int(drawn.mask.sum())))
    assert not normals[~drawn.mask].any()
    assert (normals[drawn.mask][:, 2] < 0.1).all()
    assert normals[drawn.mask][:, 2].mean() < -0.7


def test_colour_is_albedo_times_irradiance_of_the_interpolated_normal(face: MorphableModel) -> None:
    lighting = 0.3 * torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(0))
    camera = crop_camera(1, 40)
    lit = render(seen(face), face.triangles, albedo=face.albedo_mean[None], lighting=lighting, camera=camera)
    plain = render(seen(face), face.triangles, albedo=face.albedo_mean[None], lighting=ambient(1), camera=camera)
    light = irradiance(lit.normals.flatten(2).transpose(1, 2), lighting).transpose(1, 2).unflatten(2, (40, 40))
    expected = (plain.image * light)[lit.mask[:, None].expand(-1, 3, -1, -1)]
    torch.testing.assert_close(lit.image[lit.mask[:, None].expand(-1, 3, -1, -1)], expected)


def test_light_from_the_left_of_the_image_brightens_its_left(face: MorphableModel) -> None:
    lighting = ambient(1)
    lighting[:, 3] = -0.5
    drawn = render(
        seen(face),
        face.triangles,
        albedo=torch.ones(1, face.vertex_count, 3),
        lighting=lighting,
        camera=crop_camera(1, 40),
    )
    row = drawn.image[0, 0, 20]
    assert row[drawn.mask[0, 20]][0] > row[drawn.mask[0, 20]][-1] + 0.3


def test_gradients_of_rendering(face: MorphableModel) -> None:
    vertices = seen(face).double()
    camera = Camera(torch.tensor([40.0]).double(), torch.tensor([[4.0, 5.0]]).double(), (10, 8))
    generator = torch.Generator().manual_seed(2)
    lighting = torch.randn(1, 9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    albedo = torch.rand(1, 1, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def draw(lighting: Tensor, albedo: Tensor) -> Tensor:
        tinted = albedo * face.albedo_mean.double()
        return render(vertices, face.triangles, albedo=tinted, lighting=lighting, camera=camera).image

    assert draw(lighting, albedo).count_nonzero() > 60
    assert torch.autograd.gradcheck(draw, (lighting, albedo))


def test_gradients_reach_the_vertices_through_colour_and_normals(face: MorphableModel) -> None:
    lighting = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    camera = Camera(torch.tensor([40.0]).double(), torch.tensor([[4.0, 5.0]]).double(), (10, 8))
    basis = face.identity_basis.double()

    def draw(identity: Tensor) -> Tensor:
        turned = torch.einsum("bi,ivc->bvc", identity, basis) * torch.tensor([1.0, -1.0, -1.0])
        return render(
            seen(face).double() + turned,
            face.triangles,
            albedo=face.albedo_mean.double()[None],
            lighting=lighting,
            camera=camera,
        ).image

    # Small steps, so that no pixel changes its triangle: silhouettes carry no gradient.
    identity = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(draw, (identity,), eps=1e-7, atol=1e-5)
