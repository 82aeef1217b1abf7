"""A photo of a head as a relief: a depth for every place around it, so that the head can be turned within its photo.

The relief is one continuous sheet. The head turns as a whole, what is around it turns less the farther away it is, and
the rest of the photo stays, so that nothing is cut out: no seam can show and no hole can open. What the photo does not
show, such as the side of a head seen from the front, is drawn out from what lies beside it.
Convention: camera space, millimetres, of the camera of the photo; pixel centres at +0.5.
Source: face profiling of Zhu et al. 2016 (Face alignment across large poses), which sets anchors beside the face; here
its depth goes on as a membrane over an ellipsoid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from models.face.camera import NEAR_MM, project
from models.rendering.maps import depth_image
from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import interpolate
from models.rendering.texture import continue_smoothly
from models.types import Camera

COLUMNS, ROWS = 140, 208
NODES_PER_HALF_WIDTH = 27.0
"""Nodes of the sheet, about three millimetres apart; it reaches 2.6 and 3.9 half widths of the head around it."""

JAW_ENDS, CHIN, EYES = (0, 16), 8, slice(36, 48)

HALF_WIDTH = 1.1
"""Of the head with ears and hair, relative to half the distance of the jaw's ends."""

UPWARDS, DOWNWARDS, HALF_DEPTH, BEHIND_EARS = 1.75, 1.5, 1.2, 0.15
"""In half widths, from the eyes: up to the hair's end, down to the chin; depth; the middle behind the jaw's ends."""

ROUND_FRONT = 3.0
"""Power of the distance from the middle with which the front of the head falls away; 2 is pointed, 4 flat."""

BACK = 0.65
"""In half depths: so far behind its middle does the head end."""

FRONT = 0.25
"""In half widths before the middle of the head; behind, hair and ears are not where a face model has its skull."""

HELD, HELD_BELOW, FADE = 0.4, 0.15, 1.4
"""In half widths beyond the head: what turns with it, the same at the neck, and over which distance the turn fades."""

TAPER = 20
"""Nodes; within this distance of the end of the sheet the turn fades in any case."""

POINT_REACH = 0.1
"""In half widths: a point lies so close to the depth that the face model gives it."""


@dataclass(frozen=True)
class HeadRelief:
    """The sheet, row by row."""

    nodes: Float[Tensor, "B N 3"]
    pixels: Float[Tensor, "B N 2"]
    """Where the photo shows each node."""
    share: Float[Tensor, "B N"]
    """Of the head's turn in which the node takes part, 0 to 1."""
    centre: Float[Tensor, "B 3"]
    """Of the head, about which it turns."""
    half_width_mm: Float[Tensor, "B"]

    def turned(self, turn: Float[Tensor, "B 3"]) -> Float[Tensor, "B N 3"]:
        """The nodes after the head has turned by an axis-angle in camera axes."""
        return turn_about(self.nodes, self.centre, turn, self.share)

    def depth_at(self, pixels: Float[Tensor, "B L 2"]) -> Float[Tensor, "B L"]:
        """Depth of the nearest node, for places beyond the sheet that at its end."""
        first, last = self.pixels[:, 0], self.pixels[:, -1]
        steps = (pixels - first[:, None]) / (last - first)[:, None]
        column = (steps[..., 0] * (COLUMNS - 1)).round().long().clamp(0, COLUMNS - 1)
        row = (steps[..., 1] * (ROWS - 1)).round().long().clamp(0, ROWS - 1)
        return self.nodes[..., 2].gather(1, row * COLUMNS + column)


@torch.no_grad()
def head_relief(
    vertices: Float[Tensor, "B V 3"],
    landmarks: Float[Tensor, "B 68 3"],
    triangles: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    roundness: Float[Tensor, "B"],
    rasterizer: str = "auto",
) -> HeadRelief:
    """The relief around a face that was fitted to a photo; `camera.size` does not matter.

    `roundness` scales the depth of the head beside the face: 1 is usual. Triangles of the mouth's inside are best left
    out, so that the lips are bridged.
    """
    centre, up, half_width = _head(landmarks)
    middle = project(centre[:, None], camera)
    spacing_px = half_width / NODES_PER_HALF_WIDTH * camera.focal_px / centre[:, 2].clamp_min(NEAR_MM)
    grid = _grid(vertices)
    pixels = middle + grid * NODES_PER_HALF_WIDTH * spacing_px[:, None, None]
    corner = middle[:, 0] - spacing_px[:, None] * grid.new_tensor([COLUMNS / 2, ROWS / 2])
    sheet_camera = Camera(
        camera.focal_px / spacing_px, (camera.principal_px - corner) / spacing_px[:, None], (ROWS, COLUMNS)
    )
    face = depth_image(vertices, triangles, sheet_camera, rasterizer=rasterizer)[:, None]
    # The image's axes, turned to stand upright on the head.
    upright = functional.normalize(up[:, :2], dim=1)
    along = (grid * upright[:, None]).sum(2)
    along = torch.where(along > 0.0, along / UPWARDS, along / DOWNWARDS)
    across = (grid * torch.stack([-upright[:, 1], upright[:, 0]], 1)[:, None]).sum(2)
    radius = (across.square() + along.square()).sqrt()
    height = _height(radius, across, along)
    plain = centre[:, 2:] - (half_width * HALF_DEPTH * roundness)[:, None] * height
    plain = plain.unflatten(1, (ROWS, COLUMNS))[:, None]
    known = (face > 0) & (face < (centre[:, 2] - FRONT * half_width)[:, None, None, None])
    end = torch.ones_like(known)
    end[..., 1:-1, 1:-1] = False
    difference = torch.where(known, face - plain, 0.0)
    depth = plain + continue_smoothly(difference, (known | end).to(face))
    depth = depth.flatten(1).clamp_min(NEAR_MM)
    return HeadRelief(
        nodes=_unprojected(pixels, depth, camera),
        pixels=pixels,
        share=_share(radius, along),
        centre=centre,
        half_width_mm=half_width,
    )


@torch.no_grad()
def carry_points(
    relief: HeadRelief,
    pixels: Float[Tensor, "B L 2"],
    model_points: Float[Tensor, "B L 3"],
    *,
    turn: Float[Tensor, "B 3"],
    camera: Camera,
) -> Float[Tensor, "B L 2"]:
    """Where annotated points of the face come to lie when the head turns, in pixels.

    Each is taken at the depth of what the photo shows there, but near that of its counterpart on the fitted face model:
    beside a contour the sheet lies far behind the face.
    """
    reach = POINT_REACH * relief.half_width_mm[:, None]
    depth = model_points[..., 2]
    depth = torch.minimum(torch.maximum(relief.depth_at(pixels), depth - reach), depth + reach)
    points = _unprojected(pixels, depth, camera)
    return project(turn_about(points, relief.centre, turn, torch.ones_like(depth)), camera)


@torch.no_grad()
def sheet_places(
    nodes: Float[Tensor, "B N 3"], pixels: Float[Tensor, "B N 2"], camera: Camera, *, rasterizer: str = "auto"
) -> tuple[Float[Tensor, "B 2 H W"], Bool[Tensor, "B H W"]]:
    """For every pixel of the new photo its place (x, y) in the old one, and whether the sheet is there at all."""
    triangles = sheet_triangles().to(nodes.device)
    ids, _ = rasterize_ids(nodes, triangles, camera, rasterizer=rasterizer)
    return interpolate(pixels, nodes, triangles, ids, camera), ids >= 0


def sheet_triangles() -> Int[Tensor, "F 3"]:
    """Of the sheet's nodes; they face the camera as long as the sheet does not fold."""
    index = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS)
    here, right = index[:-1, :-1].flatten(), index[:-1, 1:].flatten()
    below, across = index[1:, :-1].flatten(), index[1:, 1:].flatten()
    return torch.cat([torch.stack([here, below, across], 1), torch.stack([here, across, right], 1)])


def turn_about(
    points: Float[Tensor, "B N 3"],
    centre: Float[Tensor, "B 3"],
    turn: Float[Tensor, "B 3"],
    share: Float[Tensor, "B N"],
) -> Float[Tensor, "B N 3"]:
    """Points turned about a centre, each by its share of an axis-angle (Rodrigues' formula)."""
    angle = turn.norm(dim=1)
    axis = (turn / angle.clamp_min(1e-12)[:, None])[:, None].expand_as(points)
    arm = points - centre[:, None]
    turned = (share * angle[:, None])[..., None]
    cosine, sine = turned.cos(), turned.sin()
    along = axis * (axis * arm).sum(2, keepdim=True)
    return centre[:, None] + arm * cosine + torch.linalg.cross(axis, arm) * sine + along * (1.0 - cosine)


def _head(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of the head, its direction upwards, and half its width."""
    right, left = landmarks[:, JAW_ENDS[0]], landmarks[:, JAW_ENDS[1]]
    across = functional.normalize(left - right, dim=1)
    eyes, ears = landmarks[:, EYES].mean(1), (left + right) / 2.0
    up = eyes - landmarks[:, CHIN]
    up = functional.normalize(up - across * (up * across).sum(1, keepdim=True), dim=1)
    half_width = HALF_WIDTH * (left - right).norm(dim=1) / 2.0
    forward = torch.linalg.cross(across, up)
    centre = ears + up * ((eyes - ears) * up).sum(1, keepdim=True) - forward * (BEHIND_EARS * half_width)[:, None]
    return centre, up, half_width


def _grid(like: Tensor) -> Tensor:
    """Places (1, N, 2) of the nodes around the middle, in half widths of the head."""
    x = (torch.arange(COLUMNS).to(like) + 0.5 - COLUMNS / 2) / NODES_PER_HALF_WIDTH
    y = (torch.arange(ROWS).to(like) + 0.5 - ROWS / 2) / NODES_PER_HALF_WIDTH
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).flatten(0, 1)[None]


def _height(
    radius: Float[Tensor, "B N"], across: Float[Tensor, "B N"], along: Float[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """Towards the camera from the middle of the head, in half depths: a round front, then backwards at the sides."""
    fall = radius.pow(ROUND_FRONT) - 1.0
    # Straight above is hair that stands over the ears, below is the neck; both stay where the head turns about.
    sideways = (across / radius.clamp_min(1e-6)).square()
    sideways = torch.where(along > 0.0, 1.0 - (1.0 - sideways).square(), sideways)
    back = (BACK * sideways).clamp_min(1e-3)
    beyond = -back * (1.0 - torch.exp(-fall.clamp_min(0.0) / back))
    return torch.where(fall < 0.0, -fall, beyond)


def _share(radius: Float[Tensor, "B N"], along: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    below = (-along / radius.clamp_min(1e-6)).clamp(0.0, 1.0).square()
    held = HELD - (HELD - HELD_BELOW) * below
    # Between the axes an ellipse's radius grows by about the mean of both.
    distance = (radius - 1.0) * (1.0 + DOWNWARDS) / 2.0
    column = torch.arange(COLUMNS).to(radius).expand(ROWS, COLUMNS).flatten()
    row = torch.arange(ROWS).to(radius)[:, None].expand(ROWS, COLUMNS).flatten()
    to_end = torch.minimum(torch.minimum(column, COLUMNS - 1 - column), torch.minimum(row, ROWS - 1 - row))
    return _smooth(1.0 - (distance - held) / FADE) * _smooth(to_end / TAPER)


def _smooth(ramp: Tensor) -> Tensor:
    """From 0 at 0 to 1 at 1, level at both."""
    ramp = ramp.clamp(0.0, 1.0)
    return ramp.square() * (3.0 - 2.0 * ramp)


def _unprojected(pixels: Tensor, depth: Tensor, camera: Camera) -> Tensor:
    slopes = (pixels - camera.principal_px[:, None]) / camera.focal_px[:, None, None]
    return torch.cat([slopes * depth[..., None], depth[..., None]], 2)
