"""Kernels of shading, forward and backward by hand: what a pixel sees of its triangle, and whom its gradient concerns.

Each works on some rows of one image and keeps nothing per pixel: the backward pass computes the weights again. All
arithmetic is in double precision, sums over pixels are in the type of the arrays and always in the same order. What
the formulas need from other files is an argument, because the cache of compiled code does not see those files.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from models.rendering.compiled import kernel

OUT_OF_RANGE = "a pixel sees a triangle that the mesh lacks; expected ids that were made with the same triangles"


@kernel
@no_type_check
def _weights(vertices, i, j, k, x, y):
    """Corners around the ray (x, y, 1) of a pixel as the plane sees them, their depths, and the three volumes."""
    az, bz, cz = np.float64(vertices[i, 2]), np.float64(vertices[j, 2]), np.float64(vertices[k, 2])
    ax, ay = vertices[i, 0] - az * x, vertices[i, 1] - az * y
    bx, by = vertices[j, 0] - bz * x, vertices[j, 1] - bz * y
    cx, cy = vertices[k, 0] - cz * x, vertices[k, 1] - cz * y
    return ax, ay, bx, by, cx, cy, az, bz, cz, bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx


@kernel
@no_type_check
def _is_wide(focal, near, min_area, az, bz, cz, p, q, r):
    """Whether a triangle covers enough of the image to pass a gradient to its corners."""
    depths = max(az, near) * max(bz, near) * max(cz, near)
    return focal * focal * abs(az * p + bz * q + cz * r) >= 2.0 * min_area * depths


@kernel
@no_type_check
def _add_to_corners(gradient, i, j, k, x, y, ax, ay, bx, by, cx, cy, to_p, to_q, to_r):
    """Add to the first three columns of `gradient` what the derivatives of the volumes mean for the corners."""
    gx, gy = to_r * by - to_q * cy, to_q * cx - to_r * bx
    gradient[i, 0] += gx
    gradient[i, 1] += gy
    gradient[i, 2] -= gx * x + gy * y
    gx, gy = to_p * cy - to_r * ay, to_r * ax - to_p * cx
    gradient[j, 0] += gx
    gradient[j, 1] += gy
    gradient[j, 2] -= gx * x + gy * y
    gx, gy = to_q * ay - to_p * by, to_p * bx - to_q * ax
    gradient[k, 0] += gx
    gradient[k, 1] += gy
    gradient[k, 2] -= gx * x + gy * y


@kernel
@no_type_check
def interpolate_rows(vertices, triangles, ids, first_row, camera, attributes, image):
    """Fill `image` (rows, W, C) with attributes (V, C); zero where nothing is seen."""
    focal, centre_x, centre_y = camera[0], camera[1], camera[2]
    rows, width = ids.shape
    channels = attributes.shape[1]
    for row in range(rows):
        y = (first_row + row + 0.5 - centre_y) / focal
        for column in range(width):
            index = ids[row, column]
            if index < 0:
                for channel in range(channels):
                    image[row, column, channel] = 0.0
                continue
            if index >= triangles.shape[0]:
                raise IndexError(OUT_OF_RANGE)
            x = (column + 0.5 - centre_x) / focal
            i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
            _, _, _, _, _, _, _, _, _, p, q, r = _weights(vertices, i, j, k, x, y)
            share = 1.0 / (p + q + r)
            p, q, r = p * share, q * share, r * share
            for channel in range(channels):
                image[row, column, channel] = (
                    p * attributes[i, channel] + q * attributes[j, channel] + r * attributes[k, channel]
                )


@kernel
@no_type_check
def interpolate_rows_backward(
    vertices, triangles, ids, first_row, camera, attributes, to_image, near, min_area, to_vertices, to_attributes
):
    """Add to the gradients (V, 3) and (V, C) what the gradient of the image (rows, W, C) means for them."""
    focal, centre_x, centre_y = camera[0], camera[1], camera[2]
    rows, width = ids.shape
    channels = attributes.shape[1]
    for row in range(rows):
        y = (first_row + row + 0.5 - centre_y) / focal
        for column in range(width):
            index = ids[row, column]
            if index < 0:
                continue
            x = (column + 0.5 - centre_x) / focal
            i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
            ax, ay, bx, by, cx, cy, az, bz, cz, p, q, r = _weights(vertices, i, j, k, x, y)
            wide = _is_wide(focal, near, min_area, az, bz, cz, p, q, r)
            share = 1.0 / (p + q + r)
            p, q, r = p * share, q * share, r * share
            to_p, to_q, to_r = 0.0, 0.0, 0.0
            for channel in range(channels):
                value = np.float64(to_image[row, column, channel])
                to_p += value * attributes[i, channel]
                to_q += value * attributes[j, channel]
                to_r += value * attributes[k, channel]
                to_attributes[i, channel] += p * value
                to_attributes[j, channel] += q * value
                to_attributes[k, channel] += r * value
            if wide:
                mean = p * to_p + q * to_q + r * to_r
                to_p, to_q, to_r = (to_p - mean) * share, (to_q - mean) * share, (to_r - mean) * share
                _add_to_corners(to_vertices, i, j, k, x, y, ax, ay, bx, by, cx, cy, to_p, to_q, to_r)


@kernel
@no_type_check
def barycentric_rows(vertices, triangles, ids, first_row, camera, image):
    """Fill `image` (rows, W, 3) with the weights of the corners; zero where nothing is seen."""
    focal, centre_x, centre_y = camera[0], camera[1], camera[2]
    rows, width = ids.shape
    for row in range(rows):
        y = (first_row + row + 0.5 - centre_y) / focal
        for column in range(width):
            index = ids[row, column]
            if index < 0:
                image[row, column] = 0.0
                continue
            x = (column + 0.5 - centre_x) / focal
            i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
            _, _, _, _, _, _, _, _, _, p, q, r = _weights(vertices, i, j, k, x, y)
            share = 1.0 / (p + q + r)
            image[row, column, 0], image[row, column, 1], image[row, column, 2] = p * share, q * share, r * share


@kernel
@no_type_check
def light_rows(vertices, triangles, ids, first_row, camera, albedo, normals, lighting, smallest, image, normal_image):
    """Fill `image` (rows, W, 3) with albedo times irradiance and `normal_image` with unit normals.

    `lighting` (9, 3) is double and has the constants of the bands folded in.
    """
    focal, centre_x, centre_y = camera[0], camera[1], camera[2]
    rows, width = ids.shape
    for row in range(rows):
        v = (first_row + row + 0.5 - centre_y) / focal
        for column in range(width):
            index = ids[row, column]
            if index < 0:
                for channel in range(3):
                    image[row, column, channel] = 0.0
                    normal_image[row, column, channel] = 0.0
                continue
            if index >= triangles.shape[0]:
                raise IndexError(OUT_OF_RANGE)
            u = (column + 0.5 - centre_x) / focal
            i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
            _, _, _, _, _, _, _, _, _, p, q, r = _weights(vertices, i, j, k, u, v)
            share = 1.0 / (p + q + r)
            p, q, r = p * share, q * share, r * share
            x = p * normals[i, 0] + q * normals[j, 0] + r * normals[k, 0]
            y = p * normals[i, 1] + q * normals[j, 1] + r * normals[k, 1]
            z = p * normals[i, 2] + q * normals[j, 2] + r * normals[k, 2]
            share = 1.0 / max(np.sqrt(x * x + y * y + z * z), smallest)
            x, y, z = x * share, y * share, z * share
            normal_image[row, column, 0], normal_image[row, column, 1], normal_image[row, column, 2] = x, y, z
            for channel in range(3):
                light = (
                    lighting[0, channel]
                    + y * lighting[1, channel]
                    + z * lighting[2, channel]
                    + x * lighting[3, channel]
                    + x * y * lighting[4, channel]
                    + y * z * lighting[5, channel]
                    + (3.0 * z * z - 1.0) * lighting[6, channel]
                    + x * z * lighting[7, channel]
                    + (x * x - y * y) * lighting[8, channel]
                )
                colour = p * albedo[i, channel] + q * albedo[j, channel] + r * albedo[k, channel]
                image[row, column, channel] = light * colour


@kernel
@no_type_check
def light_rows_backward(
    vertices,
    triangles,
    ids,
    first_row,
    camera,
    albedo,
    normals,
    lighting,
    smallest,
    to_image,
    to_normal_image,
    near,
    min_area,
    moves,
    to_vertices,
    to_albedo,
    to_normals,
    to_lighting,
):
    """Add to the gradients what those of `light_rows` mean; without `moves` none reaches vertices and normals.

    `to_normal_image` may have no row: then it is zero. `to_lighting` (9, 3) lacks the constants of the bands.
    """
    focal, centre_x, centre_y = camera[0], camera[1], camera[2]
    rows, width = ids.shape
    for row in range(rows):
        v = (first_row + row + 0.5 - centre_y) / focal
        for column in range(width):
            index = ids[row, column]
            if index < 0:
                continue
            u = (column + 0.5 - centre_x) / focal
            i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
            ax, ay, bx, by, cx, cy, az, bz, cz, p, q, r = _weights(vertices, i, j, k, u, v)
            wide = moves and _is_wide(focal, near, min_area, az, bz, cz, p, q, r)
            share = 1.0 / (p + q + r)
            p, q, r = p * share, q * share, r * share
            x = p * normals[i, 0] + q * normals[j, 0] + r * normals[k, 0]
            y = p * normals[i, 1] + q * normals[j, 1] + r * normals[k, 1]
            z = p * normals[i, 2] + q * normals[j, 2] + r * normals[k, 2]
            length = np.sqrt(x * x + y * y + z * z)
            shrink = 1.0 / max(length, smallest)
            x, y, z = x * shrink, y * shrink, z * shrink
            xy, yz, xz, zz, xx = x * y, y * z, x * z, 3.0 * z * z - 1.0, x * x - y * y
            gx, gy, gz, to_p, to_q, to_r = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for channel in range(3):
                first, second, third = lighting[1, channel], lighting[2, channel], lighting[3, channel]
                fourth, fifth, sixth = lighting[4, channel], lighting[5, channel], lighting[6, channel]
                seventh, eighth = lighting[7, channel], lighting[8, channel]
                light = (
                    lighting[0, channel]
                    + (y * first + z * second + x * third)
                    + (xy * fourth + yz * fifth + zz * sixth + xz * seventh + xx * eighth)
                )
                value = np.float64(to_image[row, column, channel])
                colour = p * albedo[i, channel] + q * albedo[j, channel] + r * albedo[k, channel]
                to_light, to_colour = value * colour, value * light
                to_lighting[0, channel] += to_light
                to_lighting[1, channel] += to_light * y
                to_lighting[2, channel] += to_light * z
                to_lighting[3, channel] += to_light * x
                to_lighting[4, channel] += to_light * xy
                to_lighting[5, channel] += to_light * yz
                to_lighting[6, channel] += to_light * zz
                to_lighting[7, channel] += to_light * xz
                to_lighting[8, channel] += to_light * xx
                to_albedo[i, channel] += p * to_colour
                to_albedo[j, channel] += q * to_colour
                to_albedo[k, channel] += r * to_colour
                to_p += to_colour * albedo[i, channel]
                to_q += to_colour * albedo[j, channel]
                to_r += to_colour * albedo[k, channel]
                gx += to_light * (third + y * fourth + z * seventh + 2.0 * x * eighth)
                gy += to_light * (first + x * fourth + z * fifth - 2.0 * y * eighth)
                gz += to_light * (second + y * fifth + 6.0 * z * sixth + x * seventh)
            if not moves:
                continue
            if to_normal_image.shape[0] > 0:
                gx += to_normal_image[row, column, 0]
                gy += to_normal_image[row, column, 1]
                gz += to_normal_image[row, column, 2]
            along = x * gx + y * gy + z * gz if length >= smallest else 0.0
            gx, gy, gz = (gx - x * along) * shrink, (gy - y * along) * shrink, (gz - z * along) * shrink
            for corner, weight in ((i, p), (j, q), (k, r)):
                to_normals[corner, 0] += weight * gx
                to_normals[corner, 1] += weight * gy
                to_normals[corner, 2] += weight * gz
            if wide:
                to_p += gx * normals[i, 0] + gy * normals[i, 1] + gz * normals[i, 2]
                to_q += gx * normals[j, 0] + gy * normals[j, 1] + gz * normals[j, 2]
                to_r += gx * normals[k, 0] + gy * normals[k, 1] + gz * normals[k, 2]
                mean = p * to_p + q * to_q + r * to_r
                to_p, to_q, to_r = (to_p - mean) * share, (to_q - mean) * share, (to_r - mean) * share
                _add_to_corners(to_vertices, i, j, k, u, v, ax, ay, bx, by, cx, cy, to_p, to_q, to_r)


@kernel
@no_type_check
def sum_face_normals(vertices, triangles, sums):
    """Add to `sums` (V, 3) of every corner the normal of each of its triangles, as long as twice its area."""
    for index in range(triangles.shape[0]):
        i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
        ax, ay, az = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
        ux, uy, uz = vertices[j, 0] - ax, vertices[j, 1] - ay, vertices[j, 2] - az
        vx, vy, vz = vertices[k, 0] - ax, vertices[k, 1] - ay, vertices[k, 2] - az
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        sums[i, 0] += nx
        sums[i, 1] += ny
        sums[i, 2] += nz
        sums[j, 0] += nx
        sums[j, 1] += ny
        sums[j, 2] += nz
        sums[k, 0] += nx
        sums[k, 1] += ny
        sums[k, 2] += nz


@kernel
@no_type_check
def normalize_rows(sums, units, smallest):
    """Fill `units` (V, 3) with the directions of `sums`; shorter ones than `smallest` are divided by it."""
    for vertex in range(sums.shape[0]):
        x, y, z = np.float64(sums[vertex, 0]), np.float64(sums[vertex, 1]), np.float64(sums[vertex, 2])
        share = 1.0 / max(np.sqrt(x * x + y * y + z * z), smallest)
        units[vertex, 0], units[vertex, 1], units[vertex, 2] = x * share, y * share, z * share


@kernel
@no_type_check
def vertex_normals_backward(vertices, triangles, sums, smallest, to_normals, to_vertices):
    """Add to `to_vertices` (V, 3) what the gradient of the unit normals means; `to_normals` is overwritten."""
    for vertex in range(sums.shape[0]):
        x, y, z = np.float64(sums[vertex, 0]), np.float64(sums[vertex, 1]), np.float64(sums[vertex, 2])
        gx, gy, gz = (
            np.float64(to_normals[vertex, 0]),
            np.float64(to_normals[vertex, 1]),
            np.float64(to_normals[vertex, 2]),
        )
        length = np.sqrt(x * x + y * y + z * z)
        share = 1.0 / max(length, smallest)
        along = (x * gx + y * gy + z * gz) * share * share if length >= smallest else 0.0
        to_normals[vertex, 0] = (gx - x * along) * share
        to_normals[vertex, 1] = (gy - y * along) * share
        to_normals[vertex, 2] = (gz - z * along) * share
    for index in range(triangles.shape[0]):
        i, j, k = triangles[index, 0], triangles[index, 1], triangles[index, 2]
        gx = np.float64(to_normals[i, 0]) + to_normals[j, 0] + to_normals[k, 0]
        gy = np.float64(to_normals[i, 1]) + to_normals[j, 1] + to_normals[k, 1]
        gz = np.float64(to_normals[i, 2]) + to_normals[j, 2] + to_normals[k, 2]
        ax, ay, az = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
        ux, uy, uz = vertices[j, 0] - ax, vertices[j, 1] - ay, vertices[j, 2] - az
        vx, vy, vz = vertices[k, 0] - ax, vertices[k, 1] - ay, vertices[k, 2] - az
        to_ux, to_uy, to_uz = vy * gz - vz * gy, vz * gx - vx * gz, vx * gy - vy * gx
        to_vx, to_vy, to_vz = gy * uz - gz * uy, gz * ux - gx * uz, gx * uy - gy * ux
        to_vertices[i, 0] -= to_ux + to_vx
        to_vertices[i, 1] -= to_uy + to_vy
        to_vertices[i, 2] -= to_uz + to_vz
        to_vertices[j, 0] += to_ux
        to_vertices[j, 1] += to_uy
        to_vertices[j, 2] += to_uz
        to_vertices[k, 0] += to_vx
        to_vertices[k, 1] += to_vy
        to_vertices[k, 2] += to_vz
