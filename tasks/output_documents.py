"""Faces as data: coefficients with camera and landmarks (JSON), the camera for other programs (JSON), weights (CSV)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.animation.morphs import morph_targets, morph_weights
from models.export import camera_document
from models.face.crop import apply_affine
from tasks.artifacts import replace_file, write_json
from tasks.face_record import MESH_AXES, FaceRecord

SENSOR_MM = 36.0
"""Width of Blender's camera sensor, of which its lens and shifts are fractions."""

WEIGHTS_TABLE = "weights.csv"


def document(record: FaceRecord) -> dict[str, Any]:
    """Coefficients, camera, landmarks and origin of a face as plain data."""
    face, model = record.face, record.model
    found = face.coefficients
    projected = apply_affine(face.affine[None], face.reconstruction.landmarks)[0]
    return {
        "photo": face.name,
        "face": record.number,
        "model": record.origin,
        "refinement": record.refinement,
        "face_model": model.stamp(),
        "mesh": {"axes": MESH_AXES, "vertices": model.vertex_count, "triangles": len(model.triangles)},
        "coefficients": {
            "identity": _numbers(found.identity[0]),
            "expression": dict(zip(model.expression_names, _numbers(found.expression[0]), strict=True)),
            "albedo": _numbers(found.albedo[0]),
            "lighting": _numbers(found.lighting[0]),
        },
        "iris": record.iris_document,
        "camera": _camera(record),
        "crop": {"size_px": face.batch.image.shape[-1], "to_photo": _numbers(face.affine)},
        "landmarks": {
            "detected_px": _numbers(face.detection.landmarks),
            "confidence": _numbers(face.detection.confidence),
            "projected_px": _numbers(projected),
            "face_score": round(face.detection.face_score, 4),
        },
    }


def write_document(record: FaceRecord, path: Path) -> None:
    """Write `document` as JSON."""
    write_json(path, document(record))


def camera_for_programs(record: FaceRecord) -> dict[str, Any]:
    """The camera of a photo as OpenCV, OpenGL (three.js) and Blender want it, beside the face model's licence.

    The photo's camera looks at the mesh in its own space, in millimetres for OpenCV and in metres, as in the GLB, for
    the others.
    """
    own = _camera(record)
    intrinsics, width, height = np.array(own["K"]), own["width_px"], own["height_px"]
    turn, shift = np.array(own["R"]), np.array(own["t_mm"])
    # OpenGL's camera looks along -z with y up: half a turn about x from ours.
    view = np.eye(4)
    view[:3, :3] = np.diag([1.0, -1.0, -1.0]) @ turn
    view[:3, 3] = np.diag([1.0, -1.0, -1.0]) @ shift / 1000.0
    world = np.linalg.inv(view)
    focal, centre = float(intrinsics[0, 0]), intrinsics[:2, 2]
    near, far = 0.01, 100.0
    projection = np.zeros((4, 4))
    projection[0, 0], projection[1, 1] = 2.0 * focal / width, 2.0 * focal / height
    projection[0, 2], projection[1, 2] = 1.0 - 2.0 * centre[0] / width, 2.0 * centre[1] / height - 1.0
    projection[2, 2], projection[2, 3] = -(far + near) / (far - near), -2.0 * far * near / (far - near)
    projection[3, 2] = -1.0
    longest = max(width, height)
    return {
        "photo": record.face.name,
        "face_model": record.model.stamp(),
        "opencv": own,
        "opengl": {
            "convention": "clip = projection (view (x, 1)), x in metres as in the GLB; matrices row by row; camera "
            "x right, y up, looking along -z",
            "view": view.tolist(),
            "projection": projection.tolist(),
        },
        "blender": {
            "convention": "matrix_world of a camera for the GLB as Blender imports it (z up), row by row; sensor_fit "
            "AUTO, sensor of 36 mm; set the render's resolution to the photo's",
            "lens_mm": focal / longest * SENSOR_MM,
            "shift_x": float((width / 2.0 - centre[0]) / longest),
            "shift_y": float((centre[1] - height / 2.0) / longest),
            "matrix_world": (_UPRIGHT @ world).tolist(),
            "resolution": [width, height],
        },
    }


_UPRIGHT = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
"""From glTF's y up to Blender's z up."""


def write_camera(record: FaceRecord, path: Path) -> None:
    """Write `camera_for_programs` as JSON."""
    write_json(path, camera_for_programs(record))


def weights_row(record: FaceRecord) -> dict[str, Any]:
    """Weights of the morph targets of one face, a row of `weights.csv`."""
    names, _ = morph_targets(record.model)
    weights = morph_weights(record.model, record.face.coefficients.expression[0].numpy())
    return {
        "photo": record.face.name,
        "face": record.number,
        **{name: f"{weight:.5f}" for name, weight in zip(names, weights.tolist(), strict=True)},
        "face_model": record.model.name,
        "licence": " ".join(record.model.licence.split()),
    }


def write_weights(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write rows of one face model as a table."""
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _camera(record: FaceRecord) -> dict[str, Any]:
    face = record.face
    return camera_document(
        face.intrinsics,
        size=(face.photo.shape[0], face.photo.shape[1]),
        rotation=face.coefficients.rotation[0],
        translation=face.coefficients.translation[0],
    )


def _numbers(values: torch.Tensor | np.ndarray) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), 6).tolist()
