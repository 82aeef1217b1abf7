"""The faults of bad cameras and old files, for strong randomisation.

Convention: pixels are uint8 RGB (H, W, 3).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tasks.disturb import motion_kernel
from tasks.images import Pixels, decode_stored, encode_jpeg

Floats = NDArray[np.floating]

LEAST_FACE_PX = 22.0
"""Resolution is not lowered so far that a face is smaller than this."""

SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)

METHODS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


def spoil(image: Pixels, stream: Generator, *, size_px: int, face_px: float) -> bytes:
    """Reduce a drawing to `size_px` and put it through a random camera and its file; the file's content.

    `face_px` is the face's size in the result: it bounds what focus, motion and resolution may take away.
    """
    values = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA).astype(np.float32)
    values = _focus(values, stream, face_px)
    values = _light(values, stream)
    values = _colour(values, stream)
    values = _sensor(values, stream)
    quality = int(stream.integers(8, 40) if stream.random() < 0.25 else stream.integers(40, 98))
    content = encode_jpeg(values.clip(0.0, 255.0).round().astype(np.uint8), quality=quality)
    if stream.random() < 0.2:
        # Sent on and saved again, at another size in between.
        between = cv2.resize(decode_stored(content), None, fx=0.9, fy=0.9, interpolation=cv2.INTER_LINEAR)
        again = cv2.resize(between, (size_px, size_px), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        content = encode_jpeg(again, quality=int(stream.integers(25, 95)))
    return content


def _focus(values: Floats, stream: Generator, face_px: float) -> Floats:
    size = values.shape[1::-1]
    if stream.random() < 0.35:
        sigma = stream.uniform(0.3, 0.022 * face_px + 0.4)
        values = cv2.GaussianBlur(values, (0, 0), sigma).astype(np.float32)
    if stream.random() < 0.12:
        kernel = motion_kernel(stream, max(24, round(stream.uniform(0.5, 2.0) * face_px)))
        values = cv2.filter2D(values, -1, kernel).astype(np.float32)
    if stream.random() < 0.3:
        least = min(1.0, LEAST_FACE_PX / max(face_px, 1.0))
        factor = stream.uniform(max(least, 0.15), 1.0)
        small = (max(8, round(size[0] * factor)), max(8, round(size[1] * factor)))
        reduced = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
        values = cv2.resize(reduced, size, interpolation=METHODS[stream.choice(3, p=[0.1, 0.5, 0.4])]).astype(
            np.float32
        )
    if stream.random() < 0.25:
        soft = cv2.GaussianBlur(values, (0, 0), stream.uniform(0.7, 2.0))
        values = values + np.float32(stream.uniform(0.3, 1.5)) * (values - soft)
    return values


def _light(values: Floats, stream: Generator) -> Floats:
    height, width = values.shape[:2]
    values = (values / 255.0).clip(0.0, 1.0)
    values = values ** np.float32(np.exp(stream.normal(0.0, 0.2)))
    contrast = np.float32(np.exp(stream.normal(0.0, 0.15)))
    middle = np.float32(stream.uniform(0.3, 0.6))
    values = middle + contrast * (values - middle) + np.float32(stream.normal(0.0, 0.03))
    if stream.random() < 0.2:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        centre = stream.uniform(0.3, 0.7, 2)
        far = ((x / width - centre[0]) ** 2 + (y / height - centre[1]) ** 2) * 2.0
        values = values * (1.0 - np.float32(stream.uniform(0.1, 0.45)) * far)[..., None].clip(0.05, 1.0)
    if stream.random() < 0.06:
        glare = np.float32(stream.uniform(0.1, 0.4))
        values = values * (1.0 - glare) + glare * stream.uniform(0.5, 1.0, 3).astype(np.float32)
    return np.asarray(values * 255.0)


def _colour(values: Floats, stream: Generator) -> Floats:
    gain = np.exp(stream.normal(0.0, 0.035, 3) + stream.normal(0.0, 0.06) * np.array([1.0, 0.0, -1.0]))
    values = values * gain.astype(np.float32)
    grey = (values @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    chance = stream.random()
    if chance < 0.1:
        return np.repeat(grey, 3, axis=2)
    if chance < 0.14:
        return np.asarray(values @ SEPIA.T * np.float32(stream.uniform(0.7, 1.0)))
    return np.asarray(grey + np.float32(stream.uniform(0.5, 1.3)) * (values - grey))


def _sensor(values: Floats, stream: Generator) -> Floats:
    if stream.random() < 0.75:
        sigma = np.float32(stream.uniform(0.5, 5.0) if stream.random() < 0.75 else stream.uniform(5.0, 16.0))
        noise = stream.standard_normal(values.shape, dtype=np.float32)
        if stream.random() < 0.5:
            noise = cv2.GaussianBlur(noise, (0, 0), stream.uniform(0.5, 1.2))
            noise /= max(float(noise.std()), 1e-6)
        # Colours scatter less than brightness, as after any camera's own smoothing.
        shared = noise[..., :1]
        values = values + sigma * (shared + np.float32(stream.uniform(0.1, 0.9)) * (noise - shared))
    return values
