from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.face.camera import crop_camera, to_camera_space
from models.face.lighting import irradiance
from models.face.morphable import MorphableModel
from models.rendering.rasterize import rasterize_ids
from models.rendering.render import render
from models.rendering.shade import lit_surface
from models.rendering.shade_torch import lit_surface_torch
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


def scene(face: MorphableModel, count: int, dtype: torch.dtype) -> tuple[Camera, Tensor, list[Tensor]]:
    """Camera, ids (by single precision), and vertices, albedo and light that ask for gradients."""
    yaw = tuple(torch.linspace(-0.7, 0.9, count).tolist())
    vertices = seen(face, yaw)
    camera = crop_camera(count, 64)
    ids, _ = rasterize_ids(vertices, face.triangles, camera)
    lighting = ambient(count) + 0.2 * torch.randn(count, 9, 3, generator=torch.Generator().manual_seed(4))
    albedo = (0.5 + 0.3 * torch.sin(face.mean / 40.0)).expand(count, -1, -1)
    exact = Camera(camera.focal_px.to(dtype), camera.principal_px.to(dtype), camera.size)
    return exact, ids, [value.to(dtype).clone().requires_grad_() for value in (vertices, albedo, lighting)]


Surface = Callable[..., tuple[Tensor, Tensor]]


def shaded(surface: Surface, face: MorphableModel, count: int, dtype: torch.dtype, *, bend: float) -> list[Tensor]:
    """Image, normals, and the gradients of a smooth function of both; `bend` weights the normals."""
    camera, ids, inputs = scene(face, count, dtype)
    image, normals = surface(*inputs, face.triangles, ids, camera)
    place = torch.linspace(0, 3, 64, dtype=dtype)
    weights = torch.sin(place[:, None] + 2 * place) + torch.arange(3, dtype=dtype)[:, None, None] / 5
    total = (image * weights).sum()
    if bend:
        total = total + bend * (normals * weights.flip(0)).square().sum()
    total.backward()
    return [image.detach(), normals.detach(), *(value.grad for value in inputs if value.grad is not None)]


@pytest.mark.parametrize("bend", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_kernels_agree_with_pure_torch_in_double(face: MorphableModel, count: int, bend: float) -> None:
    found = shaded(lit_surface, face, count, torch.float64, bend=bend)
    exact = shaded(lit_surface_torch, face, count, torch.float64, bend=bend)
    assert len(found) == len(exact) == 5
    for first, second in zip(found, exact, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("surface", [lit_surface, lit_surface_torch])
def test_single_precision_stays_near_double(surface: Surface, face: MorphableModel) -> None:
    found = shaded(surface, face, 5, torch.float32, bend=0.3)
    exact = shaded(lit_surface_torch, face, 5, torch.float64, bend=0.3)
    for single, double in zip(found, exact, strict=True):
        assert single.dtype == torch.float32
        assert (single - double).abs().max() < 1e-5 * double.abs().max()


@pytest.mark.parametrize("count", [1, 5])
def test_the_number_of_threads_changes_no_bit(face: MorphableModel, count: int) -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        found.append(shaded(lit_surface, face, count, torch.float32, bend=0.3))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(first, second) for first, second in zip(found[0], other, strict=True))


def test_a_face_looks_the_same_alone_and_among_others(face: MorphableModel) -> None:
    camera, _, (vertices, albedo, lighting) = scene(face, 6, torch.float32)
    whole = render(vertices, face.triangles, albedo=albedo, lighting=lighting, camera=camera)
    one = Camera(camera.focal_px[4:5], camera.principal_px[4:5], camera.size)
    alone = render(vertices[4:5], face.triangles, albedo=albedo[4:5], lighting=lighting[4:5], camera=one)
    assert torch.equal(alone.image[0], whole.image[4])
    assert torch.equal(alone.mask[0], whole.mask[4])


def test_backends_give_the_same_image(face: MorphableModel) -> None:
    camera, _, (vertices, albedo, lighting) = scene(face, 3, torch.float32)
    first, second = (
        render(vertices, face.triangles, albedo=albedo, lighting=lighting, camera=camera, rasterizer=name)
        for name in ("torch", "numba")
    )
    assert first.mask.sum() > 3000
    assert torch.equal(first.image, second.image)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2)])
def test_gradients_do_not_depend_on_which_others_are_wanted(face: MorphableModel, wanted: tuple[int, ...]) -> None:
    camera, _, inputs = scene(face, 2, torch.float32)
    every = [value.detach().clone().requires_grad_() for value in inputs]
    some = [value.detach().clone().requires_grad_(place in wanted) for place, value in enumerate(inputs)]
    for vertices, albedo, lighting in (every, some):
        drawn = render(vertices, face.triangles, albedo=albedo, lighting=lighting, camera=camera)
        (drawn.image.square().sum() + drawn.normals[:, 0].sum()).backward()
    for place, value in enumerate(some):
        assert (value.grad is not None) is (place in wanted)
        if value.grad is not None:
            assert torch.equal(value.grad, every[place].grad)


def test_a_gradient_of_the_normals_alone_reaches_the_vertices(face: MorphableModel) -> None:
    results = []
    for surface in (lit_surface, lit_surface_torch):
        camera, ids, inputs = scene(face, 2, torch.float64)
        surface(*inputs, face.triangles, ids, camera)[1][:, 0].square().sum().backward()
        results.append(inputs[0].grad)
    assert results[0].abs().max() > 0
    torch.testing.assert_close(results[0], results[1])
