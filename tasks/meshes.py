"""Reading of label meshes: those in the topology of the face model as they are, all others registered to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.face.morphable import MorphableModel
from models.face.registration import RegistrationError, register_scan
from tasks.annotations import AnnotationError
from tasks.mesh_files import read_geometry
from tasks.scan_landmarks import find_scan_landmarks, read_scan_landmarks
from tasks.scan_surface import prepare_surface
from tasks.source_params import ScanUnit

Vertices = NDArray[np.float32]

SIZE_RANGE = (0.4, 2.5)
"""Size of a mesh relative to the mean face; beyond it the unit is wrong, not the person."""

MILLIMETRES: dict[ScanUnit, float | None] = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "unknown": None}

MAX_FIT_ERROR_MM = 3.0
MIN_COVERAGE = 0.3
"""Registrations beyond these are no label: something else than a face was matched, or next to nothing."""


@dataclass(frozen=True)
class LabelGeometry:
    """A mesh in the vertices of the face model, and how well it follows its file."""

    vertices: Vertices
    """(V, 3) in millimetres."""
    fit_error_mm: float = 0.0
    coverage: float = 1.0
    registered: bool = False
    """Whether the file has another topology."""


def read_mesh(
    path: Path, *, model: MorphableModel, unit: ScanUnit = "mm", landmarks: Path | None = None
) -> LabelGeometry:
    """An OBJ, PLY or NPY file as a mesh of the face model.

    A file with as many vertices as the model is taken as it is. Any other, of kind OBJ or PLY, is registered by its 68
    landmarks: `landmarks`, or the file of them beside the mesh.
    Raises: AnnotationError if the file cannot be read, does not fit the model, or cannot be registered to it.
    """
    vertices, triangles = read_geometry(path)
    if not np.isfinite(vertices).all():
        raise AnnotationError("mesh_not_finite", f"{path.name}: coordinates that are not finite, expected numbers")
    factor = MILLIMETRES[unit]
    if vertices.shape == model.mean.shape:
        return LabelGeometry(_sized(path, vertices, model.mean.numpy(), factor))
    if triangles is None:
        found = " x ".join(str(length) for length in vertices.shape)
        raise AnnotationError(
            "mesh_wrong_size",
            f"{path.name}: vertices {found}, expected {model.vertex_count} x 3 as in the face model, or OBJ or PLY",
        )
    if not len(triangles):
        raise AnnotationError("mesh_without_triangles", f"{path.name}: points only, expected a surface")
    if landmarks is None:
        landmarks = find_scan_landmarks(path)
    points = read_scan_landmarks(landmarks)
    try:
        surface = prepare_surface(vertices, triangles, points)
        scale = 1.0 if factor is None else factor
        registration = register_scan(
            model, scale * surface.vertices, surface.triangles, scale * points, free_scale=factor is None
        )
    except RegistrationError as error:
        raise AnnotationError(error.reason, f"{path.name}: {error.detail}") from None
    if registration.residual_mm > MAX_FIT_ERROR_MM or registration.coverage < MIN_COVERAGE:
        found = f"{registration.residual_mm:.2f} mm from the scan over {registration.coverage:.0%} of the face"
        wanted = f"at most {MAX_FIT_ERROR_MM:g} mm and {MIN_COVERAGE:.0%} or more; are the landmarks right?"
        raise AnnotationError("registration_poor", f"{path.name}: {found}, expected {wanted}")
    return LabelGeometry(
        registration.vertices.astype(np.float32), registration.residual_mm, registration.coverage, registered=True
    )


def _sized(path: Path, vertices: NDArray[np.float64], mean: Vertices, factor: float | None) -> Vertices:
    ratio = _radius(vertices) / _radius(mean)
    if factor is None:
        # Every vertex has its counterpart, but a size is not to be had from it: the face becomes of mean size.
        if not ratio > 0.0:
            raise AnnotationError("mesh_wrong_scale", f"{path.name}: all vertices lie in one place")
        factor = 1.0 / ratio
    if not SIZE_RANGE[0] < factor * ratio < SIZE_RANGE[1]:
        found = f"{factor * ratio:.3g} times the size of the mean face"
        raise AnnotationError("mesh_wrong_scale", f"{path.name}: {found}, expected millimetres; set the unit")
    return np.asarray(factor * vertices, np.float32)


def _radius(vertices: NDArray[np.floating]) -> float:
    return float(np.sqrt(((vertices - vertices.mean(0)) ** 2).sum(1).mean()))
