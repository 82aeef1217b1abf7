"""The rasteriser compiled for the processor: triangle after triangle into a depth buffer.

A first look at the projected corners, in single precision and cautious, leaves the triangles that may cover a pixel;
edges and depth are then tested in double precision with the same sums as in the torch backend.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.face.camera import NEAR_MM
from models.rendering.compiled import camera_numbers, kernel, run_jobs, triangle_corners
from models.rendering.rasterize import MAX_FRAGMENTS
from models.types import Camera

ROUNDING = 2.0**-21
"""Bounds the relative rounding of projected corners in single precision."""


def rasterize_ids_numba(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    max_fragments: int = MAX_FRAGMENTS,
) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """See `Rasterizer`; on the processor only. Holds no fragments, so their limit is not needed.

    Raises: ValueError if the tensors are elsewhere.
    """
    del max_fragments
    if vertices.device.type != "cpu":
        raise ValueError(f"rasterizer numba: vertices are on {vertices.device}, expected cpu; choose auto or torch")
    count, (height, width) = len(vertices), camera.size
    ids = torch.empty((count, height, width), dtype=torch.int64)
    depth = torch.empty((count, height, width), dtype=torch.float32)
    places, corners = vertices.detach().numpy(), triangle_corners(triangles, vertices.shape[1])
    cameras = camera_numbers(camera)
    found, distances = ids.numpy(), depth.numpy()
    # Few images are cut into bands of rows, so that all cores have work.
    bands = 1 if count >= torch.get_num_threads() else torch.get_num_threads()
    edges = [height * band // bands for band in range(bands + 1)]

    def draw(job: int) -> None:
        image, band = divmod(job, bands)
        rows = slice(edges[band], edges[band + 1])
        place = np.ascontiguousarray(places[image])
        _draw(place, corners, cameras[image], edges[band], height, NEAR_MM, found[image, rows], distances[image, rows])

    run_jobs(draw, count * bands)
    return ids, depth.to(vertices.dtype)


@kernel
@no_type_check
def _draw(vertices, triangles, camera, first_row, height, near, ids, depth):
    """Fill ids and depth (rows, W) of the rows of one image that start at `first_row`."""
    focal, centre_x, centre_y = camera[0], camera[1] - 0.5, camera[2] - 0.5
    rows, width = ids.shape
    ids[:] = -1
    depth[:] = np.inf
    pixels = np.empty((vertices.shape[0], 2), np.float32)
    cut = False
    for vertex in range(vertices.shape[0]):
        z = np.float64(vertices[vertex, 2])
        if z >= near:
            scale = focal / z
            pixels[vertex, 0] = np.float32(vertices[vertex, 0] * scale + centre_x)
            pixels[vertex, 1] = np.float32(vertices[vertex, 1] * scale + centre_y - first_row)
        else:
            cut = True
            pixels[vertex] = np.nan
    candidates = np.empty(triangles.shape[0], np.uint32)
    count = _select(vertices, triangles, pixels, cut, near, rows, width, height, candidates)
    zero, one = np.float32(0.0), np.float32(1.0)
    last_x, last_y = np.float32(width - 1), np.float32(rows - 1)
    margin = np.float32(ROUNDING) * np.float32(width + height)
    for number in range(count):
        index = candidates[number]
        i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
        ax, ay, az = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
        bx, by, bz = np.float64(vertices[j, 0]), np.float64(vertices[j, 1]), np.float64(vertices[j, 2])
        cx, cy, cz = np.float64(vertices[k, 0]), np.float64(vertices[k, 1]), np.float64(vertices[k, 2])
        # The planes through the camera and the edges; two triangles get opposite ones for the edge that they share.
        px, py, pz = cy * bz - cz * by, cz * bx - cx * bz, cx * by - cy * bx
        volume = ax * px + (ay * py + az * pz)
        if not 0.0 < volume < np.inf:
            continue
        qx, qy, qz = ay * cz - az * cy, az * cx - ax * cz, ax * cy - ay * cx
        rx, ry, rz = by * az - bz * ay, bz * ax - bx * az, bx * ay - by * ax
        crossing = cut and not (az >= near and bz >= near and cz >= near)
        if crossing:
            low_x, high_x, low_y, high_y = _cut_box(vertices, i, j, k, near, focal, centre_x, centre_y - first_row)
        else:
            low_x = min(pixels[i, 0], pixels[j, 0], pixels[k, 0])
            high_x = max(pixels[i, 0], pixels[j, 0], pixels[k, 0])
            low_y = min(pixels[i, 1], pixels[j, 1], pixels[k, 1])
            high_y = max(pixels[i, 1], pixels[j, 1], pixels[k, 1])
        # Bounded on both sides before they become integers: corners may lie anywhere, or nowhere.
        left = np.int64(np.ceil(min(max(low_x - margin, zero), last_x + one)))
        right = np.int64(np.floor(max(min(high_x + margin, last_x), -one)))
        top = np.int64(np.ceil(min(max(low_y - margin, zero), last_y + one)))
        bottom = np.int64(np.floor(max(min(high_y + margin, last_y), -one)))
        numerator = focal * volume
        for row in range(top, bottom + 1):
            y = (first_row + row + 0.5) - camera[2]
            start_p, start_q, start_r = y * py + focal * pz, y * qy + focal * qz, y * ry + focal * rz
            for column in range(left, right + 1):
                x = (column + 0.5) - camera[1]
                p, q, r = x * px + start_p, x * qx + start_q, x * rx + start_r
                if p >= 0.0 and q >= 0.0 and r >= 0.0:
                    total = p + q + r
                    distance = numerator / total
                    nearer = np.float32(distance)
                    # Triangles come in their order, so on a tie the lower index stays.
                    if total > 0.0 and nearer < depth[row, column] and (not crossing or distance >= near):
                        depth[row, column] = nearer
                        ids[row, column] = np.int64(index)
    for row in range(rows):
        for column in range(width):
            if ids[row, column] < 0:
                depth[row, column] = 0.0


@kernel
@no_type_check
def _select(vertices, triangles, pixels, cut, near, rows, width, height, candidates):
    """Write the triangles that may be seen and hold the centre of a pixel, and return their number.

    Without a branch per triangle, because no processor could guess its way.
    """
    rounding, zero = np.float32(ROUNDING), np.float32(0.0)
    margin = rounding * np.float32(width + height)
    last_x, last_y = np.float32(width - 1), np.float32(rows - 1)
    wide, high = np.float32(width), np.float32(height)
    count = 0
    for index in range(triangles.shape[0]):
        i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
        ax, ay, bx, by = pixels[i, 0], pixels[i, 1], pixels[j, 0], pixels[j, 1]
        cx, cy = pixels[k, 0], pixels[k, 1]
        low_x, high_x = min(ax, bx, cx), max(ax, bx, cx)
        low_y, high_y = min(ay, by, cy), max(ay, by, cy)
        size_x, size_y = high_x - low_x, high_y - low_y
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        keep = area <= rounding * ((size_x + wide) * size_y + (size_y + high) * size_x)
        left, right = np.ceil(max(low_x - margin, zero)), np.floor(min(high_x + margin, last_x))
        top, bottom = np.ceil(max(low_y - margin, zero)), np.floor(min(high_y + margin, last_y))
        keep = keep & (left <= right) & (top <= bottom)
        if cut:
            before = (not vertices[i, 2] >= near) or (not vertices[j, 2] >= near) or (not vertices[k, 2] >= near)
            keep = keep or before
        candidates[count] = index
        count += keep
    return count


@kernel
@no_type_check
def _cut_box(vertices, i, j, k, near, focal, centre_x, centre_y):
    """Bounding box of the part of a triangle that lies beyond the near plane; empty if there is none."""
    low_x, high_x, low_y, high_y = np.inf, -np.inf, np.inf, -np.inf
    for start, end in ((i, j), (j, k), (k, i)):
        z, other = np.float64(vertices[start, 2]), np.float64(vertices[end, 2])
        if z >= near:
            x, y = focal * vertices[start, 0] / z + centre_x, focal * vertices[start, 1] / z + centre_y
            low_x, high_x, low_y, high_y = min(low_x, x), max(high_x, x), min(low_y, y), max(high_y, y)
        if (z < near) != (other < near):
            share = (near - z) / (other - z)
            x = focal * (vertices[start, 0] + share * (vertices[end, 0] - vertices[start, 0])) / near + centre_x
            y = focal * (vertices[start, 1] + share * (vertices[end, 1] - vertices[start, 1])) / near + centre_y
            low_x, high_x, low_y, high_y = min(low_x, x), max(high_x, x), min(low_y, y), max(high_y, y)
    return np.float32(low_x), np.float32(high_x), np.float32(low_y), np.float32(high_y)
