from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.face.camera import crop_camera, to_camera_space
from models.face.morphable import MorphableModel
from models.rendering.rasterize import rasterize, rasterize_ids
from models.rendering.shade import interpolate, is_compiled_for, vertex_normals
from models.rendering.shade_torch import interpolate_torch, vertex_normals_torch
from models.types import Camera

BOTH = pytest.mark.parametrize("interpolated", [interpolate, interpolate_torch])
BOTH_NORMALS = pytest.mark.parametrize("normals_of", [vertex_normals, vertex_normals_torch])


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


@BOTH_NORMALS
def test_normals_point_outwards(normals_of: Callable[..., Tensor]) -> None:
    vertices, triangles = octahedron()
    torch.testing.assert_close(normals_of(vertices[None], triangles)[0], vertices)


@BOTH_NORMALS
def test_normals_are_weighted_by_area(normals_of: Callable[..., Tensor]) -> None:
    # A floor of area 2 and a wall of area 1 meet in the first corner: their cross products are (0, 0, 4) and (2, 0, 0).
    vertices = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 1]]])
    normals = normals_of(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    torch.testing.assert_close(normals[0, 0], functional.normalize(torch.tensor([2.0, 0, 4]), dim=0))


@BOTH_NORMALS
def test_a_vertex_without_area_has_no_normal(normals_of: Callable[..., Tensor]) -> None:
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]]])
    assert not normals_of(vertices, torch.tensor([[0, 1, 2]]))[0, 3].any()


@BOTH_NORMALS
def test_normals_turn_with_the_mesh(normals_of: Callable[..., Tensor]) -> None:
    vertices, triangles = octahedron()
    bent = vertices + 0.3 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.3, 0.5], [0.3, 0, -0.2], [-0.5, 0.2, 0]]).double())
    torch.testing.assert_close(normals_of((bent @ turn.T)[None], triangles), normals_of(bent[None], triangles) @ turn.T)


def slanted() -> tuple[Tensor, Tensor]:
    """A triangle that recedes from 100 mm on the left to 200 mm on the right: z = 150 + 5 x."""
    return torch.tensor([[[-10.0, -30, 100], [-10, 30, 100], [10, 0, 200]]]).double(), torch.tensor([[0, 1, 2]])


@BOTH
def test_interpolation_is_correct_under_perspective(interpolated: Callable[..., Tensor]) -> None:
    vertices, triangles = slanted()
    camera = square_camera(5, focal=100.0)
    ids, _ = rasterize_ids(vertices, triangles, camera)
    assert int(ids[0, 2, 2]) == 0
    values = interpolated(torch.tensor([[[0.0], [0.0], [1.0]]]).double(), vertices, triangles, ids, camera)
    # The ray along the axis meets the plane at x = 0, halfway; interpolation in the image would give 2/3.
    assert values[0, 0, 2, 2].item() == pytest.approx(0.5)
    # One pixel to the right: x = 150 s / (1 - 5 s) with s = 0.01.
    assert values[0, 0, 2, 3].item() == pytest.approx((150 * 0.01 / (1 - 0.05) + 10) / 20)


@BOTH
def test_gradients_of_interpolation(interpolated: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    vertices, triangles = octahedron()
    vertices = (20 * vertices + torch.randn(6, 3, generator=generator, dtype=torch.float64))[None]
    vertices = (vertices + torch.tensor([1.0, -2.0, 100.0])).requires_grad_()
    camera = square_camera(6, focal=12.0)
    ids, _ = rasterize_ids(vertices, triangles.flip(1), camera)
    assert len(ids.unique()) > 3
    attributes = torch.rand(1, 6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda values, place: interpolated(values, place, triangles.flip(1), ids, camera), (attributes, vertices)
    )


@BOTH
@pytest.mark.parametrize(("width_px", "passes"), [(0.1001, True), (0.0999, False)])
def test_slivers_pass_no_gradient_to_their_vertices(
    interpolated: Callable[..., Tensor], width_px: float, passes: bool
) -> None:
    # In pixels: a triangle of height 1 and the given width around the centre of the middle pixel.
    pixels = torch.tensor([[1.5, 1.0], [1.5 - width_px / 2, 2.0], [1.5 + width_px / 2, 2.0]]).double()
    depth = torch.tensor([[100.0], [120.0], [110.0]]).double()
    vertices = torch.cat([(pixels - 1.5) * depth / 50.0, depth], 1)[None].requires_grad_()
    triangles, camera = torch.tensor([[0, 1, 2]]), square_camera(3, focal=50.0)
    ids = torch.full((1, 3, 3), -1)
    ids[0, 1, 1] = 0
    attributes = torch.tensor([[[0.0], [1.0], [5.0]]]).double().requires_grad_()
    values = interpolated(attributes, vertices, triangles, ids, camera)
    values.sum().backward()
    assert vertices.grad is not None
    assert attributes.grad is not None
    assert bool(vertices.grad.any()) is passes
    assert attributes.grad.sum().item() == pytest.approx(1.0)


@BOTH
def test_a_sliver_through_the_near_plane_is_measured_from_there(interpolated: Callable[..., Tensor]) -> None:
    # Its third corner lies behind the camera, where a projection means nothing; the triangle is wide all the same.
    vertices = torch.tensor([[[-60.0, -60, 100], [-60, 60, 100], [90, 0, -40]]]).double().requires_grad_()
    triangles, camera = torch.tensor([[0, 1, 2]]), square_camera(6, focal=5.0)
    ids, _ = rasterize_ids(vertices, triangles, camera)
    assert (ids == 0).sum() > 4
    assert torch.autograd.gradcheck(
        lambda place: interpolated(torch.eye(3).double()[None], place, triangles, ids, camera), (vertices,)
    )


def turned_face(face: MorphableModel, count: int) -> tuple[Tensor, Tensor, Camera, Tensor]:
    """Vertices, smooth attributes, camera and ids of the face in several poses, in single precision."""
    angle = torch.linspace(-0.5, 0.6, count)
    rotation = torch.stack([0.2 * angle, angle, -0.3 * angle], 1)
    translation = torch.tensor([2.0, -3.0, 980.0]).expand(count, 3)
    vertices = to_camera_space(face.mean.expand(count, -1, -1), rotation=rotation, translation=translation)
    smooth = torch.cat([torch.sin(face.mean / 40.0), torch.cos(face.mean[:, :2] / 30.0)], 1)
    camera = crop_camera(count, 72)
    return vertices, smooth.expand(count, -1, -1), camera, rasterize_ids(vertices, face.triangles, camera)[0]


def gradients(
    interpolated: Callable[..., Tensor], face: MorphableModel, count: int, dtype: torch.dtype
) -> list[Tensor]:
    """Image, and gradients of attributes and vertices of a smooth function of it."""
    vertices, attributes, camera, ids = turned_face(face, count)
    camera = Camera(camera.focal_px.to(dtype), camera.principal_px.to(dtype), camera.size)
    inputs = [value.to(dtype).clone().requires_grad_() for value in (attributes, vertices)]
    image = interpolated(*inputs, face.triangles, ids, camera)
    place = torch.linspace(0, 3, 72, dtype=dtype)
    weights = torch.sin(place[:, None] + 2 * place) + torch.arange(5, dtype=dtype)[:, None, None] / 5
    (image * weights).sum().backward()
    return [image.detach(), *(value.grad for value in inputs if value.grad is not None)]


@BOTH
@pytest.mark.parametrize("count", [1, 5])
def test_single_precision_stays_near_double(
    interpolated: Callable[..., Tensor], face: MorphableModel, count: int
) -> None:
    exact = gradients(interpolate_torch, face, count, torch.float64)
    found = gradients(interpolated, face, count, torch.float32)
    assert len(found) == len(exact) == 3
    for single, double in zip(found, exact, strict=True):
        assert single.dtype == torch.float32
        assert (single - double).abs().max() < 1e-5 * double.abs().max()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_kernels_agree_with_pure_torch_in_double(face: MorphableModel, count: int) -> None:
    for found, exact in zip(
        gradients(interpolate, face, count, torch.float64),
        gradients(interpolate_torch, face, count, torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 5])
def test_the_number_of_threads_changes_no_bit(face: MorphableModel, threads: None, count: int) -> None:
    found = []
    for number in (1, 2, 3, 2):
        torch.set_num_threads(number)
        found.append(gradients(interpolate, face, count, torch.float32))
    for other in found[1:]:
        assert all(torch.equal(first, second) for first, second in zip(found[0], other, strict=True))


def test_memory_order_changes_nothing(face: MorphableModel) -> None:
    vertices, attributes, camera, ids = turned_face(face, 2)
    expected = interpolate(attributes.contiguous(), vertices, face.triangles, ids, camera)
    spread = [value.transpose(0, 1).contiguous().transpose(0, 1) for value in (attributes, vertices, ids)]
    assert not spread[1].is_contiguous()
    found = interpolate(spread[0], spread[1], face.triangles, spread[2], camera)
    assert torch.equal(found, expected)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    # The gradient of a sum is one number in the memory of all.
    vertices.requires_grad_()
    interpolate(attributes, vertices, face.triangles, ids, camera).sum().backward()
    assert vertices.grad is not None
    assert vertices.grad.isfinite().all()


@BOTH
def test_gradients_are_given_only_where_they_are_wanted(
    interpolated: Callable[..., Tensor], face: MorphableModel
) -> None:
    vertices, attributes, camera, ids = turned_face(face, 1)
    attributes = attributes.clone().requires_grad_()
    interpolated(attributes, vertices, face.triangles, ids, camera).square().sum().backward()
    assert attributes.grad is not None
    seen = face.triangles[ids.unique()[1:]].unique()
    assert torch.equal(attributes.grad[0].any(1).nonzero()[:, 0], seen)
    vertices.requires_grad_()
    interpolated(attributes.detach(), vertices, face.triangles, ids, camera).square().sum().backward()
    assert vertices.grad is not None
    assert vertices.grad[0, seen].any()


@BOTH
def test_where_nothing_is_seen_there_is_nothing(interpolated: Callable[..., Tensor]) -> None:
    vertices, triangles = slanted()
    attributes = torch.ones(1, 3, 2).double().requires_grad_()
    nothing = torch.full((1, 5, 4), -1)
    image = interpolated(attributes, vertices, triangles, nothing, square_camera(5, focal=1.0))
    assert image.shape == (1, 2, 5, 4)
    assert not image.any()
    image.sum().backward()
    assert attributes.grad is not None
    assert not attributes.grad.any()


@BOTH
def test_a_batch_of_nothing(interpolated: Callable[..., Tensor]) -> None:
    camera = Camera(torch.zeros(0), torch.zeros(0, 2), (4, 5))
    vertices = torch.zeros(0, 3, 3, requires_grad=True)
    ids = torch.zeros(0, 4, 5, dtype=torch.int64)
    image = interpolated(vertices, vertices, torch.tensor([[0, 1, 2]]), ids, camera)
    assert image.shape == (0, 3, 4, 5)
    image.sum().backward()


@BOTH
def test_ids_of_another_mesh_are_refused(interpolated: Callable[..., Tensor]) -> None:
    vertices, triangles = slanted()
    with pytest.raises(IndexError):
        interpolated(vertices, vertices, triangles, torch.ones(1, 3, 3).long(), square_camera(3, focal=1.0))


def test_barycentrics_interpolate(face: MorphableModel) -> None:
    vertices, attributes, camera, ids = turned_face(face, 2)
    fragments = rasterize(vertices, face.triangles, camera)
    hit = (ids >= 0).nonzero(as_tuple=True)
    corners = attributes[0][face.triangles[ids[hit]]]
    expected = (corners * fragments.barycentrics[hit][..., None]).sum(1)
    found = interpolate(attributes, vertices, face.triangles, ids, camera).permute(0, 2, 3, 1)[hit]
    torch.testing.assert_close(found, expected)


def test_normals_agree_with_pure_torch_and_their_gradients(face: MorphableModel) -> None:
    place = face.mean[None].double().clone()
    place[0, face.triangles[0]] = place[0, face.triangles[0, 0]].clone()
    found, exact = place.clone().requires_grad_(), place.clone().requires_grad_()
    weights = torch.sin(place / 20.0)
    for vertices, normals_of in ((found, vertex_normals), (exact, vertex_normals_torch)):
        (normals_of(vertices, face.triangles) * weights).sum().backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, exact.grad)
    vertices, triangles = octahedron()
    assert torch.autograd.gradcheck(lambda place: vertex_normals(place, triangles), (vertices[None].requires_grad_(),))


def test_what_the_kernels_cannot_do_falls_to_pure_torch(face: MorphableModel) -> None:
    vertices, attributes, camera, ids = turned_face(face, 1)
    moving = Camera(camera.focal_px.clone().requires_grad_(), camera.principal_px, camera.size)
    assert is_compiled_for(camera, vertices, attributes)
    assert not is_compiled_for(moving, vertices, attributes)
    assert not is_compiled_for(camera, vertices, attributes.double())
    assert not is_compiled_for(camera, vertices.bfloat16(), attributes.bfloat16())
    interpolate(attributes, vertices, face.triangles, ids, moving).square().sum().backward()
    assert moving.focal_px.grad is not None
    assert moving.focal_px.grad.any()
