"""The visible outline of a face: where people put the 17 jaw points of a photo, by a walk along its contour.

A face model has its jaw points at fixed vertices. People put them on the edge of the face that they see: on the far
side of a turned head the occluding contour of the cheek, on the near side the edge in front of the ear and along the
jaw. Points 0 and 16 lie at the height of the outer eye corners, 8 at the chin, the others evenly between.
Convention: pixels of the photo, x right, y down. R counts the vertices of a region, B faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import ConvexHull, QhullError

from models.face.camera import crop_camera, rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from models.rendering.visibility import visible_vertices
from models.types import JAW_COUNT

OUTSIDE = ("skin", "lips", "brows")
"""Parts that the region may hold, as far as a model tells its parts."""

MIDDLE = (39, 42, *range(27, 36), *range(48, 60))
"""Landmarks around nose and mouth, up to the inner eye corners. In profile they stand out beyond the cheek, which is
what the outline goes on to follow."""

EDGE_HEIGHT = (0.0, 0.18, 0.38, 0.6, 0.8, 0.9, 0.95, 1.0, 1.03)
EDGE_DEPTH = (0.59, 0.59, 0.575, 0.525, 0.365, 0.21, 0.09, -0.05, -0.08)
"""The edge of the face in front of the ear and along the jaw, seen from the side: height below the outer eye corners,
depth behind them, both in heights of these corners above the chin. Jaw landmarks of face models often lie before it.
Source: our procedural face; on ICT-FaceKit the line runs along the tragus and the border of the jaw."""

BEYOND_EDGE = 0.01
"""How far the level of the eyes may go on behind the edge, in the same unit: a part of a triangle."""

VIEWS_DEG = (-60.0, 0.0, 60.0)
VIEW_PX, VIEW_MM = 256, 1500.0
"""Turns of the face in which its skin is looked at, side of the image, distance."""

RIGHT_CORNER, LEFT_CORNER, BRIDGE, CHIN = 36, 45, 27, 8


@dataclass(frozen=True)
class FaceRegion:
    """What of a face model bounds the face as people outline it, between the level of the eyes and the chin."""

    vertices: Int[np.ndarray, "R"]
    """Those that the others mean."""
    below: Bool[np.ndarray, "R"]
    """Skin before the edge of the jaw and below the outer eye corners."""
    level: Int[np.ndarray, "K 2"]
    """Places among the vertices: ends of the edges that cross the level of the outer eye corners, beside them."""
    weight: Float[np.ndarray, "K"]
    """How far along its edge each crossing lies."""
    right: Bool[np.ndarray, "K"]
    """Whether it is on the subject's right side, that of point 0."""
    jaw: Int[np.ndarray, "J"]
    """Jaw landmarks that lie no higher than the level."""


def face_region(model: MorphableModel) -> FaceRegion:
    """Skin of the mean face before the edge of the jaw and below the eyes: no neck, ears, insides of mouth and eyes.

    Nose and mouth are left out as well, see `MIDDLE`.
    Raises: ValueError if nothing lies there.
    """
    mean, landmarks = model.mean.double().cpu().numpy(), model.landmark_mean.double().cpu().numpy()
    corner = landmarks[[RIGHT_CORNER, LEFT_CORNER]].mean(0)
    height = max(corner[1] - landmarks[CHIN, 1], 1e-6)
    skin = _visible_skin(model)
    down, behind = (corner[1] - mean[:, 1]) / height, (corner[2] - mean[:, 2]) / height
    below = skin & (down >= 0.0) & (down <= EDGE_HEIGHT[-1]) & (behind <= np.interp(down, EDGE_HEIGHT, EDGE_DEPTH))
    below &= ~_within(mean[:, :2], landmarks[list(MIDDLE), :2])
    ends, weight = _crossings(model.triangles.cpu().numpy(), mean[:, 1], corner[1])
    crossing = (1.0 - weight)[:, None] * mean[ends[:, 0]] + weight[:, None] * mean[ends[:, 1]]
    right, left = landmarks[[RIGHT_CORNER, LEFT_CORNER], 0]
    level = (crossing[:, 0] <= right) | (crossing[:, 0] >= left)
    level &= ((corner[2] - crossing[:, 2]) / height <= EDGE_DEPTH[0] + BEYOND_EDGE) & skin[ends].any(1)
    if not below.any():
        raise ValueError(
            f"face model {model.name}: no skin between its eyes and its chin, expected some for the outline; "
            "correct its landmarks, or set ingest.outlines to false"
        )
    vertices = np.unique(np.concatenate([np.flatnonzero(below), ends[level].ravel()]))
    return FaceRegion(
        vertices=vertices,
        below=below[vertices],
        level=np.searchsorted(vertices, ends[level]),
        weight=weight[level],
        right=crossing[level, 0] <= right,
        jaw=np.flatnonzero(landmarks[:JAW_COUNT, 1] <= corner[1]),
    )


def outline_points(
    region: FaceRegion, projected: Float[np.ndarray, "B R 2"], landmarks: Float[np.ndarray, "B 68 2"]
) -> Float[np.ndarray, "B 17 2"]:
    """The 17 points on the outline of faces whose vertices `region.vertices` lie at `projected`, in their pixels.

    The outline is the convex hull of the region below the eyes. It is followed from where the level of the outer eye
    corners, as it runs over the skin, is farthest out on one side, past what is nearest to landmark 8, to the other.
    From about 60° of yaw on, the far side is that of the cheek behind nose and mouth, and begins at the eye's corner.
    A face that is not finite, or all in one line, has points that are not a number.
    Accuracy: a hull spans the hollow below the cheek bone.
    """
    found = np.full((len(projected), JAW_COUNT, 2), np.nan, np.float32)
    for row, (points, marks) in enumerate(zip(projected.astype(np.float64), landmarks.astype(np.float64), strict=True)):
        outline = _outline(region, points, marks)
        if outline is not None:
            found[row] = outline
    return found


def _outline(
    region: FaceRegion, points: Float[np.ndarray, "R 2"], landmarks: Float[np.ndarray, "68 2"]
) -> Float[np.ndarray, "17 2"] | None:
    if not (np.isfinite(points).all() and np.isfinite(landmarks).all()):
        return None
    ends = points[region.level]
    level = ends[:, 0] + region.weight[:, None] * (ends[:, 1] - ends[:, 0])
    # In profile the eyes' corners coincide; the face's own axis still tells the sides.
    axis = landmarks[CHIN] - landmarks[BRIDGE]
    toward_right = np.array([-axis[1], axis[0]])
    starts = []
    for corner, side, outward in ((RIGHT_CORNER, region.right, 1.0), (LEFT_CORNER, ~region.right, -1.0)):
        beside = np.concatenate([landmarks[corner][None], level[side]])
        starts.append(beside[int((outward * (beside @ toward_right)).argmax())])
    cloud = np.concatenate([points[region.below], level, landmarks[region.jaw], starts])
    try:
        hull = ConvexHull(cloud)
    except QhullError:
        return None
    ring = cloud[hull.vertices]
    first, chin, last = _along(ring, [starts[0], landmarks[CHIN], starts[1]])
    length = _steps(ring).sum()
    if (chin - first) % length > (last - first) % length:
        ring = ring[::-1]
        first, chin, last = _along(ring, [starts[0], landmarks[CHIN], starts[1]])
    chin, last = first + (chin - first) % length, first + (last - first) % length
    places = np.concatenate([np.linspace(first, chin, CHIN + 1), np.linspace(chin, last, JAW_COUNT - CHIN)[1:]])
    corners = np.concatenate([[0.0], np.cumsum(_steps(ring))])
    closed = np.concatenate([ring, ring[:1]])
    return np.stack([np.interp(places % length, corners, closed[:, axis]) for axis in (0, 1)], 1)


def _steps(ring: Float[np.ndarray, "H 2"]) -> Float[np.ndarray, "H"]:
    """Length of each side of a closed line."""
    return np.linalg.norm(np.roll(ring, -1, 0) - ring, axis=1)


def _along(ring: Float[np.ndarray, "H 2"], places: list[Float[np.ndarray, "2"]]) -> list[float]:
    """How far along a closed line the point of it lies that is nearest to each place."""
    sides, lengths = np.roll(ring, -1, 0) - ring, _steps(ring)
    before = np.cumsum(lengths) - lengths
    found = []
    for place in places:
        share = ((place - ring) * sides).sum(1) / np.maximum(lengths, 1e-12) ** 2
        share = np.clip(share, 0.0, 1.0)
        nearest = int(np.linalg.norm(ring + share[:, None] * sides - place, axis=1).argmin())
        found.append(float(before[nearest] + share[nearest] * lengths[nearest]))
    return found


def _crossings(
    triangles: Int[np.ndarray, "F 3"], up: Float[np.ndarray, "V"], height: float
) -> tuple[Int[np.ndarray, "E 2"], Float[np.ndarray, "E"]]:
    """Edges that go through a height, and how far along."""
    edges = np.unique(np.sort(np.concatenate([triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])]), 1), axis=0)
    edges = edges[(up[edges[:, 0]] > height) != (up[edges[:, 1]] > height)]
    first, second = up[edges[:, 0]], up[edges[:, 1]]
    return edges, (height - first) / (second - first)


def _visible_skin(model: MorphableModel) -> Bool[np.ndarray, "V"]:
    """Which vertices of the outside of the mean face are seen from the front or from either side."""
    yaw = torch.deg2rad(torch.tensor(VIEWS_DEG))
    camera_space = to_camera_space(
        (model.mean - model.landmark_mean.mean(0)).expand(len(yaw), -1, -1),
        rotation=rotation_from_angles(yaw, torch.zeros_like(yaw), torch.zeros_like(yaw)),
        translation=torch.tensor([[0.0, 0.0, VIEW_MM]]).expand(len(yaw), 3),
    )
    seen = visible_vertices(camera_space, model.triangles, crop_camera(len(yaw), VIEW_PX)).any(0)
    outside = torch.stack([model.part(name) for name in OUTSIDE]).any(0)
    return np.asarray((seen & outside).cpu().numpy())


def _within(places: Float[np.ndarray, "V 2"], corners: Float[np.ndarray, "C 2"]) -> Bool[np.ndarray, "V"]:
    """Which places lie in the convex hull of corners."""
    hull = cv2.convexHull(corners.astype(np.float32))
    return np.array([cv2.pointPolygonTest(hull, place, measureDist=False) >= 0 for place in places.tolist()], bool)
