"""What the camera sees of points on a mesh: depth-buffer tests for vertices, landmarks and texels.

Convention: camera space (x right, y down, z forward, millimetres). A point is visible if its normal turns to the
camera, it projects into the image, and nothing lies in front of it by more than the tolerance. As in the rasteriser,
triangles seen from behind hide nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.face.camera import NEAR_MM, project
from models.face.morphable import MorphableModel
from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import vertex_normals
from models.types import Camera

TOLERANCE_MM = 1.0
"""What lies this little in front hides nothing: lips that touch, a lid on the eye."""

TOLERANCE_PX = 0.5
"""Added to the tolerance: so many pixels, and how deep the surface falls away over them, since it bends within one."""

MAX_SLOPE = 5.0
"""Tangent between normal and view above which the tolerance grows no more; 5 is 79°."""

LANDMARK_REACH_MM = 3.0

OVERSAMPLING = 2
"""Depth pixels per image pixel and axis for vertices and landmarks, since triangles are about as small as pixels."""


@torch.no_grad()
def visible_vertices(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    oversampling: int = OVERSAMPLING,
    rasterizer: str = "auto",
) -> Bool[Tensor, "B V"]:
    """Which vertices the image shows.

    Accuracy: exact but for vertices within a pixel of the depth image (1 / `oversampling` pixels) of a contour.
    Degenerate: a vertex of no triangle has no normal and is not visible.
    """
    height, width = camera.size
    finer = Camera(
        camera.focal_px * oversampling,
        camera.principal_px * oversampling,
        (height * oversampling, width * oversampling),
    )
    _, depth = rasterize_ids(vertices, triangles, finer, rasterizer=rasterizer)
    return visible_points(vertices, vertex_normals(vertices, triangles), depth, finer)


@torch.no_grad()
def visible_landmarks(
    model: MorphableModel,
    vertices: Float[Tensor, "B V 3"],
    camera: Camera,
    *,
    oversampling: int = OVERSAMPLING,
    rasterizer: str = "auto",
) -> Bool[Tensor, "B 68"]:
    """Which of the model's landmarks the image shows.

    Landmarks lie on creases, such as the edge of a lid, where a vertex alone often looks aside: one is seen if its own
    triangle is, or any vertex within `LANDMARK_REACH_MM` of it on the mean face.
    """
    seen = visible_vertices(
        vertices, model.triangles.to(vertices.device), camera, oversampling=oversampling, rasterizer=rasterizer
    )
    near = torch.cdist(model.landmark_mean, model.mean) <= LANDMARK_REACH_MM
    corners, weights = model.landmark_corners.to(seen.device), model.landmark_weights.to(seen.device)
    own = (seen[:, corners] & (weights > 0)).any(2)
    return own | (seen[:, None] & near.to(seen.device)).any(2)


def visible_points(
    points: Float[Tensor, "B N 3"],
    normals: Float[Tensor, "B N 3"],
    depth: Float[Tensor, "B H W"],
    camera: Camera,
) -> Bool[Tensor, "B N"]:
    """Which points on the surface whose depth image is given are seen, decided at the pixel that each falls into.

    Normals need not be unit, zero means not visible.
    """
    height, width = camera.size
    pixels = project(points, camera).floor().long()
    column, row = pixels.unbind(2)
    in_image = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (points[..., 2] >= NEAR_MM)
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    gap, hit = depth_gap(points, normals, depth, camera, column=column, row=row)
    hidden = hit & (gap > depth_tolerance(points, normals, camera))
    return in_image & (facing(points, normals) > 0) & ~hidden


def facing(points: Float[Tensor, "B N 3"], normals: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N"]:
    """Cosine between each normal and the direction to the camera; 0 where there is no normal."""
    lengths = (normals.norm(dim=2) * points.norm(dim=2)).clamp_min(1e-12)
    return -(normals * points).sum(2) / lengths


def depth_tolerance(
    points: Float[Tensor, "B N 3"], normals: Float[Tensor, "B N 3"], camera: Camera
) -> Float[Tensor, "B N"]:
    """Millimetres by which the depth image may differ from a point's plane; grows with the slope of the surface."""
    cosine = facing(points, normals).clamp(1e-6, 1.0)
    slope = ((1.0 - cosine.square()).sqrt() / cosine).clamp_max(MAX_SLOPE)
    pixel_mm = points[..., 2].clamp_min(NEAR_MM) / camera.focal_px[:, None]
    return TOLERANCE_MM + TOLERANCE_PX * pixel_mm * (1.0 + slope)


def depth_gap(
    points: Float[Tensor, "B N 3"],
    normals: Float[Tensor, "B N 3"],
    depth: Float[Tensor, "B H W"],
    camera: Camera,
    *,
    column: Int[Tensor, "B N"],
    row: Int[Tensor, "B N"],
) -> tuple[Float[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """By how much (mm) what a pixel shows lies in front of the plane through a point, and whether it shows anything.

    The plane is met along the ray of the pixel's centre, so that a slanted surface does not hide itself. Meaningful
    for points that face the camera.
    """
    image = torch.arange(len(points), device=points.device)[:, None]
    seen = depth[image, row, column]
    centre = torch.stack([column, row], 2).to(points) + 0.5
    slopes = (centre - camera.principal_px[:, None]) / camera.focal_px[:, None, None]
    along = (normals[..., :2] * slopes).sum(2) + normals[..., 2]
    # Where a plane meets a ray: z = (normal · point) / (normal · ray), both negative for a plane that faces the camera.
    expected = (normals * points).sum(2) / along.clamp_max(-1e-6)
    return expected - seen, seen > 0
