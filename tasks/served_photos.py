"""Part of the registered model: from whatever comes as a photo to pixels, and from pixels to crops.

numpy and Pillow do what torch and OpenCV do in training, and a test holds the two against each other.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
MATTE = 128
"""Grey level that shows through transparent pixels."""


class PhotoError(ValueError):
    """A photo that cannot be used; the message becomes the row's `error`."""


def decode_photo(value: Any, *, max_pixels: int) -> np.ndarray:
    """Upright uint8 RGB (H, W, 3) of an encoded photo (bytes, or the same in base64) or of pixels.

    Raises: PhotoError.
    """
    if isinstance(value, np.ndarray) or (isinstance(value, list) and value and isinstance(value[0], list)):
        return _check_pixels(np.asarray(value), max_pixels)
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise PhotoError("image: neither image bytes nor base64 of them") from None
    if not isinstance(value, (bytes, bytearray)) or not value:
        raise PhotoError(f"image: {type(value).__name__} without content, expected image bytes, base64 or RGB pixels")
    try:
        with Image.open(io.BytesIO(value), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise PhotoError(f"image: {image.width} x {image.height}, expected at most {max_pixels} pixels")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image) or image)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(f"image: not an image, expected {', '.join(FORMATS)}") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises errors of many kinds for broken files
        raise PhotoError(f"image: cannot be decoded ({type(error).__name__}: {str(error)[:120]})") from None


def _check_pixels(pixels: np.ndarray, max_pixels: int) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise PhotoError(f"image: array of shape {pixels.shape}, expected (H, W, 3)")
    whole = np.issubdtype(pixels.dtype, np.integer)
    if not whole or pixels.min() < 0 or pixels.max() > 255:
        raise PhotoError(f"image: array of {pixels.dtype}, expected uint8 RGB")
    if pixels.shape[0] * pixels.shape[1] > max_pixels:
        raise PhotoError(f"image: {pixels.shape[1]} x {pixels.shape[0]}, expected at most {max_pixels} pixels")
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def _to_rgb(image: Any) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, dtype=np.float64)
        limits = (65535.0, 2.0**31 - 1.0) if image.mode.startswith("I") else (1.0, 255.0, 65535.0)
        white = next((limit for limit in limits if grey.max() <= limit), float(grey.max()))
        return np.repeat(np.rint(grey.clip(0.0) * (255.0 / white)).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = np.asarray(image.convert("RGBA"), dtype=np.float32)
        alpha = layered[..., 3:] / 255.0
        blended: np.ndarray = np.rint(layered[..., :3] * alpha + MATTE * (1.0 - alpha)).astype(np.uint8)
        return blended
    return np.array(image.convert("RGB"), dtype=np.uint8)


def crop_affine(landmarks: np.ndarray, *, size_px: int, scale: float) -> np.ndarray:
    """Crop pixels to photo pixels (3, 3) for the upright square around the landmarks' box.

    Raises: PhotoError if the points have no extent.
    """
    low, high = landmarks.min(0), landmarks.max(0)
    side = float((high - low).max()) * scale
    if not side > 0.0:
        raise PhotoError("landmarks: all points coincide, expected a face with extent")
    affine = np.eye(3)
    affine[0, 0] = affine[1, 1] = side / size_px
    affine[:2, 2] = (low + high) / 2.0 - side / 2.0
    return affine


def cut_crop(photo: np.ndarray, affine: np.ndarray, size_px: int) -> np.ndarray:
    """Pixels (S, S, 3) of an upright crop, black outside; averaged where it is smaller than its piece of the photo."""
    rows, row_range = _axis_weights(affine[1, 1], affine[1, 2], size_px, photo.shape[0])
    columns, column_range = _axis_weights(affine[0, 0], affine[0, 2], size_px, photo.shape[1])
    piece = photo[row_range, column_range].astype(np.float32)
    crop = np.einsum("sh,hwc->swc", rows, piece, optimize=True)
    crop = np.einsum("tw,swc->stc", columns, crop, optimize=True)
    pixels: np.ndarray = np.rint(crop).clip(0, 255).astype(np.uint8)
    return pixels


def cut_frame(photo: np.ndarray, affine: np.ndarray, size_px: int) -> np.ndarray:
    """Pixels (S, S, 3) of a tilted frame, bilinear, black outside; reduced by whole blocks first where it shrinks."""
    linear, shift = affine[:2, :2], affine[:2, 2]
    factor = int(np.sqrt(abs(np.linalg.det(linear))))
    if factor >= 2:
        height, width = photo.shape[0] // factor, photo.shape[1] // factor
        if not (height and width):
            return np.zeros((size_px, size_px, 3), dtype=np.uint8)
        blocks = photo[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
        photo = np.rint(blocks.mean((1, 3), dtype=np.float32)).astype(np.uint8)
        linear, shift = linear / factor, shift / factor
    centres = np.arange(size_px) + 0.5
    grid = np.stack(np.meshgrid(centres, centres), 2)
    places = grid @ linear.T + shift - 0.5
    first = np.floor(places).astype(np.int64)
    share = places - first
    crop = np.zeros((size_px, size_px, 3))
    for right in (0, 1):
        for down in (0, 1):
            x, y = first[..., 0] + right, first[..., 1] + down
            weight = np.abs(1 - right - share[..., 0]) * np.abs(1 - down - share[..., 1])
            inside = (x >= 0) & (x < photo.shape[1]) & (y >= 0) & (y < photo.shape[0])
            crop[inside] += weight[inside, None] * photo[y[inside], x[inside]]
    return np.rint(crop).astype(np.uint8)


def _axis_weights(step: float, start: float, size_px: int, length: int) -> tuple[np.ndarray, slice]:
    """Bilinear samples on a grid fine enough to skip no pixel, averaged per crop pixel: one matrix per axis."""
    finer = max(1, int(np.ceil(step)))
    places = start + step / finer * (np.arange(size_px * finer) + 0.5) - 0.5
    first = np.floor(places).astype(np.int64)
    share = places - first
    low = int(np.clip(first.min(), 0, length - 1))
    high = int(np.clip(first.max() + 2, low + 1, length))
    weights = np.zeros((size_px, high - low), dtype=np.float32)
    target = np.arange(size_px * finer) // finer
    for offset, weight in ((0, 1.0 - share), (1, share)):
        index = first + offset
        inside = (index >= low) & (index < high)
        np.add.at(weights, (target[inside], index[inside] - low), weight[inside] / finer)
    return weights, slice(low, high)
