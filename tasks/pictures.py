"""Pictures of faces: the rendering laid over its photo, the bare mesh in grey or coloured by error, and grids."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.face.camera import CAMERA_DISTANCE_MM, crop_camera, rotation_from_angles, to_camera_space
from models.face.crop import warp_crop
from models.face.morphable import MorphableModel
from models.rendering.render import render
from models.types import FaceCoefficients, Rendering

Pixels = NDArray[np.uint8]

FINER = 2
"""Pictures are rendered this many times finer and averaged: the renderer's silhouettes are hard."""

PROFILE_DEG = 75.0
GREY = 0.72
VIEW_SCALE = 1.12
"""Meshes are drawn a little smaller than faces in crops, so that the profile fits."""

UNKNOWN_COLOUR = (0.62, 0.62, 0.64)
"""Of vertices without a measured error: eyes and the inside of the mouth."""

ERROR_COLOURS = "magma_r"


def overlay_image(photo: Pixels, image: Tensor, mask: Tensor, *, opacity: float = 0.9) -> Pixels:
    """Lay a rendering over a photo of the same size.

    Convention: the photo is RGB (H, W, 3); `image` (3, H, W) is RGB in [0, 1]; `mask` (H, W) is bool, or a coverage in
    [0, 1] where the rendering was averaged down.
    Raises: ValueError if the sizes differ.
    """
    if image.shape[1:] != photo.shape[:2] or mask.shape != photo.shape[:2]:
        raise ValueError(
            f"rendering of {tuple(image.shape[1:])} and mask of {tuple(mask.shape)} pixels, "
            f"expected the photo's {photo.shape[:2]}"
        )
    weight = opacity * mask.float().cpu().numpy()[..., None]
    # What is averaged down carries its coverage already, so colour and background add up.
    drawn = image.detach().clamp(0.0, 1.0).permute(1, 2, 0).cpu().numpy() * 255.0
    return np.rint(drawn * opacity + photo * (1.0 - weight)).clip(0, 255).astype(np.uint8)


def face_over_photo(
    model: MorphableModel, coefficients: FaceCoefficients, photo: Pixels, affine: Tensor, *, crop_px: int, size_px: int
) -> tuple[Pixels, Pixels]:
    """The crop of a photo at any resolution, and the same with the rendered face over it.

    `coefficients` hold one face; `affine` (3, 3) maps the pixels of its crop of side `crop_px` to the photo.
    """
    shrink = torch.diag(torch.tensor([crop_px / size_px, crop_px / size_px, 1.0]))
    crop = warp_crop(photo, (affine @ shrink).numpy(), size_px)
    vertices = model.vertices(coefficients.identity, coefficients.expression)
    seen = to_camera_space(vertices, rotation=coefficients.rotation, translation=coefficients.translation)
    found = render(
        seen,
        model.triangles,
        albedo=model.albedo(coefficients.albedo),
        lighting=coefficients.lighting,
        camera=crop_camera(1, size_px * FINER),
    )
    image, coverage = average_down(found)
    return crop, overlay_image(crop, image, coverage)


def draw_mesh(
    vertices: Tensor, triangles: Tensor, *, size_px: int, yaw_deg: float = 0.0, colours: Tensor | None = None
) -> Pixels:
    """One mesh (V, 3) in model space under light from above left, on white; grey, or with colours (V, 3) in [0, 1]."""
    yaw = torch.tensor([yaw_deg]).deg2rad()
    zero = torch.zeros(1)
    low, high = vertices.amin(0), vertices.amax(0)
    centred = (vertices - (low + high) / 2)[None]
    # The picture fits the taller side of a face of any size, and all views of one face share a scale.
    distance = CAMERA_DISTANCE_MM * VIEW_SCALE * float((high - low)[:2].max()) / 220.0
    seen = to_camera_space(
        centred, rotation=rotation_from_angles(yaw, zero, zero), translation=torch.tensor([[0.0, 0.0, distance]])
    )
    albedo = torch.full_like(seen, GREY) if colours is None else colours[None]
    strength = 0.5 if colours is None else 0.15
    found = render(
        seen, triangles, albedo=albedo, lighting=_studio_light(strength), camera=crop_camera(1, size_px * FINER)
    )
    image, coverage = average_down(found)
    white = np.full((size_px, size_px, 3), 255, np.uint8)
    return overlay_image(white, image, coverage, opacity=1.0)


def average_down(rendering: Rendering) -> tuple[Tensor, Tensor]:
    """Image (3, H, W), premultiplied, and coverage (H, W) of one rendering that was made `FINER` times too large."""
    image = rendering.image.clamp(0.0, 1.0) * rendering.mask[:, None]
    pixels = torch.nn.functional.avg_pool2d(torch.cat([image, rendering.mask[:, None].float()], 1), FINER)[0]
    return pixels[:3], pixels[3]


def error_colours(errors_mm: np.ndarray, *, limit_mm: float) -> Tensor:
    """Colours (V, 3) of distances: light is exact, dark is `limit_mm` or more, grey where not finite."""
    known = np.isfinite(errors_mm)
    share = np.clip(np.where(known, errors_mm, 0.0) / limit_mm, 0.0, 1.0)
    colours = colormaps[ERROR_COLOURS](share)[:, :3]
    colours[~known] = UNKNOWN_COLOUR
    return torch.from_numpy(colours.astype(np.float32))


def draw_overlays(
    model: MorphableModel,
    coefficients: FaceCoefficients,
    photos: Sequence[Pixels],
    affines: Tensor,
    *,
    crop_px: int,
    size_px: int = 240,
) -> Pixels:
    """A grid with one column per face: the photo, the rendering over it, the shaded mesh.

    `coefficients` hold one face per photo; `affines` (N, 3, 3) map crop pixels to photo pixels.
    """
    columns = []
    for place, photo in enumerate(photos):
        face = select_faces(coefficients, torch.tensor([place]))
        crop, overlay = face_over_photo(model, face, photo, affines[place], crop_px=crop_px, size_px=size_px)
        vertices = model.vertices(face.identity, face.expression)[0]
        columns.append([crop, overlay, draw_mesh(vertices, model.triangles, size_px=size_px, yaw_deg=-20.0)])
    return grid([list(row) for row in zip(*columns, strict=True)])


def select_faces(coefficients: FaceCoefficients, places: Tensor) -> FaceCoefficients:
    """Some faces of a batch."""
    names = ("identity", "expression", "albedo", "lighting", "rotation", "translation")
    return FaceCoefficients(**{name: getattr(coefficients, name)[places] for name in names})


def grid(rows: Sequence[Sequence[Pixels]], *, gap_px: int = 4) -> Pixels:
    """Pictures of one size side by side and below each other, on white.

    Raises: ValueError if there is none.
    """
    if not rows or not rows[0]:
        raise ValueError("no pictures to draw, expected at least one; the split may be empty")
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet_size = (len(rows) * (height + gap_px) - gap_px, columns * (width + gap_px) - gap_px, 3)
    sheet = np.full(sheet_size, 255, np.uint8)
    for number, row in enumerate(rows):
        for place, picture in enumerate(row):
            top, left = number * (height + gap_px), place * (width + gap_px)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def png(picture: Pixels) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _studio_light(strength: float) -> Tensor:
    """White light, more of it from the viewer and from above left."""
    lighting = torch.zeros(1, 9, 3)
    lighting[:, 0] = 1.0 - strength
    lighting[:, 1] = -0.45 * strength
    lighting[:, 2] = -0.95 * strength
    lighting[:, 3] = -0.40 * strength
    return lighting
