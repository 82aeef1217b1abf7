"""The rasteriser against a slow oracle that looks at every pixel and every triangle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.face.camera import NEAR_MM, crop_camera, to_camera_space
from models.face.morphable import MorphableModel
from models.rendering.rasterize import build_rasterizer, pixel_rays, rasterize, rasterize_ids
from models.types import Camera


@pytest.fixture(params=["torch", "numba"], scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that runs on any machine."""
    return request.param


def camera_of(size: tuple[int, int], *, focal: float, principal: tuple[float, float] | None = None) -> Camera:
    x, y = principal if principal is not None else (size[1] / 2, size[0] / 2)
    return Camera(
        focal_px=torch.tensor([focal], dtype=torch.float64),
        principal_px=torch.tensor([[x, y]], dtype=torch.float64),
        size=size,
    )


def oracle(vertices: np.ndarray, triangles: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel asks every triangle where its ray meets it; the nearest front wins, then the lower index."""
    height, width = camera.size
    focal, principal = float(camera.focal_px[0]), camera.principal_px[0].numpy()
    ids = np.full((height, width), -1)
    depths = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            # The ray, and the volumes that it spans with the edges: all exact where the numbers are round.
            ray = np.array([column + 0.5 - principal[0], row + 0.5 - principal[1], focal])
            best = None
            for number, triangle in enumerate(triangles):
                a, b, c = vertices[triangle]
                volume = a @ np.cross(c, b)
                if volume <= 0:
                    continue
                weights = np.array([ray @ np.cross(c, b), ray @ np.cross(a, c), ray @ np.cross(b, a)])
                if (weights < 0).any() or weights.sum() <= 0:
                    continue
                depth = focal * volume / weights.sum()
                if depth < NEAR_MM:
                    continue
                # A tie is what single precision cannot tell apart, as the keys are made of it.
                key = (np.float32(depth), number)
                if best is None or key < best:
                    best = key
            if best is not None:
                depths[row, column], ids[row, column] = best
    return ids, depths


def assert_agrees(backend: str, vertices: Tensor, triangles: Tensor, camera: Camera) -> np.ndarray:
    expected, expected_depth = oracle(vertices.numpy(), triangles.numpy(), camera)
    ids, depth = rasterize_ids(vertices[None], triangles, camera, rasterizer=backend)
    np.testing.assert_array_equal(ids[0].numpy(), expected)
    np.testing.assert_allclose(depth[0].numpy(), expected_depth, rtol=1e-6)
    return expected


def random_mesh(seed: int, *, vertices: int = 24, triangles: int = 40) -> tuple[Tensor, Tensor]:
    """Large, small, turned away, degenerate, cutting through each other, partly out of view and behind the camera."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(vertices, 3, generator=generator, dtype=torch.float64)
    place = (place - torch.tensor([0.5, 0.5, 0.0])) * torch.tensor([160.0, 120.0, 250.0]) + torch.tensor([0, 0, -5.0])
    return place, torch.randint(vertices, (triangles, 3), generator=generator)


@pytest.mark.parametrize("size", [(20, 24), (5, 33), (31, 6), (1, 1)])
@pytest.mark.parametrize("seed", [1, 3])
def test_random_meshes_agree_with_the_oracle(backend: str, size: tuple[int, int], seed: int) -> None:
    vertices, triangles = random_mesh(seed)
    expected = assert_agrees(backend, vertices, triangles, camera_of(size, focal=0.9 * max(size)))
    if min(size) > 1:
        assert len(np.unique(expected)) > 3


@pytest.mark.parametrize("principal", [(-30.0, 8.0), (50.0, -20.0)])
def test_the_principal_point_may_lie_outside_the_image(backend: str, principal: tuple[float, float]) -> None:
    vertices, triangles = random_mesh(2)
    vertices = vertices * torch.tensor([4.0, 4.0, 1.0])
    expected = assert_agrees(backend, vertices, triangles, camera_of((16, 20), focal=20.0, principal=principal))
    assert (expected >= 0).any()


corner = st.tuples(st.integers(-6, 26), st.integers(-6, 22), st.sampled_from([8.0, 16.0, 32.0, 64.0]))


@given(corners=st.lists(corner, min_size=3, max_size=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pixel_centres_on_edges_and_corners_agree_with_the_oracle(
    backend: str, corners: list[tuple[int, int, float]], data: st.DataObject
) -> None:
    # Half pixels and powers of two: every product is exact, so that ties are ties.
    place = torch.tensor(corners, dtype=torch.float64)
    depth = place[:, 2:]
    vertices = torch.cat([(place[:, :2] / 2 - torch.tensor([5.0, 4.0])) * depth / 16.0, depth], 1)
    index = st.integers(0, len(corners) - 1)
    triangles = data.draw(st.lists(st.tuples(index, index, index), min_size=1, max_size=8))
    assert_agrees(backend, vertices, torch.tensor(triangles), camera_of((8, 10), focal=16.0, principal=(5.0, 4.0)))


@pytest.mark.parametrize("limit", [1, 13, 200])
def test_the_chunk_limit_changes_nothing(backend: str, limit: int) -> None:
    vertices, triangles = random_mesh(3)
    camera = camera_of((20, 24), focal=20.0)
    whole_ids, whole_depth = rasterize_ids(vertices[None], triangles, camera, rasterizer=backend)
    ids, depth = rasterize_ids(vertices[None], triangles, camera, max_fragments=limit, rasterizer=backend)
    assert torch.equal(ids, whole_ids)
    assert torch.equal(depth, whole_depth)


def test_meshes_of_a_batch_do_not_mix(backend: str) -> None:
    triangles = random_mesh(4)[1]
    vertices = torch.stack([random_mesh(seed)[0] for seed in (4, 5, 6)])
    one = camera_of((14, 18), focal=20.0)
    cameras = Camera(
        focal_px=torch.tensor([20.0, 15.0, 30.0]).double(),
        principal_px=torch.tensor([[9.0, 7.0], [4.0, 4.0], [9.0, 12.0]]).double(),
        size=one.size,
    )
    ids, depth = rasterize_ids(vertices, triangles, cameras, rasterizer=backend)
    for place in range(3):
        camera = Camera(cameras.focal_px[place, None], cameras.principal_px[place, None], one.size)
        alone_ids, alone_depth = rasterize_ids(vertices[place, None], triangles, camera, rasterizer=backend)
        assert torch.equal(ids[place], alone_ids[0])
        assert torch.equal(depth[place], alone_depth[0])


def big_triangle(depth_mm: float) -> Tensor:
    """Covers every pixel of the test images; corners 0, 1, 2 are its front."""
    return torch.tensor([[-9.0, -9.0, 1.0], [-9.0, 9.0, 1.0], [18.0, 0.0, 1.0]]).double() * depth_mm


def test_the_lower_index_wins_an_exact_tie(backend: str) -> None:
    vertices = torch.cat([big_triangle(50.0), big_triangle(50.0)])
    ids, _ = rasterize_ids(
        vertices[None], torch.tensor([[4, 5, 3], [0, 1, 2]]), camera_of((4, 5), focal=4.0), rasterizer=backend
    )
    assert ids.unique().tolist() == [0]


def test_the_nearer_triangle_wins_whatever_its_index(backend: str) -> None:
    vertices = torch.cat([big_triangle(50.0), big_triangle(40.0)])
    ids, depth = rasterize_ids(
        vertices[None], torch.tensor([[0, 1, 2], [3, 4, 5]]), camera_of((4, 5), focal=4.0), rasterizer=backend
    )
    assert ids.unique().tolist() == [1]
    torch.testing.assert_close(depth, torch.full_like(depth, 40.0))


@pytest.mark.parametrize(
    ("vertices", "triangles"),
    [
        (big_triangle(50.0), [[0, 2, 1]]),  # seen from behind
        (-big_triangle(50.0), [[0, 1, 2]]),  # behind the camera
        (big_triangle(NEAR_MM / 2), [[0, 1, 2]]),  # before the near plane
        (big_triangle(50.0), [[0, 1, 1]]),  # without area
        (big_triangle(50.0) + torch.tensor([5000.0, 0.0, 0.0]), [[0, 1, 2]]),  # beside the image
    ],
)
def test_what_is_not_drawn_leaves_every_pixel_empty(backend: str, vertices: Tensor, triangles: list[list[int]]) -> None:
    fragments = rasterize(vertices[None], torch.tensor(triangles), camera_of((4, 5), focal=4.0), rasterizer=backend)
    assert fragments.triangle_ids.unique().tolist() == [-1]
    assert not fragments.depth.any()
    assert not fragments.barycentrics.any()


def test_a_mesh_without_triangles_is_empty(backend: str) -> None:
    ids, _ = rasterize_ids(
        big_triangle(50.0)[None], torch.zeros(0, 3, dtype=torch.int64), camera_of((4, 5), focal=4.0), rasterizer=backend
    )
    assert ids.shape == (1, 4, 5)
    assert ids.unique().tolist() == [-1]


def test_barycentrics_give_the_point_on_the_ray_of_the_pixel(backend: str) -> None:
    vertices, triangles = random_mesh(7)
    camera = camera_of((20, 24), focal=20.0)
    fragments = rasterize(vertices[None], triangles, camera, rasterizer=backend)
    hit = (fragments.triangle_ids >= 0).nonzero(as_tuple=True)
    weights = fragments.barycentrics[hit]
    assert len(weights) > 50
    assert weights.min() > -1e-9
    points = (vertices[triangles[fragments.triangle_ids[hit]]] * weights[..., None]).sum(1)
    torch.testing.assert_close(points[:, 2], fragments.depth[hit], rtol=1e-6, atol=0)
    torch.testing.assert_close(points / points[:, 2:], pixel_rays(camera, hit), rtol=1e-9, atol=1e-9)


def seen(face: MorphableModel, *, turn: float = 0.4) -> Tensor:
    """The face before the camera, frontal and turned."""
    rotation = torch.tensor([[0.0, 0.0, 0.0], [0.1, turn, -0.2]])
    translation = torch.tensor([[0.0, 0.0, 1000.0], [4.0, -7.0, 900.0]])
    return to_camera_space(face.mean.expand(2, -1, -1), rotation=rotation, translation=translation)


def test_single_precision_draws_the_same_face(backend: str, face: MorphableModel) -> None:
    vertices, camera = seen(face), crop_camera(2, 64)
    exact = Camera(camera.focal_px.double(), camera.principal_px.double(), camera.size)
    expected, _ = rasterize_ids(vertices.double(), face.triangles, exact, rasterizer="torch")
    ids, depth = rasterize_ids(vertices, face.triangles, camera, rasterizer=backend)
    assert (expected >= 0).sum() > 2000
    assert torch.equal(ids, expected)
    assert ids.dtype == torch.int64
    assert depth.dtype == torch.float32


def test_half_precision_is_drawn_as_single(backend: str, face: MorphableModel) -> None:
    vertices, camera = seen(face).bfloat16(), crop_camera(2, 24)
    ids, depth = rasterize_ids(vertices, face.triangles, camera, rasterizer=backend)
    expected, _ = rasterize_ids(vertices.float(), face.triangles, camera, rasterizer=backend)
    assert torch.equal(ids, expected)
    assert depth.dtype == torch.bfloat16


@pytest.mark.parametrize("zoom", [0.2, 1.0, 9.0])
def test_backends_draw_the_same_face(face: MorphableModel, zoom: float) -> None:
    camera = crop_camera(2, 80)
    camera = Camera(camera.focal_px * zoom, camera.principal_px + torch.tensor([3.3, -1.7]), (80, 70))
    expected, expected_depth = rasterize_ids(seen(face), face.triangles, camera, rasterizer="torch")
    ids, depth = rasterize_ids(seen(face), face.triangles, camera, rasterizer="numba")
    assert torch.equal(ids, expected)
    assert torch.equal(depth, expected_depth)


def test_the_number_of_threads_changes_nothing(backend: str, face: MorphableModel) -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        for part in (slice(None), slice(1)):
            camera = crop_camera(2, 37)
            camera = Camera(camera.focal_px[part], camera.principal_px[part], camera.size)
            found.append(rasterize_ids(seen(face)[part], face.triangles, camera, rasterizer=backend))
    torch.set_num_threads(before)
    for ids, depth in found:
        assert torch.equal(ids, found[0][0][: len(ids)])
        assert torch.equal(depth, found[0][1][: len(ids)])


def test_memory_order_changes_nothing(backend: str, face: MorphableModel) -> None:
    camera, vertices = crop_camera(2, 40), seen(face)
    spread = vertices.transpose(1, 2).contiguous().transpose(1, 2)
    columns = face.triangles.T.contiguous().T
    assert not spread.is_contiguous()
    expected, _ = rasterize_ids(vertices, face.triangles, camera, rasterizer=backend)
    ids, _ = rasterize_ids(spread, columns.int(), camera, rasterizer=backend)
    assert torch.equal(ids, expected)
    ids, _ = rasterize_ids(vertices[:1].expand(2, -1, -1), face.triangles, camera, rasterizer=backend)
    assert torch.equal(ids[1], expected[0])


def test_a_floor_under_the_camera_reaches_the_near_plane(backend: str) -> None:
    # 50 mm below the camera, from behind it to 800 mm before it; row r under the horizon shows z = 50 f / (r + 0.5).
    vertices = torch.tensor([[-4000.0, 50, -100], [4000, 50, -100], [0, 50, 800]]).double()
    camera = camera_of((30, 9), focal=4.0, principal=(4.5, 0.0))
    ids, depth = rasterize_ids(vertices[None], torch.tensor([[0, 1, 2]]), camera, rasterizer=backend)
    expected = 200.0 / (torch.arange(30).double() + 0.5)
    shown = expected >= NEAR_MM
    assert shown.sum() == 20
    assert torch.equal(ids[0, :, 4], torch.where(shown, 0, -1))
    torch.testing.assert_close(depth[0, :, 4], torch.where(shown, expected, 0.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(6))
def test_triangles_through_the_near_plane_agree_with_the_oracle(backend: str, seed: int) -> None:
    vertices, triangles = random_mesh(seed, vertices=9, triangles=3)
    vertices = vertices * torch.tensor([1.0, 1.0, 0.4]) - torch.tensor([0.0, 0.0, 30.0])
    assert_agrees(backend, vertices, triangles, camera_of((12, 14), focal=10.0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_corner_that_is_nowhere_hides_its_triangle_only(backend: str, value: float, axis: int) -> None:
    vertices = torch.cat([big_triangle(50.0), big_triangle(40.0)])
    vertices[4, axis] = value
    camera = camera_of((6, 5), focal=4.0)
    ids, depth = rasterize_ids(vertices[None], torch.tensor([[0, 1, 2], [3, 4, 5]]), camera, rasterizer=backend)
    assert depth.isfinite().all()
    if value != 1e30:
        assert ids.unique().tolist() == [0]


def test_a_batch_of_nothing_is_empty(backend: str) -> None:
    camera = Camera(torch.zeros(0), torch.zeros(0, 2), (4, 5))
    fragments = rasterize(torch.zeros(0, 3, 3), torch.tensor([[0, 1, 2]]), camera, rasterizer=backend)
    assert fragments.triangle_ids.shape == (0, 4, 5)
    assert fragments.barycentrics.shape == (0, 4, 5, 3)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="rasterizer 'opengl' is unknown, expected one of auto, torch, numba"):
        rasterize_ids(
            torch.zeros(1, 3, 3), torch.tensor([[0, 1, 2]]), camera_of((2, 2), focal=1.0), rasterizer="opengl"
        )


def test_a_backend_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pytorch3d: the package is not installed"):
        build_rasterizer("pytorch3d", torch.device("cpu"))


def test_the_processor_gets_compiled_code() -> None:
    assert build_rasterizer("auto", torch.device("cpu")).__name__ == "rasterize_ids_numba"
    assert build_rasterizer("auto", torch.device("cuda")).__name__ == "rasterize_ids_torch"
