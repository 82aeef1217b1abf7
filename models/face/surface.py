"""Distance of scan points to the surface of a reconstructed mesh, after rigid or similarity alignment (NoW protocol).

One face at a time, in numpy and float64, and without the interpreter's lock where it takes time, so that threads help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from models.face.alignment import NOW_LANDMARKS, rigid_alignment
from models.face.surface_tree import SurfaceTree, check_triangles
from models.rendering.compiled import kernel

ICP_STEPS = 4
ICP_STILL_MM = 0.02
"""A step that moves no point further than this is the last."""

ICP_POINTS = 1000
"""Points of a scan that the refinement looks at; with fewer the median error of faces grows by a hundredth."""

CROP_SCALE = 1.4
CROP_RISE = 0.3

NOSE_BRIDGE, NOSE_BOTTOM, OUTER_EYES = 27, 33, (36, 45)


@dataclass(frozen=True)
class SurfaceTopology:
    """The triangles of a face model, checked once for all its meshes."""

    triangles: Int[np.ndarray, "F 3"]

    @classmethod
    def build(cls, triangles: Int[np.ndarray, "F 3"], vertex_count: int) -> SurfaceTopology:
        """Check and keep.

        Raises: ValueError if a vertex index is out of range.
        """
        triangles = np.ascontiguousarray(triangles, dtype=np.int64)
        check_triangles(triangles, vertex_count)
        return cls(triangles=triangles)

    def tree(self, vertices: Float[np.ndarray, "V 3"]) -> SurfaceTree:
        """A mesh of this topology, prepared for questions about its nearest points."""
        return SurfaceTree.build(vertices, self.triangles)


def surface_distance(
    points: Float[np.ndarray, "N 3"], vertices: Float[np.ndarray, "V 3"], topology: SurfaceTopology
) -> Float[np.ndarray, "N"]:
    """Exact distance of each point to the nearest point of a mesh, which need not be a vertex."""
    return topology.tree(vertices).nearest(points).distance


def now_crop(points: Float[np.ndarray, "N 3"], landmarks: Float[np.ndarray, "68 3"]) -> Bool[np.ndarray, "N"]:
    """Which points of a scan the NoW protocol measures: a ball around the nose, about 95 mm for an adult.

    Centre: bottom of the nose plus 0.3 of the way to its bridge. Radius: 1.4 times the mean of outer-eye distance and
    length of the nose.
    """
    bottom, bridge = landmarks[NOSE_BOTTOM], landmarks[NOSE_BRIDGE]
    eyes = np.linalg.norm(landmarks[OUTER_EYES[0]] - landmarks[OUTER_EYES[1]])
    radius = CROP_SCALE * (eyes + np.linalg.norm(bridge - bottom)) / 2
    inside: Bool[np.ndarray, "N"] = np.linalg.norm(points - bottom - CROP_RISE * (bridge - bottom), axis=1) < radius
    return inside


def align_by_landmarks(
    points: Float[np.ndarray, "N 3"],
    source: Float[np.ndarray, "68 3"],
    target: Float[np.ndarray, "68 3"],
    *,
    scale: bool = False,
) -> Float[np.ndarray, "N 3"]:
    """Move points as their landmarks' seven points of the NoW protocol come closest to those of the target."""
    seven = list(NOW_LANDMARKS)
    pair = [torch.from_numpy(np.asarray(landmarks, np.float64)[None, seven]) for landmarks in (source, target)]
    rotation, translation, factor = (value[0].numpy() for value in rigid_alignment(*pair, scale=scale))
    moved: Float[np.ndarray, "N 3"] = factor * points @ rotation.T + translation
    return moved


def refine_to_surface(
    points: Float[np.ndarray, "N 3"],
    vertices: Float[np.ndarray, "V 3"],
    normals: Float[np.ndarray, "V 3"],
    topology: SurfaceTopology,
    *,
    tree: SurfaceTree | None = None,
    scale: bool = False,
    steps: int = ICP_STEPS,
) -> tuple[Float[np.ndarray, "N 3"], float]:
    """Move roughly aligned points onto a surface by point-to-plane ICP; the moved points and their total scaling.

    Each step solves the linearised motion about the points' centre and takes the exponential of its rotation. Planes
    stand at the nearest points of the surface, across the vertices' normals there. Of many points some that
    are spread evenly over their order decide.
    Source: Chen and Medioni 1992.
    """
    tree = topology.tree(vertices) if tree is None else tree
    vertices, normals = np.asarray(vertices, np.float64), np.asarray(normals, np.float64)
    chosen = np.linspace(0, len(points) - 1, min(len(points), ICP_POINTS)).round().astype(np.int64)
    nearest = None
    total = 1.0
    for _ in range(steps):
        sample = points[chosen]
        found = tree.nearest(sample, start=nearest)
        nearest = found.triangle
        centre = sample.mean(axis=0)
        system, gap = _normal_equations(sample, centre, nearest, found.weights, topology.triangles, vertices, normals)
        size = 7 if scale else 6
        motion = np.linalg.lstsq(system[:size, :size], gap[:size], rcond=None)[0]
        factor = 1.0 + float(motion[6]) if scale else 1.0
        turn = Rotation.from_rotvec(motion[:3]).as_matrix()
        points = factor * (points - centre) @ turn.T + centre + motion[3:6]
        total *= factor
        reach = np.abs(sample - centre).max()
        if np.linalg.norm(motion[3:6]) + reach * (np.linalg.norm(motion[:3]) + abs(factor - 1.0)) < ICP_STILL_MM:
            break
    return points, total


@kernel
@no_type_check
def _normal_equations(points, centre, nearest, weights, triangles, vertices, normals):
    """Least squares of turn, shift and scaling that bring points onto the planes at their nearest surface points."""
    system, gap, row = np.zeros((7, 7)), np.zeros(7), np.empty(7)
    place, normal, arm = np.empty(3), np.empty(3), np.empty(3)
    for number in range(len(points)):
        face = nearest[number]
        square = 0.0
        for axis in range(3):
            place[axis], normal[axis] = 0.0, 0.0
            for corner in range(3):
                vertex = triangles[face, corner]
                place[axis] += weights[number, corner] * vertices[vertex, axis]
                normal[axis] += weights[number, corner] * normals[vertex, axis]
            arm[axis] = points[number, axis] - centre[axis]
            square += normal[axis] * normal[axis]
        length = max(math.sqrt(square), 1e-12)
        for axis in range(3):
            normal[axis] /= length
        distance, row[6] = 0.0, 0.0
        for axis in range(3):
            one, two = (axis + 1) % 3, (axis + 2) % 3
            row[axis] = arm[one] * normal[two] - arm[two] * normal[one]
            row[3 + axis] = normal[axis]
            row[6] += arm[axis] * normal[axis]
            distance += (place[axis] - points[number, axis]) * normal[axis]
        for first in range(7):
            gap[first] += row[first] * distance
            for second in range(7):
                system[first, second] += row[first] * row[second]
    return system, gap


def scan_distance(
    scan: Float[np.ndarray, "N 3"],
    vertices: Float[np.ndarray, "V 3"],
    normals: Float[np.ndarray, "V 3"],
    topology: SurfaceTopology,
    *,
    scaled: Float[np.ndarray, "N 3"] | None = None,
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Distances in millimetres of scan points to a prediction: after rigid and after similarity refinement.

    Convention: the scan is already aligned to the prediction by landmarks, rigidly; `scaled` is the scan aligned with
    scale, from where the second refinement starts, else from where the first ends. Distances are in the scan's
    millimetres.
    """
    tree = topology.tree(vertices)
    rigid, _ = refine_to_surface(scan, vertices, normals, topology, tree=tree)
    start = rigid if scaled is None else scaled
    similar, _ = refine_to_surface(start, vertices, normals, topology, tree=tree, scale=True)
    factor = np.sqrt(_spread(similar) / max(_spread(scan), 1e-12))
    found = tree.nearest(rigid)
    return found.distance, tree.nearest(similar, start=found.triangle).distance / factor


def now_distance(
    scan: Float[np.ndarray, "N 3"],
    scan_landmarks: Float[np.ndarray, "68 3"],
    vertices: Float[np.ndarray, "V 3"],
    normals: Float[np.ndarray, "V 3"],
    landmarks: Float[np.ndarray, "68 3"],
    topology: SurfaceTopology,
) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M"]]:
    """The whole NoW protocol for one scan and one prediction: distances without and with scale, in the scan's mm.

    The scan is cropped to the ball around its nose and aligned to the prediction by seven landmarks, rigidly (the
    metrical variant) or as a similarity, then refined by point-to-plane ICP; every point gives its distance to the
    surface.
    Source: Sanyal et al. 2019; the metrical variant after Zielonka et al. 2022.
    """
    scan = scan[now_crop(scan, scan_landmarks)]
    rigid = align_by_landmarks(scan, scan_landmarks, landmarks)
    scaled = align_by_landmarks(scan, scan_landmarks, landmarks, scale=True)
    plain, similar = scan_distance(rigid, vertices, normals, topology, scaled=scaled)
    return plain, similar


def _spread(points: Float[np.ndarray, "N 3"]) -> float:
    return float(np.square(points - points.mean(axis=0)).sum())
