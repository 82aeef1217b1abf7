"""Normals, areas and the Laplacian of triangle meshes, in numpy and float64."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse


def mesh_normals(vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 3"]:
    """Unit normal of each vertex, weighted by the areas of its triangles; zero where it has none."""
    corners = vertices[triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.stack(
        [np.bincount(triangles.ravel(), np.repeat(normal[:, axis], 3), len(vertices)) for axis in range(3)], axis=1
    )
    return unit_vectors(total)


def cotangent_laplacian(vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> sparse.csr_array:
    """Positive semidefinite (V, V); slivers count no more than triangles with an angle of 6°."""
    corners = vertices[triangles]
    total = sparse.csr_array((len(vertices), len(vertices)))
    for corner in range(3):
        first, second = corners[:, corner - 2] - corners[:, corner], corners[:, corner - 1] - corners[:, corner]
        sine = np.linalg.norm(np.cross(first, second), axis=1)
        weight = 0.5 * np.clip((first * second).sum(1) / np.maximum(sine, 1e-9), 0.02, 10.0)
        a, b = triangles[:, corner - 2], triangles[:, corner - 1]
        entries = np.concatenate([weight, weight, -weight, -weight])
        places = (np.concatenate([a, b, a, b]), np.concatenate([a, b, b, a]))
        total = total + sparse.csr_array((entries, places), shape=total.shape)
    return sparse.csr_array(total)


def vertex_areas(vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V"]:
    """A third of the area of the triangles at each vertex, mm²."""
    corners = vertices[triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 6.0
    return np.asarray(np.bincount(triangles.ravel(), np.repeat(area, 3), len(vertices)), np.float64)


def unit_vectors(vectors: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Each vector at length 1; zero stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float[np.ndarray, "N 3"] = vectors / np.maximum(length, 1e-12)
    return unit
