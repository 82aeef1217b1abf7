"""Strong randomisation of rendered photos: how faces are painted and lit, and what is drawn around and over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.face.morphable import MorphableModel
from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import interpolate, vertex_normals
from models.types import Camera
from tasks.backdrops import Backdrops
from tasks.dress import draw_back, draw_clothes, draw_front_hair
from tasks.face_layout import FaceLayout
from tasks.illuminate import lamp_light, light_skin
from tasks.images import Pixels
from tasks.occlude import draw_obstacle, draw_wear
from tasks.paint import Skin, paint
from tasks.scenery import HeadOutline, background, draw_openings
from tasks.spoil import spoil
from tasks.subjects import Lamp, Shot, Subject
from tasks.whiskers import draw_whiskers

SUPERSAMPLING = 2
"""Photos are drawn at so many times their size, then reduced, as lenses and sensors average."""

BACKDROP_SHARE = 0.7
"""How often a real photo is behind the head, where there are any; else a drawn background."""

SOMEBODY_SHARE = 0.6
"""How often, before a real photo, the face is laid over the one that was there, if the heads are turned alike."""

MOST_YAW = 0.7
"""In radians: a face turned further ends at its contour, which heads of others do not follow."""

NECK_MM = 18.0
"""Below the chin by so much, clothes may cover what the face model has of the neck."""

SHOULDER = 0.8
"""Brightness above which colours are compressed, as cameras do."""

DARK = Lamp(np.array([0.0, 0.0, -1.0]), np.zeros(3), 1.0)


@dataclass(frozen=True)
class Faces:
    """A batch of lit faces before anything else is drawn."""

    image: Pixels
    """(B, S, S, 3)"""
    mask: NDArray[np.bool_]
    """(B, S, S)"""
    bare: NDArray[np.bool_]
    """(B, S, S) skin without hair: tells the colour of other skin."""
    neck: NDArray[np.bool_]
    """(B, S, S) what clothes may cover."""
    front: NDArray[np.bool_]
    """(B, S, S) the face without skull, ears and neck, as it is laid over the head of somebody else."""


class StrongLook:
    """Paints, lights, dresses and hides the faces of one face model."""

    def __init__(self, face_model: MorphableModel, *, backdrops: Backdrops | None = None) -> None:
        self.face_model = face_model
        self.backdrops = backdrops
        self.layout = FaceLayout(face_model)
        chin = float(self.layout.points[8, 1])
        self.neck_height = chin - NECK_MM
        self.ear_depth = float(self.layout.points[[0, 16], 2].mean())
        self.has_neck = bool(face_model.mean[:, 1].min() < chin - 2.0 * NECK_MM)
        self.has_eyes = bool(face_model.part("eyes").any())
        self._fixed = torch.cat([face_model.mean, torch.from_numpy(self.layout.weights)], 1)

    @torch.no_grad()
    def faces(
        self,
        in_camera: Float[Tensor, "B V 3"],
        *,
        albedo: Float[Tensor, "B V 3"],
        lighting: Float[Tensor, "B 9 3"],
        camera: Camera,
        subjects: Sequence[Subject],
        shots: Sequence[Shot],
    ) -> Faces:
        """Draw the faces under soft light and a lamp."""
        triangles = self.face_model.triangles
        ids, _ = rasterize_ids(in_camera, triangles, camera)
        fixed = self._fixed.expand(len(in_camera), -1, -1)
        attributes = torch.cat([albedo, vertex_normals(in_camera, triangles), in_camera, fixed], 2)
        seen = interpolate(attributes, in_camera, triangles, ids, camera).permute(0, 2, 3, 1)
        lamps = [shot.lamp or DARK for shot in shots]
        directions = torch.from_numpy(np.stack([lamp.direction for lamp in lamps])).float()
        normal = functional.normalize(seen[..., 3:6], dim=-1)
        positions = seen[..., 6:9]
        lit = lamp_light(in_camera, triangles, positions=positions, normals=normal, directions=directions).numpy()
        normals = normal.numpy()
        values, mask = seen.numpy(), (ids >= 0).numpy()
        image = np.zeros((*mask.shape, 3), np.uint8)
        bare, neck, front = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
        for row, (subject, shot, lamp) in enumerate(zip(subjects, shots, lamps, strict=True)):
            where = mask[row]
            if not where.any():
                continue
            pixels = values[row][where]
            skin = Skin(pixels[:, :3], pixels[:, 9:12], pixels[:, 12:])
            painted = paint(skin, self.layout, subject, shot.scenery)
            colours = light_skin(
                painted,
                normal=normals[row][where],
                position=pixels[:, 6:9],
                lighting=lighting[row].numpy(),
                lamp=lamp,
                lit=_softened(lit[row], where, lamp.softness)[where],
            )
            tone = painted.albedo[painted.bare].mean() if painted.bare.any() else 0.45
            image[row][where] = _exposed(colours, painted.bare, exposure=shot.exposure * (0.2 + 0.55 * float(tone)))
            bare[row][where] = painted.bare
            neck[row][where] = pixels[:, 10] < self.neck_height
            front[row][where] = self._is_front(pixels[:, 9:12]) & ~painted.hairy
        return Faces(image, mask, bare, neck, front)

    def _is_front(self, place: NDArray[np.floating]) -> NDArray[np.bool_]:
        forehead = self.layout.brow_height + 0.3 * self.layout.half_width
        height = (place[:, 1] > self.neck_height) & (place[:, 1] < forehead)
        return np.asarray(height & (place[:, 2] > self.ear_depth))

    def photo(self, faces: Faces, row: int, *, head: HeadOutline, subject: Subject, shot: Shot) -> bytes:
        """Draw everything else around and over one face, and put it through a camera; the file's content."""
        stream, yaw = shot.scenery, float(shot.angles[0])
        real = self.backdrops is not None and stream.random() < BACKDROP_SHARE
        swapped = real and stream.random() < SOMEBODY_SHARE and abs(yaw) < MOST_YAW
        image = self._on_somebody(faces, row, head, stream) if swapped else None
        if image is None:
            image = self._dressed(faces, row, head, subject, shot, real=real)
        size = len(image)
        draw_whiskers(image, head, subject, stream)
        draw_wear(image, head, subject, stream, yaw=yaw)
        if shot.occluded:
            draw_obstacle(image, head, stream)
        return spoil(image, stream, size_px=size // SUPERSAMPLING, face_px=head.width_px / SUPERSAMPLING)

    def _dressed(
        self, faces: Faces, row: int, head: HeadOutline, subject: Subject, shot: Shot, *, real: bool
    ) -> Pixels:
        """The face with drawn hair and clothes before a background."""
        face, mask, stream = faces.image[row], faces.mask[row], shot.scenery
        size = len(face)
        image = self.backdrops.draw(stream, size) if self.backdrops and real else background(stream, size)
        draw_back(image, head, subject, stream, has_neck=self.has_neck)
        if not self.has_eyes:
            draw_openings(image, head, stream, yaw=float(shot.angles[0]))
        np.copyto(image, face, where=mask[..., None])
        draw_clothes(image, head, stream, face=mask, neck=faces.neck[row])
        draw_front_hair(image, head, subject, stream)
        return image

    def _on_somebody(self, faces: Faces, row: int, head: HeadOutline, stream: np.random.Generator) -> Pixels | None:
        """The face in the place of that of a person on a real photo, if one looks the same way."""
        face, front = faces.image[row].astype(np.float32), faces.front[row]
        if self.backdrops is None or not self.has_eyes:
            return None
        below = self.backdrops.draw_around(stream, head.landmarks, len(face))
        if below is None or not (front & faces.bare[row]).any():
            return None
        # Half of the way, because what light did to either skin is unknown.
        gain = (below.skin.clip(8.0) / face[front & faces.bare[row]].mean(0).clip(8.0)) ** stream.uniform(0.5, 1.0)
        face = (face * gain.clip(0.4, 2.5).astype(np.float32)).clip(0.0, 255.0)
        if below.magnification > 1.0:
            face = cv2.GaussianBlur(face, (0, 0), 0.4 * below.magnification).astype(np.float32)
        margin = max(1, round(0.02 * head.width_px))
        inner = cv2.erode(front.astype(np.float32), np.ones((margin, margin), np.uint8))
        soft = cv2.GaussianBlur(inner, (0, 0), 0.6 * margin)
        weight = np.where(faces.mask[row], soft, 0.0)[..., None]
        return np.asarray(below.image + weight * (face - below.image), np.uint8)


def _softened(lit: NDArray[np.floating], mask: NDArray[np.bool_], softness: float) -> NDArray[np.floating]:
    """Shadows with blurred edges, without the outside of the face mixing in."""
    sigma = 0.5 + 0.025 * softness * len(lit)
    inside = mask.astype(np.float32)
    total = cv2.GaussianBlur(lit.astype(np.float32) * inside, (0, 0), sigma)
    blurred = total / np.maximum(cv2.GaussianBlur(inside, (0, 0), sigma), 1e-3)
    return np.asarray(blurred + softness * 0.6 * (1.0 - blurred))


def _exposed(colours: NDArray[np.floating], bare: NDArray[np.bool_], *, exposure: float) -> Pixels:
    """Pixel values of light, exposed for the skin so that the face is neither black nor white."""
    measured = colours[bare] if bare.any() else colours
    level = float(measured.mean())
    wanted = float(np.clip(exposure, 0.2, 0.68))
    values = colours * (wanted / max(level, 1e-3))
    over = (values - SHOULDER).clip(0.0)
    room = 1.0 - SHOULDER
    values = np.minimum(values, SHOULDER) + room * (1.0 - np.exp(-over / room))
    return np.asarray((values * 255.0).clip(0.0, 255.0).round(), np.uint8)
