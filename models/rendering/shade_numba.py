"""Shading on the processor as single differentiable steps, image by image.

Each image is one job, so gradients are summed in one order whatever the number of threads. A few images are cut into
a fixed number of bands of rows, whose sums are added in their order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.face.camera import NEAR_MM
from models.face.lighting import BAND_1, BAND_2
from models.rendering.compiled import camera_numbers, run_jobs, triangle_corners
from models.rendering.shade_kernels import (
    barycentric_rows,
    interpolate_rows,
    interpolate_rows_backward,
    light_rows,
    light_rows_backward,
    normalize_rows,
    sum_face_normals,
    vertex_normals_backward,
)
from models.rendering.shade_torch import MIN_GRADIENT_AREA_PX
from models.types import Camera

SMALLEST = 1e-12
"""Shorter normals are not made longer; as in torch's `normalize`."""

BAND_SCALES = torch.tensor(
    [1.0, BAND_1, BAND_1, BAND_1, BAND_2, BAND_2, BAND_2 / (2.0 * math.sqrt(3.0)), BAND_2, BAND_2 / 2.0],
    dtype=torch.float64,
)
"""Constants of `irradiance_basis`, which the kernels expect folded into the light."""

MIN_JOBS = 4
"""Fewer images are cut into bands; a fixed number, or the order of sums would depend on the machine."""


class _Scene:
    """Arrays of a batch of meshes with the triangle that every pixel sees, and its division into jobs."""

    def __init__(self, vertices: Tensor, triangles: Tensor, ids: Tensor, camera: Camera) -> None:
        self.vertices = vertices.detach().numpy()
        self.triangles = triangle_corners(triangles, vertices.shape[1])
        self.ids = ids.detach().long().numpy()
        self.cameras = camera_numbers(camera)
        self.count, height, _ = ids.shape
        self.bands = math.ceil(MIN_JOBS / max(1, self.count)) if self.count < MIN_JOBS else 1
        self.edges = [height * band // self.bands for band in range(self.bands + 1)]

    @property
    def jobs(self) -> int:
        return self.count * self.bands

    def rows(self, job: int) -> tuple[int, int, slice]:
        """Image, band and rows of a job."""
        image, band = divmod(job, self.bands)
        return image, band, slice(self.edges[band], self.edges[band + 1])

    def mesh(self, image: int) -> tuple[Any, Any]:
        return np.ascontiguousarray(self.vertices[image]), self.triangles

    def view(self, image: int, rows: slice) -> tuple[Any, int, Any]:
        return np.ascontiguousarray(self.ids[image, rows]), rows.start, self.cameras[image]


def barycentrics_numba(
    vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "F 3"], triangle_ids: Int[Tensor, "B H W"], camera: Camera
) -> Float[Tensor, "B H W 3"]:
    """Weights of the corners at every pixel, zero where nothing is seen; without gradient."""
    scene = _Scene(vertices, triangles, triangle_ids, camera)
    image = torch.empty((*triangle_ids.shape, 3), dtype=vertices.dtype)
    pixels = image.numpy()

    def fill(job: int) -> None:
        place, _, rows = scene.rows(job)
        barycentric_rows(*scene.mesh(place), *scene.view(place, rows), pixels[place, rows])

    run_jobs(fill, scene.jobs)
    return image


class Interpolation(torch.autograd.Function):
    """`interpolate` for tensors that `is_compiled_for` accepts."""

    @staticmethod
    def forward(
        ctx: Any, attributes: Tensor, vertices: Tensor, triangles: Tensor, ids: Tensor, camera: Camera
    ) -> Tensor:
        """Image (B, C, H, W), channels last in memory."""
        ctx.save_for_backward(attributes, vertices, triangles, ids)
        ctx.camera = camera
        scene = _Scene(vertices, triangles, ids, camera)
        values = attributes.detach().numpy()
        image = torch.empty((*ids.shape, attributes.shape[2]), dtype=vertices.dtype)
        pixels = image.numpy()

        def fill(job: int) -> None:
            place, _, rows = scene.rows(job)
            value = np.ascontiguousarray(values[place])
            interpolate_rows(*scene.mesh(place), *scene.view(place, rows), value, pixels[place, rows])

        run_jobs(fill, scene.jobs)
        return image.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_image: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of attributes and vertices."""
        attributes, vertices, triangles, ids = ctx.saved_tensors
        scene = _Scene(vertices, triangles, ids, ctx.camera)
        values, pixels = attributes.detach().numpy(), to_image.permute(0, 2, 3, 1).numpy()
        each = (scene.count, scene.bands)
        moved = np.zeros((*each, *vertices.shape[1:]), scene.vertices.dtype)
        changed = np.zeros((*each, *attributes.shape[1:]), values.dtype)
        # A triangle can never be wide enough where nobody asks for the gradient of its vertices.
        min_area = MIN_GRADIENT_AREA_PX if ctx.needs_input_grad[1] else math.inf

        def add(job: int) -> None:
            place, band, rows = scene.rows(job)
            interpolate_rows_backward(
                *scene.mesh(place),
                *scene.view(place, rows),
                np.ascontiguousarray(values[place]),
                np.ascontiguousarray(pixels[place, rows]),
                NEAR_MM,
                min_area,
                moved[place, band],
                changed[place, band],
            )

        run_jobs(add, scene.jobs)
        wanted = ctx.needs_input_grad[1]
        return _sum_bands(changed), (_sum_bands(moved) if wanted else None), None, None, None


class VertexNormals(torch.autograd.Function):
    """`vertex_normals` for tensors that `is_compiled_for` accepts."""

    @staticmethod
    def forward(ctx: Any, vertices: Tensor, triangles: Tensor) -> Tensor:
        """Unit normals (B, V, 3)."""
        places, corners = vertices.detach().numpy(), triangle_corners(triangles, vertices.shape[1])
        total, unit = np.zeros(places.shape, places.dtype), np.empty(places.shape, places.dtype)

        def average(image: int) -> None:
            sum_face_normals(np.ascontiguousarray(places[image]), corners, total[image])
            normalize_rows(total[image], unit[image], SMALLEST)

        run_jobs(average, len(vertices))
        ctx.save_for_backward(vertices, triangles, torch.from_numpy(total))
        return torch.from_numpy(unit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_normals: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the vertices."""
        vertices, triangles, sums = ctx.saved_tensors
        places, corners = vertices.detach().numpy(), triangle_corners(triangles, vertices.shape[1])
        total, turned, moved = sums.numpy(), to_normals.numpy(), np.zeros(places.shape, places.dtype)

        def add(image: int) -> None:
            place, turn = np.ascontiguousarray(places[image]), np.array(turned[image], order="C")
            vertex_normals_backward(place, corners, total[image], SMALLEST, turn, moved[image])

        run_jobs(add, len(vertices))
        return torch.from_numpy(moved), None


class LitSurface(torch.autograd.Function):
    """Image and normals of `render` for tensors that `is_compiled_for` accepts, from mesh to pixels in one step."""

    @staticmethod
    def forward(
        ctx: Any, vertices: Tensor, albedo: Tensor, lighting: Tensor, triangles: Tensor, ids: Tensor, camera: Camera
    ) -> tuple[Tensor, Tensor]:
        """Image and unit normals (B, 3, H, W), channels last in memory."""
        scene = _Scene(vertices, triangles, ids, camera)
        total = np.zeros(scene.vertices.shape, scene.vertices.dtype)
        colours, lights = albedo.detach().numpy(), _scaled(lighting)
        image, normals = (torch.empty((*ids.shape, 3), dtype=vertices.dtype) for _ in range(2))
        pixels, directions = image.numpy(), normals.numpy()

        shared: list[Any] = [None] * scene.count

        def average(place: int) -> Any:
            sum_face_normals(*scene.mesh(place), total[place])
            return _directions(total[place])

        def share(place: int) -> None:
            shared[place] = average(place)

        def fill(job: int) -> None:
            place, _, rows = scene.rows(job)
            unit = average(place) if scene.bands == 1 else shared[place]
            light_rows(
                *scene.mesh(place),
                *scene.view(place, rows),
                np.ascontiguousarray(colours[place]),
                unit,
                lights[place],
                SMALLEST,
                pixels[place, rows],
                directions[place, rows],
            )

        if scene.bands > 1:
            run_jobs(share, scene.count)
        run_jobs(fill, scene.jobs)
        ctx.save_for_backward(vertices, albedo, lighting, triangles, ids, torch.from_numpy(total))
        ctx.camera = camera
        ctx.set_materialize_grads(False)
        return image.permute(0, 3, 1, 2), normals.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_image: Tensor | None, to_normals: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of vertices, albedo and light."""
        vertices, albedo, lighting, triangles, ids, sums = ctx.saved_tensors
        scene = _Scene(vertices, triangles, ids, ctx.camera)
        total, colours, lights = sums.numpy(), albedo.detach().numpy(), _scaled(lighting)
        if to_image is None:
            to_image = vertices.new_zeros(1, 3, 1, 1).expand(scene.count, 3, *ids.shape[1:])
        pixels = to_image.permute(0, 2, 3, 1).numpy()
        none = np.zeros((0, 0, 3), pixels.dtype)
        directions = None if to_normals is None else to_normals.permute(0, 2, 3, 1).numpy()
        moves = ctx.needs_input_grad[0]
        each = (scene.count, scene.bands)
        moved = np.zeros((*each, *vertices.shape[1:]), total.dtype)
        changed, lit = np.zeros(moved.shape, moved.dtype), np.zeros((*each, 9, 3))
        # With one band an image's normals are done with when its job ends: nothing is kept for the batch.
        banded = scene.bands > 1
        turned: Any = np.zeros(moved.shape, moved.dtype) if banded else None
        shared = [_directions(total[place]) for place in range(scene.count)] if banded else []

        def add(job: int) -> None:
            place, band, rows = scene.rows(job)
            turn = turned[place, band] if banded else np.zeros_like(total[place])
            unit = shared[place] if banded else _directions(total[place])
            light_rows_backward(
                *scene.mesh(place),
                *scene.view(place, rows),
                np.ascontiguousarray(colours[place]),
                unit,
                lights[place],
                SMALLEST,
                np.ascontiguousarray(pixels[place, rows]),
                none if directions is None else np.ascontiguousarray(directions[place, rows]),
                NEAR_MM,
                MIN_GRADIENT_AREA_PX,
                moves,
                moved[place, band],
                changed[place, band],
                turn,
                lit[place, band],
            )
            if moves and not banded:
                vertex_normals_backward(*scene.mesh(place), total[place], SMALLEST, turn, moved[place, 0])

        def finish(place: int) -> None:
            turn = np.ascontiguousarray(turned[place].sum(0))
            vertex_normals_backward(*scene.mesh(place), total[place], SMALLEST, turn, moved[place, 0])

        run_jobs(add, scene.jobs)
        if moves and banded:
            run_jobs(finish, scene.count)
        light = (_sum_bands(lit) * BAND_SCALES[:, None]).to(lighting.dtype)
        return (_sum_bands(moved) if moves else None), _sum_bands(changed), light, None, None, None


def _directions(sums: Any) -> Any:
    units = np.empty_like(sums)
    normalize_rows(sums, units, SMALLEST)
    return units


def _scaled(lighting: Tensor) -> Any:
    return (lighting.detach().double() * BAND_SCALES[:, None]).contiguous().numpy()


def _sum_bands(gradients: Any) -> Tensor:
    """Sum (B, bands, …) over the bands one after another, so that the order is fixed."""
    total = gradients[:, 0]
    for band in range(1, gradients.shape[1]):
        total += gradients[:, band]
    return torch.from_numpy(total)
