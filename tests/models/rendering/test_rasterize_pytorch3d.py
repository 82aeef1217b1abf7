"""The adapter to PyTorch3D against the backend in torch; skipped where PyTorch3D is not installed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.face.camera import NEAR_MM, crop_camera, rotation_from_angles, to_camera_space
from models.face.procedural import procedural_face
from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import interpolate
from models.types import Camera

pytest.importorskip("pytorch3d")

EDGE_PX = 1e-3
"""How near an edge a pixel centre may lie for the two, which round differently, to disagree."""


@pytest.fixture(scope="module")
def faces() -> tuple[Tensor, Tensor]:
    """The procedural face in camera space, frontal, half turned and with a tilt, and its triangles."""
    face = procedural_face()
    turn = rotation_from_angles(
        torch.tensor([0.0, 0.7, -0.4]), torch.tensor([0.0, -0.2, 0.3]), torch.tensor([0.0, 0.1, -0.3])
    )
    place = torch.tensor([[0.0, 0.0, 1000.0], [10.0, -5.0, 900.0], [0.0, 20.0, 1200.0]])
    return to_camera_space(face.mean.expand(3, -1, -1), rotation=turn, translation=place), face.triangles


def big_triangle(depth_mm: float) -> Tensor:
    """Covers every pixel of a small image; corners 0, 1, 2 are its front."""
    return torch.tensor([[-9.0, -9.0, 1.0], [-9.0, 9.0, 1.0], [18.0, 0.0, 1.0]]) * depth_mm


def small_camera(*, count: int = 1, size: tuple[int, int] = (4, 5)) -> Camera:
    return Camera(torch.full((count,), 4.0), torch.tensor([[size[1] / 2, size[0] / 2]]).expand(count, 2), size)


def edge_distances(vertices: Tensor, triangles: Tensor, camera: Camera, pixels: Tensor, ids: Tensor) -> Tensor:
    """Distance in px of pixel centres (N, 3: image, row, column) from the nearest edge of the triangles named (N,)."""
    corners = vertices.double()[pixels[:, :1], triangles[ids]]
    focal, principal = camera.focal_px.double()[pixels[:, 0]], camera.principal_px.double()[pixels[:, 0]]
    place = focal[:, None, None] * corners[..., :2] / corners[..., 2:] + principal[:, None]
    start, along = place, place.roll(-1, 1) - place
    away = (pixels[:, [2, 1]] + 0.5)[:, None] - start
    share = ((away * along).sum(2) / along.square().sum(2)).clamp(0, 1)
    return (away - share[..., None] * along).norm(dim=2).amin(1)


@pytest.mark.parametrize("size", [(96, 96), (60, 80), (80, 60)])
def test_the_procedural_face_has_the_same_triangles_but_on_edges(
    faces: tuple[Tensor, Tensor], size: tuple[int, int]
) -> None:
    vertices, triangles = faces
    camera = Camera(
        focal_px=torch.tensor([520.0, 470.0, 600.0]) * min(size) / 96,
        principal_px=torch.tensor([size[1], size[0]]) / 2 + torch.tensor([[0.0, 0.0], [3.0, -2.5], [-4.0, 1.0]]),
        size=size,
    )
    expected, expected_depth = rasterize_ids(vertices, triangles, camera, rasterizer="torch")
    ids, depth = rasterize_ids(vertices, triangles, camera, rasterizer="pytorch3d")
    assert (expected >= 0).float().mean() > 0.3
    differ = (ids != expected).nonzero()
    assert len(differ) < 1e-3 * expected.numel()
    seen = torch.where(expected >= 0, expected, ids)[tuple(differ.T)]
    assert (edge_distances(vertices, triangles, camera, differ, seen) < EDGE_PX).all()
    same = (ids == expected) & (ids >= 0)
    torch.testing.assert_close(depth[same], expected_depth[same], rtol=1e-5, atol=0)
    assert not depth[ids < 0].any()
    assert depth.dtype == vertices.dtype


def test_images_agree_where_the_triangles_do(faces: tuple[Tensor, Tensor]) -> None:
    vertices, triangles = faces
    camera = crop_camera(len(vertices), 64)
    colours = (vertices - vertices.amin((0, 1))) / (vertices.amax((0, 1)) - vertices.amin((0, 1)))
    ids, images = {}, {}
    for backend in ("torch", "pytorch3d"):
        ids[backend] = rasterize_ids(vertices, triangles, camera, rasterizer=backend)[0]
        images[backend] = interpolate(colours, vertices, triangles, ids[backend], camera)
    same = (ids["torch"] == ids["pytorch3d"])[:, None].expand_as(images["torch"])
    assert same.float().mean() > 0.999
    torch.testing.assert_close(images["pytorch3d"][same], images["torch"][same], rtol=0, atol=1e-5)
    assert images["torch"][same].amax() > 0.5


def test_fronts_are_seen_and_backs_are_not() -> None:
    vertices = big_triangle(50.0)[None]
    front, _ = rasterize_ids(vertices, torch.tensor([[0, 1, 2]]), small_camera(), rasterizer="pytorch3d")
    back, _ = rasterize_ids(vertices, torch.tensor([[0, 2, 1]]), small_camera(), rasterizer="pytorch3d")
    assert front.unique().tolist() == [0]
    assert back.unique().tolist() == [-1]


def test_ids_begin_anew_in_every_image() -> None:
    nearer_first = torch.cat([big_triangle(40.0), big_triangle(50.0)])
    nearer_last = torch.cat([big_triangle(50.0), big_triangle(40.0)])
    vertices, triangles = torch.stack([nearer_first, nearer_last, nearer_first]), torch.tensor([[0, 1, 2], [3, 4, 5]])
    ids, depth = rasterize_ids(vertices, triangles, small_camera(count=3), rasterizer="pytorch3d")
    assert [image.unique().tolist() for image in ids] == [[0], [1], [0]]
    torch.testing.assert_close(depth, torch.full_like(depth, 40.0))


@pytest.mark.parametrize("corner_mm", [-60.0, 0.0, NEAR_MM / 2])
def test_what_crosses_the_near_plane_is_cut_as_elsewhere(corner_mm: float) -> None:
    # A floor that begins behind, beside or just before the camera.
    vertices = torch.tensor([[-90.0, 7.3, corner_mm], [90.0, 7.3, corner_mm], [3.0, 7.3, 90.0]])[None]
    triangles, camera = torch.tensor([[0, 1, 2], [0, 2, 1]]), small_camera(size=(15, 17))
    expected, expected_depth = rasterize_ids(vertices, triangles, camera, rasterizer="torch")
    ids, depth = rasterize_ids(vertices, triangles, camera, rasterizer="pytorch3d")
    assert len(expected.unique()) == 2
    assert torch.equal(ids, expected)
    torch.testing.assert_close(depth, expected_depth, rtol=1e-4, atol=0)
    assert depth[ids >= 0].min() >= NEAR_MM


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_triangle_with_a_corner_that_is_no_number_is_not_drawn(broken: float) -> None:
    vertices = torch.cat([big_triangle(50.0), big_triangle(40.0)])
    vertices[4, 1] = broken
    ids, depth = rasterize_ids(
        vertices[None], torch.tensor([[0, 1, 2], [3, 4, 5]]), small_camera(), rasterizer="pytorch3d"
    )
    assert ids.unique().tolist() == [0]
    torch.testing.assert_close(depth, torch.full_like(depth, 50.0))


@pytest.mark.parametrize(("images", "triangles"), [(1, 0), (0, 1)])
def test_nothing_to_draw_is_empty(images: int, triangles: int) -> None:
    vertices = big_triangle(50.0).expand(images, -1, -1)
    ids, depth = rasterize_ids(
        vertices, torch.tensor([[0, 1, 2]])[:triangles], small_camera(count=images), rasterizer="pytorch3d"
    )
    assert ids.shape == depth.shape == (images, 4, 5)
    assert (ids == -1).all()
    assert not depth.any()


def test_double_precision_in_double_precision_out() -> None:
    camera = small_camera()
    exact = Camera(camera.focal_px.double(), camera.principal_px.double(), camera.size)
    ids, depth = rasterize_ids(
        big_triangle(50.0).double()[None], torch.tensor([[0, 1, 2]]), exact, rasterizer="pytorch3d"
    )
    assert ids.dtype == torch.int64
    assert depth.dtype == torch.float64
