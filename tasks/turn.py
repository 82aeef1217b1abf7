"""Annotated photos with their heads turned away further, to fill the poses that are rare among photos.

Convention: pixels are uint8 RGB (H, W, 3); points are pixels with centres at +0.5; yaw as in models/face/camera.py.
Source: method.md, section C; the idea of 300W-LP (Zhu et al. 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix, rotation_matrix_to_axis_angle
from numpy.typing import NDArray
from torch import Tensor

from models.face.camera import angles_from_rotation, crop_camera, project, rotation_from_angles, to_camera_space
from models.face.crop import apply_affine, crop_affine
from models.face.morphable import MorphableModel
from models.reconstruction.fit import FittedFaces, fit_face
from models.rendering.relief import HeadRelief, carry_points, head_relief, sheet_places
from models.types import LANDMARK_COUNT, Camera
from tasks.images import Pixels

Floats = NDArray[np.floating]

FARTHEST_DEG = 60.0
"""Beyond the photo's own yaw: farther, most of what is seen would be drawn out from a few pixels."""

PROFILE_DEG = 90.0

FRONTAL_DEG = 10.0
"""A head within this yaw may be turned to either side, others only further to theirs: nothing hidden comes to light."""

CROP_PX, CROP_SCALE = 224, 1.35
"""The face model is fitted in a crop like those of the reconstruction, seen by the same camera."""

SIGMA_PX, JAW_CONFIDENCE, JAW = 2.0, 0.2, 17
"""How far annotations stray from the model's points in the crop; along the jaw conventions differ most."""

PITCH_SIGMA_DEG, ROUNDNESS_SIGMA = 3.0, 0.08
"""What a turned head also does by chance: nod a little, and be of another depth."""

JUMP_PX, CONTOUR_BLUR_PX = 3.0, 0.7
"""Where neighbours come from places farther apart than this, a new contour runs, smoothed as a camera would."""

FACES_AT_ONCE = 16


@dataclass(frozen=True)
class TurnedPhoto:
    """A photo of the same size and scene with its head turned."""

    image: Pixels
    points: Floats
    """(68, 2), in the convention of the annotation."""
    yaw_deg: float
    """Of the head now."""
    fit_error: float
    """Mean distance of the fitted model's points from the 51 inner ones, relative to the larger side of their box."""


def turn_photos(
    photos: Sequence[Pixels],
    points: Floats,
    *,
    face_model: MorphableModel,
    yaw_deg: Floats,
    seed: int,
    rasterizer: str = "auto",
) -> list[TurnedPhoto]:
    """Turn the head of each photo to a new yaw; `points` (N, 68, 2) are its annotation, `yaw_deg` (N,) is wanted.

    Heads turn outward only and at most `FARTHEST_DEG`; a yaw that is not in reach becomes the nearest that is, see
    `TurnedPhoto.yaw_deg`. A face model is fitted to the points and gives the depth; the points are carried along with
    the face, so they keep their convention. The same seed turns the same photos alike, whatever else is in the batch.
    Raises: ValueError if numbers of photos, points and angles differ, or an annotation is no face.
    """
    found, wanted = np.asarray(points, np.float32), np.asarray(yaw_deg, np.float64)
    if found.shape != (len(photos), LANDMARK_COUNT, 2) or wanted.shape != (len(photos),):
        raise ValueError(
            f"turn_photos: {len(photos)} photos with points {found.shape} and yaw {wanted.shape}, "
            f"expected ({len(photos)}, {LANDMARK_COUNT}, 2) and ({len(photos)},)"
        )
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        raise ValueError("turn_photos: points or angles that are not finite; leave out photos without annotation")
    chance = np.array([np.random.default_rng([seed, place]).normal(size=2) for place in range(len(photos))])
    turned: list[TurnedPhoto] = []
    for start in range(0, len(photos), FACES_AT_ONCE):
        rows = slice(start, start + FACES_AT_ONCE)
        turned += _turn_batch(photos[rows], found[rows], face_model, wanted[rows], chance[rows], rasterizer)
    return turned


def reachable_yaw(own_deg: Floats, wanted_deg: Floats) -> Floats:
    """The yaw nearest to the wanted one to which a head can be turned from its own."""
    side = np.where(np.abs(own_deg) <= FRONTAL_DEG, wanted_deg, own_deg)
    outward = np.where(side < 0.0, -1.0, 1.0)
    own = own_deg * outward
    return outward * np.clip(wanted_deg * outward, own, np.maximum(own, np.minimum(own + FARTHEST_DEG, PROFILE_DEG)))


def _turn_batch(
    photos: Sequence[Pixels],
    points: Floats,
    face_model: MorphableModel,
    wanted_deg: Floats,
    chance: Floats,
    rasterizer: str,
) -> list[TurnedPhoto]:
    annotation = torch.from_numpy(points)
    fitted, camera = fit_photos(face_model, annotation)
    angles = angles_from_rotation(fitted.rotation)
    reached = reachable_yaw(angles[:, 0].rad2deg().double().numpy(), wanted_deg)
    new = angles.clone()
    new[:, 0] = torch.from_numpy(reached).deg2rad()
    new[:, 1] += torch.from_numpy(PITCH_SIGMA_DEG * chance[:, 0]).deg2rad()
    turn = _turn_between(fitted.rotation, rotation_from_angles(*new.unbind(1)))
    vertices = to_camera_space(
        face_model.vertices(fitted.identity, fitted.expression),
        rotation=fitted.rotation,
        translation=fitted.translation,
    )
    landmarks = face_model.landmarks(vertices)
    bridged = ~face_model.part("mouth")[face_model.triangles].any(1)
    relief = head_relief(
        vertices,
        landmarks,
        face_model.triangles[bridged],
        camera,
        roundness=torch.from_numpy(np.exp(ROUNDNESS_SIGMA * chance[:, 1])).float(),
        rasterizer=rasterizer,
    )
    carried = carry_points(relief, annotation, landmarks, turn=turn, camera=camera)
    nodes = relief.turned(turn)
    errors = _inner_errors(landmarks, annotation, camera)
    sizes = torch.tensor([photo.shape[1::-1] for photo in photos]).to(carried)
    shift = shift_inside(annotation, carried, sizes)
    return [
        TurnedPhoto(
            image=_redrawn(photo, nodes[row], relief, camera, shift[row], row, rasterizer),
            points=(carried[row] + shift[row]).numpy(),
            yaw_deg=float(reached[row]),
            fit_error=float(errors[row]),
        )
        for row, photo in enumerate(photos)
    ]


def fit_photos(face_model: MorphableModel, points: Tensor) -> tuple[FittedFaces, Camera]:
    """Faces behind annotations (N, 68, 2), and the cameras that see them in the pixels of their photos."""
    affine = crop_affine(points, size_px=CROP_PX, scale=CROP_SCALE)
    confidence = torch.ones(points.shape[:2])
    confidence[:, :JAW] = JAW_CONFIDENCE
    camera = crop_camera(len(points), CROP_PX)
    in_crop = apply_affine(torch.linalg.inv(affine), points)
    fitted = fit_face(face_model, in_crop, confidence=confidence, camera=camera, sigma_px=SIGMA_PX)
    principal = apply_affine(affine, camera.principal_px[:, None])[:, 0]
    return fitted, Camera(camera.focal_px * affine[:, 0, 0], principal, camera.size)


def shift_inside(before: Tensor, after: Tensor, sizes: Tensor) -> Tensor:
    """By how much (N, 2) to shift photos of `sizes` (N, 2) so that no face leaves them farther than it did before."""
    low = before.amin(1).clamp_max(0.0)
    high = torch.maximum(before.amax(1), sizes)
    return (low - after.amin(1)).clamp_min(0.0) + (high - after.amax(1)).clamp_max(0.0)


def _turn_between(old: Tensor, new: Tensor) -> Tensor:
    """Axis-angle in camera axes that leads from one rotation of model space to another."""
    relative = axis_angle_to_rotation_matrix(new) @ axis_angle_to_rotation_matrix(old).transpose(1, 2)
    # A half turn about x leads from model axes to those of the camera, for axes of rotations too.
    turn: Tensor = rotation_matrix_to_axis_angle(relative) * old.new_tensor([1.0, -1.0, -1.0])
    return turn


def _redrawn(
    photo: Pixels, nodes: Tensor, relief: HeadRelief, camera: Camera, shift: Tensor, row: int, rasterizer: str
) -> Pixels:
    height, width = photo.shape[:2]
    one = Camera(camera.focal_px[row : row + 1], camera.principal_px[row : row + 1] + shift, (height, width))
    places, there = sheet_places(nodes[None], relief.pixels[row : row + 1], one, rasterizer=rasterizer)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    # OpenCV counts pixel centres as whole numbers.
    x = np.where(there[0].numpy(), places[0, 0].numpy() - 0.5, x - float(shift[0]))
    y = np.where(there[0].numpy(), places[0, 1].numpy() - 0.5, y - float(shift[1]))
    redrawn = cv2.remap(photo, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    contour = _jumps(x) | _jumps(y)
    softened = cv2.GaussianBlur(redrawn, (0, 0), CONTOUR_BLUR_PX)
    smooth: Pixels = np.where(contour[..., None], softened, redrawn).astype(np.uint8)
    return smooth


def _jumps(places: Floats) -> NDArray[np.bool_]:
    """Pixels beside which the photo goes on at another place: where one part of the head covers another."""
    found = np.zeros(places.shape, bool)
    right, down = (np.abs(np.diff(places, axis=axis)) > JUMP_PX for axis in (1, 0))
    found[:, 1:] |= right
    found[:, :-1] |= right
    found[1:] |= down
    found[:-1] |= down
    return found


def fit_errors(face_model: MorphableModel, fitted: FittedFaces, points: Tensor, camera: Camera) -> Tensor:
    """`TurnedPhoto.fit_error` of the faces that `fit_photos` found, (N,)."""
    vertices = face_model.vertices(fitted.identity, fitted.expression)
    seen = to_camera_space(vertices, rotation=fitted.rotation, translation=fitted.translation)
    return _inner_errors(face_model.landmarks(seen), points, camera)


def _inner_errors(landmarks: Tensor, annotation: Tensor, camera: Camera) -> Tensor:
    distance = (project(landmarks, camera) - annotation)[:, JAW:].norm(dim=2).mean(1)
    inner = annotation[:, JAW:]
    relative: Tensor = distance / (inner.amax(1) - inner.amin(1)).amax(1)
    return relative
