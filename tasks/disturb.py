"""What makes photos hard: things in front of the face, and the faults of cameras."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tasks.images import Pixels, encode_jpeg
from tasks.scenery import HeadOutline, blend, draw_line, fill_ellipse, fill_polygon, random_colour

Floats = NDArray[np.floating]

RECTANGLE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def draw_occluder(image: Pixels, head: HeadOutline, stream: Generator) -> None:
    """Draw a hand, a scarf or mask, strands of hair, or a box over a part of the face."""
    mask = np.zeros(image.shape[:2], np.uint8)
    kind = stream.integers(4)
    colour: Floats
    if kind == 0:
        _hand(mask, head, stream)
        colour = head.skin * stream.uniform(0.7, 1.2) * (1.0 + stream.normal(0.0, 0.05, 3))
    elif kind == 1:
        _scarf(mask, head, stream)
        colour = random_colour(stream)
    elif kind == 2:
        _strands(mask, head, stream)
        colour = random_colour(stream) * 0.6
    else:
        middle = head.landmarks[stream.integers(68)] + stream.normal(0.0, 0.15 * head.width_px, 2)
        across = stream.uniform(0.1, 0.3, 2) * head.width_px
        corners = _turn(RECTANGLE * across, stream.uniform(0.0, np.pi))
        fill_polygon(mask, middle + corners, 255)
        colour = random_colour(stream)
    mask = cv2.GaussianBlur(mask, (0, 0), max(0.5, 0.008 * head.width_px)).astype(np.uint8)
    ramp = np.linspace(stream.uniform(0.6, 1.0), stream.uniform(0.8, 1.2), image.shape[0], dtype=np.float32)
    blend(image, np.broadcast_to(ramp[:, None, None] * colour.astype(np.float32), image.shape), mask)


def draw_glasses(image: Pixels, head: HeadOutline, stream: Generator, *, yaw: float) -> None:
    """Draw a pair of glasses through the eyes, clear or dark."""
    points = head.landmarks
    mask = np.zeros(image.shape[:2], np.uint8)
    line_px = max(1, round(stream.uniform(0.01, 0.035) * head.width_px))
    dark, oval = stream.random() < 0.25, stream.random() < 0.6
    for eye, temple, turned_away in (
        (points[36:42], points[0], yaw > 0.35),
        (points[42:48], points[16], yaw < -0.35),
    ):
        centre, along = (eye[0] + eye[3]) / 2.0, eye[3] - eye[0]
        half = max(0.85 * float(np.linalg.norm(along)), 0.05 * head.width_px)
        angle = float(np.arctan2(along[1], along[0]))
        if oval:
            fill_ellipse(mask, centre, (half, 0.12 * head.width_px), angle, 255, thickness=-1 if dark else line_px)
        else:
            corners = centre + _turn(RECTANGLE * [half, 0.105 * head.width_px], angle)
            if dark:
                fill_polygon(mask, corners, 255)
            else:
                draw_line(mask, np.concatenate([corners, corners[:1]]), 255, line_px)
        if not turned_away:
            outwards = np.sign(temple[0] - centre[0])
            draw_line(mask, np.stack([centre + np.array([outwards * half, 0.0]), temple]), 255, line_px)
    draw_line(mask, points[[39, 27, 42]], 255, line_px)
    blend(image, random_colour(stream) * 0.45, mask)


def degrade(image: Pixels, stream: Generator) -> bytes:
    """Put a photo through a camera: focus, motion, resolution, colour cast, noise, and JPEG; the file's content."""
    if stream.random() < 0.15:
        size = image.shape[1::-1]
        factor = stream.uniform(0.4, 0.9)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    if stream.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), stream.uniform(0.3, 1.1) * max(image.shape[:2]) / 160.0).astype(
            np.uint8
        )
    if stream.random() < 0.1:
        image = cv2.filter2D(image, -1, motion_kernel(stream, max(image.shape[:2]))).astype(np.uint8)
    gain = np.exp(stream.normal(0.0, 0.03, 3) + stream.normal(0.0, 0.1)).astype(np.float32)
    values = image * gain
    if stream.random() < 0.8:
        sigma = np.float32(stream.uniform(0.5, 7.0))
        values += sigma * stream.standard_normal(image.shape, dtype=np.float32)
    if stream.random() < 0.06:
        values = np.repeat(values.mean(2, keepdims=True), 3, axis=2)
    quality = int(stream.integers(55, 97))
    return encode_jpeg(values.clip(0.0, 255.0).astype(np.uint8), quality=quality)


def motion_kernel(stream: Generator, size_px: int) -> Floats:
    """A short straight smear in a random direction, as a kernel for photos of that size."""
    length = max(3, round(stream.uniform(0.01, 0.035) * size_px) | 1)
    kernel = np.zeros((length, length), np.uint8)
    middle, angle = length / 2.0, stream.uniform(0.0, np.pi)
    reach = middle * np.array([np.cos(angle), np.sin(angle)])
    draw_line(kernel, np.array([middle - reach, middle + reach]), 255, 1)
    kernel[length // 2, length // 2] = 255
    return np.asarray(kernel, np.float32) / np.float32(kernel.sum())


def _hand(mask: Pixels, head: HeadOutline, stream: Generator) -> None:
    width = head.width_px
    palm = head.landmarks[stream.choice([2, 4, 6, 8, 10, 12, 14])] + stream.normal(0.0, 0.1, 2) * width
    inward = np.arctan2(*(head.landmarks[33] - palm)[::-1]) + stream.normal(0.0, 0.4)
    fill_ellipse(mask, palm, (0.24 * width, 0.2 * width), float(inward), 255)
    for finger in np.linspace(-0.45, 0.45, int(stream.integers(2, 5))):
        angle = inward + finger
        towards = np.array([np.cos(angle), np.sin(angle)])
        reach = stream.uniform(0.25, 0.4) * width
        fill_ellipse(mask, palm + (0.12 * width + reach / 2) * towards, (0.7 * reach, 0.05 * width), float(angle), 255)


def _scarf(mask: Pixels, head: HeadOutline, stream: Generator) -> None:
    points = head.landmarks
    share = stream.uniform(0.1, 0.9)
    # From the lips' level up to the nose: a scarf or a mask.
    left, right = points[3] * share + points[1] * (1 - share), points[13] * share + points[15] * (1 - share)
    bridge = points[57] * share + points[29] * (1 - share)
    below = 1.15 * (points[4:13] - points[30]) + points[30]
    fill_polygon(mask, np.concatenate([[left, bridge, right], below[::-1]]), 255)


def _strands(mask: Pixels, head: HeadOutline, stream: Generator) -> None:
    width = head.width_px
    top = head.landmarks[17:27].mean(0) - width * np.array([0.0, 0.45])
    for _ in range(stream.integers(4, 16)):
        start = top + width * np.array([stream.normal(0.0, 0.25), 0.0])
        end = start + width * np.array([stream.normal(0.0, 0.2), stream.uniform(0.3, 1.1)])
        bend = (start + end) / 2.0 + stream.normal(0.0, 0.08, 2) * width
        draw_line(mask, np.array([start, bend, end]), 255, max(1, round(stream.uniform(0.006, 0.03) * width)))


def _turn(points: Floats, angle: float) -> Floats:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cosine, sine], [-sine, cosine]]))
