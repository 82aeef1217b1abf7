"""Expressions for a face model that has none: those of the procedural face, carried over by the 68 points."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from models.face.adapters.assemble import procedural_donor, vertex_normals
from models.types import PART_NAMES

BORROWED = "expressions borrowed"
"""What name and licence of such a model say."""

NORMAL_WEIGHT_MM = 8.0
"""A turned surface counts as this much further away, so that the upper lip takes nothing from the lower."""

REACH_MM, FADE_MM = 4.0, 15.0
"""Vertices may lie this far off the procedural face; beyond its rim, displacements die down over this distance."""

SCALE_LIMITS = (0.5, 2.0)
SUBDIVISIONS = 2
NEIGHBOURS = 4


def borrow_expressions(
    mean: Float[np.ndarray, "V 3"],
    triangles: Int[np.ndarray, "F 3"],
    landmarks: Float[np.ndarray, "68 3"],
    parts: Int[np.ndarray, "V"],
) -> tuple[Float[np.ndarray, "E V 3"], tuple[str, ...]]:
    """Displacements of the 52 ARKit shapes, and their names.

    The model is warped onto the procedural face by a thin-plate spline through the 68 points; every vertex moves as the
    surface nearest to it there, larger where the model is larger. Vertices of the eyes rest.
    Source: expression cloning (Noh and Neumann 2001), without its rotation of the displacements.
    """
    donor = procedural_donor()
    skin = ~np.isin(donor.parts.numpy(), [PART_NAMES.index("eyes"), PART_NAMES.index("mouth")])
    donor_mean, donor_triangles = donor.mean.numpy().astype(np.float64), donor.triangles.numpy()
    normals = vertex_normals(donor_mean, donor_triangles)
    motion = donor.expression_basis.numpy().transpose(1, 0, 2).reshape(len(donor_mean), -1)
    surface, values = _subdivided(
        np.concatenate([donor_mean, NORMAL_WEIGHT_MM * normals], 1),
        motion,
        donor_triangles[skin[donor_triangles].all(1)],
    )
    targets = donor.landmark_mean.numpy()
    warp = RBFInterpolator(landmarks, targets, kernel="thin_plate_spline", smoothing=1.0)
    own = np.concatenate([warp(mean), NORMAL_WEIGHT_MM * vertex_normals(mean, triangles)], 1)
    distances, nearest = cKDTree(surface).query(own, k=NEIGHBOURS)
    weights = 1.0 / np.maximum(distances, 0.1) ** 2
    weights /= weights.sum(1, keepdims=True)
    gap = np.maximum(np.linalg.norm(own[:, :3] - surface[nearest[:, 0], :3], axis=1) - REACH_MM, 0.0)
    strength = np.exp(-((gap / FADE_MM) ** 2)) / np.clip(_growth(warp, mean), *SCALE_LIMITS)
    strength[parts == PART_NAMES.index("eyes")] = 0.0
    moved = np.zeros((len(mean), values.shape[1]), dtype=np.float32)
    for place in range(NEIGHBOURS):
        moved += (weights[:, place] * strength)[:, None].astype(np.float32) * values[nearest[:, place]]
    basis = np.ascontiguousarray(moved.reshape(len(mean), -1, 3).transpose(1, 0, 2))
    return basis, donor.expression_names


def _subdivided(
    places: Float[np.ndarray, "V 6"], values: Float[np.ndarray, "V C"], triangles: Int[np.ndarray, "F 3"]
) -> tuple[Float[np.ndarray, "N 6"], Float[np.ndarray, "N C"]]:
    """The vertices of the triangles with everything halfway along the edges added, `SUBDIVISIONS` times."""
    used, triangles = np.unique(triangles, return_inverse=True)
    triangles = triangles.reshape(-1, 3)
    places, values = places[used], values[used]
    for _ in range(SUBDIVISIONS):
        sides = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]], axis=2).reshape(-1, 2)
        edges, numbers = np.unique(sides, axis=0, return_inverse=True)
        middle = len(places) + numbers.reshape(-1, 3)
        places = np.concatenate([places, places[edges].mean(1)])
        values = np.concatenate([values, values[edges].mean(1)])
        (a, b, c), (ab, bc, ca) = triangles.T, middle.T
        triangles = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    return places, values


def _growth(warp: RBFInterpolator, points: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V"]:
    """How much longer things are after the warp: the cube root of the volume that a small cube becomes."""
    step = 1.0
    columns = [(warp(points + shift) - warp(points - shift)) / (2.0 * step) for shift in step * np.eye(3)]
    volume = np.linalg.det(np.stack(columns, 2))
    return np.asarray(np.cbrt(np.maximum(volume, 1e-6)))
