"""Where annotated photos have their points on the face model: learned once from the photos, then known of every render.

Annotators and other detectors put points beside the face model's own. Photos alone cannot say how a network is to split
their points into places of the model and a shift. A shift that is fixed on the face says it for all poses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.face.camera import crop_camera, project, to_camera_space
from models.face.crop import apply_affine, crop_affine
from models.face.morphable import MorphableModel
from models.reconstruction.fit import FittedFaces, fit_face, fit_pose
from models.types import JAW_COUNT, LANDMARK_COUNT, MIRRORED_LANDMARKS, Camera
from tasks.annotated_photos import ANNOTATED, AnnotatedPhotos

MIN_PHOTOS = 20
"""Fewer say more about their own faces than about the convention."""

CROP_PX, CROP_SCALE = 224, 1.35

SIGMA_PX = 4.0
"""Of the points around the fitted face, in the crop: wide, so that the faces do not take the convention's place."""

JAW_CONFIDENCE = 0.05
"""Along the jaw conventions differ most; what else differs is not known at first."""

ROUNDS = 5

TYPICAL_MM = 2.0
"""Points with larger offsets say less and less about pose and identity: most conventions agree on most points."""

OUTLIER_PX = 6.0
"""Residuals beyond this count less and less (Cauchy)."""

OFFSET_PRECISION = 0.02
"""Prior of an offset, in px² per mm² and photo: it decides the depth of points that are seen from the front only."""


@dataclass(frozen=True)
class _Crops:
    """Annotations in crops like those of the reconstruction."""

    points: Float[Tensor, "B 68 2"]
    affine: Float[Tensor, "B 3 3"]
    camera: Camera

    @classmethod
    def around(cls, points: Float[Tensor, "B 68 2"]) -> _Crops:
        affine = crop_affine(points, size_px=CROP_PX, scale=CROP_SCALE)
        return cls(apply_affine(torch.linalg.inv(affine), points), affine, crop_camera(len(points), CROP_PX))


def annotation_offsets(photos: AnnotatedPhotos, face_model: MorphableModel) -> Float[Tensor, "68 3"] | None:
    """Millimetres in model space from the model's landmarks to the points of annotated photos.

    None where annotated photos are few, or are all there is.
    Method: faces are fitted to the points less the offsets so far, the mean of their identities is taken out (what all
    faces share is convention, not identity), and the offsets are what explains the rest best, by least squares over
    the photos; symmetrical. Points that turn out to lie elsewhere lose their say in the next round.
    """
    rows = np.flatnonzero(photos.convention == ANNOTATED)
    if len(rows) < MIN_PHOTOS or not (photos.convention == 0).any():
        return None
    crops = _Crops.around(torch.from_numpy(photos.points[rows]).float())
    offsets = torch.zeros(LANDMARK_COUNT, 3)
    confidence = torch.ones(len(rows), LANDMARK_COUNT)
    confidence[:, :JAW_COUNT] = JAW_CONFIDENCE
    target = crops.points
    for _ in range(ROUNDS):
        fitted = fit_face(face_model, target, confidence=confidence, camera=crops.camera, sigma_px=SIGMA_PX)
        identity = fitted.identity - fitted.identity.mean(0)
        landmarks = face_model.landmarks(face_model.vertices(identity, fitted.expression))
        rotation, translation = fit_pose(landmarks, target, confidence=confidence, camera=crops.camera)
        fitted = FittedFaces(identity, fitted.expression, rotation, translation)
        offsets = _best_offsets(landmarks, fitted, crops)
        target = crops.points - _shift(landmarks, offsets, fitted, crops.camera)
        confidence = (1.0 / (1.0 + (offsets.norm(dim=1) / TYPICAL_MM).square())).expand(len(rows), -1)
    return offsets


def as_annotated(
    photos: AnnotatedPhotos, face_model: MorphableModel, offsets: Float[Tensor, "68 3"]
) -> Float[np.ndarray, "N 68 2"]:
    """Points of the face model's own renders where annotated photos would have them, pixels; NaN for other photos."""
    found = np.full(photos.points.shape, np.nan, np.float32)
    rows = np.flatnonzero(photos.convention == 0)
    for part in np.array_split(rows, max(1, len(rows) // 256)):
        if not len(part):
            continue
        crops = _Crops.around(torch.from_numpy(photos.points[part]).float())
        confidence = torch.ones(len(part), LANDMARK_COUNT)
        fitted = fit_face(face_model, crops.points, confidence=confidence, camera=crops.camera, sigma_px=SIGMA_PX)
        landmarks = face_model.landmarks(face_model.vertices(fitted.identity, fitted.expression))
        moved = crops.points + _shift(landmarks, offsets, fitted, crops.camera)
        found[part] = apply_affine(crops.affine, moved).numpy()
    return found


def _shift(
    landmarks: Float[Tensor, "B 68 3"], offsets: Float[Tensor, "68 3"], pose: FittedFaces, camera: Camera
) -> Float[Tensor, "B 68 2"]:
    """Pixels by which the offsets move landmarks under a pose."""
    before, after = (
        project(to_camera_space(points, rotation=pose.rotation, translation=pose.translation), camera)
        for points in (landmarks, landmarks + offsets)
    )
    return after - before


def _best_offsets(landmarks: Float[Tensor, "B 68 3"], pose: FittedFaces, crops: _Crops) -> Float[Tensor, "68 3"]:
    """The shift of every landmark on the face that explains best what the poses leave over."""
    pixels = project(to_camera_space(landmarks, rotation=pose.rotation, translation=pose.translation), crops.camera)
    residual = crops.points - pixels
    jacobian = torch.stack([_shift(landmarks, axis.expand(68, 3), pose, crops.camera) for axis in torch.eye(3)], 3)
    weight = 1.0 / (1.0 + (residual.norm(dim=2) / OUTLIER_PX).square())
    weighted = jacobian.transpose(2, 3) * weight[..., None, None]
    normal = (weighted @ jacobian).sum(0) + OFFSET_PRECISION * len(landmarks) * torch.eye(3)
    offsets: Tensor = torch.linalg.solve(normal, (weighted @ residual[..., None]).sum(0))[..., 0]
    mirrored = offsets[list(MIRRORED_LANDMARKS)] * torch.tensor([-1.0, 1.0, 1.0])
    return (offsets + mirrored) / 2.0
