"""What stands around a rendered face: background, torso, neck and hair, drawn in pixels.

Convention: pixels are uint8 RGB (H, W, 3); coordinates are pixels with centres at +0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tasks.images import Pixels
from tasks.subjects import Subject

Floats = NDArray[np.floating]

SUBPIXEL_BITS = 4
"""OpenCV draws at fractions of a pixel when coordinates are given as fixed-point numbers."""


@dataclass(frozen=True)
class HeadOutline:
    """Where parts of the head that the face model may lack appear in the photo."""

    hair: Floats
    """(N, 3, 2) triangles of the hairy part of the skull."""
    hair_facing: NDArray[np.bool_]
    """(N,) whether the triangle is on the side that the camera sees."""
    centre: Floats
    """(2,) of the skull."""
    neck: Floats
    """(2,) below the skull."""
    landmarks: Floats
    """(68, 2)"""
    width_px: float
    """Width of the face seen from the front."""
    roll: float
    """Tilt of the head in radians, clockwise."""
    skin: Floats
    """(3,) mean colour of the lit face, 0 to 255."""


def background(stream: Generator, size_px: int) -> Pixels:
    """A random background: plain, gradient, clouds, blobs, stripes, or a blurred room of boxes."""
    kind = stream.integers(6)
    first, second = random_colour(stream), random_colour(stream)
    image: Floats
    if kind == 0:
        image = np.broadcast_to(first, (size_px, size_px, 3)).astype(np.float32)
    elif kind in (1, 4):
        angle = stream.uniform(0.0, 2.0 * np.pi)
        y, x = np.mgrid[0:size_px, 0:size_px].astype(np.float32) / size_px - 0.5
        ramp = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) + 0.5
        if kind == 4:
            ramp = 0.5 + 0.5 * np.sin(ramp * np.float32(stream.uniform(6.0, 60.0)))
        image = first + ramp.clip(0.0, 1.0)[..., None] * (second - first)
    elif kind == 2:
        image = first + _clouds(stream, size_px, 1)[..., None] * (second - first)
    else:
        image = _shapes(stream, size_px, first, boxes=kind == 5).astype(np.float32)
    contrast = stream.uniform(10.0, 70.0)
    image = image + contrast * (_clouds(stream, size_px, 3) - 0.5)
    return image.clip(0.0, 255.0).astype(np.uint8)


def draw_behind(image: Pixels, head: HeadOutline, subject: Subject, stream: Generator) -> None:
    """Draw shoulders, neck and the far part of the hair into a background; the face is laid over it later."""
    width = head.width_px
    neck_bottom = head.neck + width * np.array([stream.normal(0.0, 0.1), 0.75])
    clothes = random_colour(stream)
    shoulders = neck_bottom + width * np.array([0.0, stream.uniform(0.75, 1.0)])
    fill_ellipse(image, shoulders, (stream.uniform(1.3, 1.9) * width, stream.uniform(0.7, 1.0) * width), 0.0, clothes)
    half = stream.uniform(0.3, 0.42) * width
    side = np.array([half, 0.0])
    shade = head.skin * stream.uniform(0.6, 0.95)
    fill_polygon(image, [head.neck - side, head.neck + side, neck_bottom + 1.2 * side, neck_bottom - 1.2 * side], shade)
    collar = stream.random()
    if collar < 0.4:
        fill_ellipse(
            image, neck_bottom + width * np.array([0.0, 0.1]), (1.5 * half, 0.5 * half), 0.0, random_colour(stream)
        )
    fill_ellipse(image, head.centre, (0.5 * width, 0.62 * width), head.roll, shade)
    if subject.hair_volume:
        tone = _hair_tone(subject, stream)
        if subject.hair_length > 0.2:
            down = head.centre + width * np.array([0.0, 0.6 * subject.hair_length])
            axes = (0.62 * width * subject.hair_volume, (0.5 + 0.6 * subject.hair_length) * width)
            fill_ellipse(image, down, axes, 0.5 * head.roll, tone)
        fill_polygons(image, head.hair, tone)


def draw_openings(image: Pixels, head: HeadOutline, stream: Generator, *, yaw: float) -> None:
    """Draw eyes and the inside of the mouth, seen through the openings of models that have neither."""
    for corners, turned_away in ((head.landmarks[36:42], yaw > 0.6), (head.landmarks[42:48], yaw < -0.6)):
        if turned_away:
            continue
        centre, span = corners.mean(0), float(np.linalg.norm(corners[3] - corners[0]))
        white = stream.uniform(0.55, 1.0) * np.array([225.0, 220.0, 215.0])
        # Slightly larger than the outline, so that no background shows in the corners.
        fill_polygon(image, centre + 1.25 * (corners - centre), white)
        fill_ellipse(image, centre, (0.22 * span, 0.22 * span), 0.0, stream.uniform(20.0, 110.0, 3))
        fill_ellipse(image, centre, (0.1 * span, 0.1 * span), 0.0, np.array([12.0, 10.0, 10.0]))
    lips = head.landmarks[60:68]
    fill_polygon(image, lips.mean(0) + 1.3 * (lips - lips.mean(0)), np.array([58.0, 22.0, 22.0]))


def draw_hair(image: Pixels, head: HeadOutline, subject: Subject, stream: Generator) -> None:
    """Draw the near part of the hair over the face, down to the hairline."""
    visible = head.hair[head.hair_facing]
    if not subject.hair_volume or not len(visible):
        return
    mask = np.zeros(image.shape[:2], np.uint8)
    fill_polygons(mask, visible, 255)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.015 * head.width_px)
    strands = cv2.resize(
        stream.random((max(2, image.shape[0] // 16), image.shape[1] // 2), dtype=np.float32),
        image.shape[1::-1],
        interpolation=cv2.INTER_LINEAR,
    )
    texture = _hair_tone(subject, stream) * (0.65 + 0.7 * strands[..., None])
    blend(image, texture, mask)


def smooth_edge(image: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """Soften a rendered face's silhouette in place: the rasteriser's is hard, a lens is not."""
    weight = np.asarray(cv2.GaussianBlur(mask.astype(np.uint8) * 255, (3, 3), 0))
    edge = np.asarray((weight > 0) & (weight < 255))
    image[edge] = cv2.GaussianBlur(image, (3, 3), 0)[edge]
    return image


def random_colour(stream: Generator) -> Floats:
    """(3,) sRGB from 0 to 255, often dull, seldom vivid."""
    grey = stream.uniform(10.0, 245.0)
    return (grey + stream.normal(0.0, stream.choice([8.0, 25.0, 60.0]), 3)).clip(0.0, 255.0)


def blend(image: Pixels, colour: Floats, mask: Pixels) -> None:
    """Lay a colour, or an image of colours, over an image where the mask (H, W) is not 0."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    alpha = mask[window][..., None].astype(np.float32) / 255.0
    layer = colour if colour.ndim == 1 else colour[window]
    below = image[window].astype(np.float32)
    image[window] = (below + alpha * (layer - below)).clip(0.0, 255.0).astype(np.uint8)


def fill_polygon(image: Pixels, points: Floats | list[Floats], colour: Floats | int) -> None:
    """Fill a polygon with smooth edges."""
    cv2.fillPoly(image, [_fixed_point(points)], _scalar(colour), cv2.LINE_AA, SUBPIXEL_BITS)


def fill_polygons(image: Pixels, polygons: Floats, colour: Floats | int) -> None:
    """Fill polygons (N, K, 2), which may overlap."""
    scalar = _scalar(colour)
    for polygon in _fixed_point(polygons):
        cv2.fillConvexPoly(image, polygon, scalar, cv2.LINE_8, SUBPIXEL_BITS)


def fill_ellipse(
    image: Pixels, centre: Floats, axes: tuple[float, float], angle: float, colour: Floats | int, *, thickness: int = -1
) -> None:
    """Fill an ellipse with smooth edges, or draw its outline; `angle` in radians, clockwise."""
    place = _fixed_point(centre)
    lengths = [max(1, round(axis * 2**SUBPIXEL_BITS)) for axis in axes]
    cv2.ellipse(
        image,
        (int(place[0]), int(place[1])),
        (lengths[0], lengths[1]),
        float(np.degrees(angle)),
        0,
        360,
        _scalar(colour),
        thickness,
        cv2.LINE_AA,
        SUBPIXEL_BITS,
    )


def draw_line(image: Pixels, points: Floats, colour: Floats | int, thickness_px: int) -> None:
    """Draw an open line through points."""
    cv2.polylines(image, [_fixed_point(points)], False, _scalar(colour), thickness_px, cv2.LINE_AA, SUBPIXEL_BITS)


def _fixed_point(points: Floats | list[Floats]) -> NDArray[np.int32]:
    # OpenCV counts pixel centres as whole numbers. Far points would overflow its arithmetic.
    values = (np.asarray(points, np.float64) - 0.5).clip(-4000.0, 8000.0)
    return np.asarray(np.rint(values * 2**SUBPIXEL_BITS), np.int32)


def _scalar(colour: Floats | int) -> tuple[float, ...] | int:
    return colour if isinstance(colour, int) else tuple(float(channel) for channel in np.clip(colour, 0.0, 255.0))


def _hair_tone(subject: Subject, stream: Generator) -> Floats:
    return subject.hair_colour * stream.uniform(0.6, 1.15)


def _clouds(stream: Generator, size_px: int, channels: int) -> Floats:
    """Smooth noise in [0, 1] of two scales; (S, S) or (S, S, C)."""
    coarse = int(stream.integers(2, 7))
    shape = (channels,) if channels > 1 else ()
    large = _enlarge(stream.random((coarse, coarse, *shape), dtype=np.float32), size_px)
    fine = _enlarge(stream.random((4 * coarse, 4 * coarse, *shape), dtype=np.float32), size_px)
    return (0.75 * large + 0.25 * fine).clip(0.0, 1.0)


def _enlarge(image: Floats, size_px: int) -> Floats:
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_CUBIC))


def _shapes(stream: Generator, size_px: int, colour: Floats, *, boxes: bool) -> Pixels:
    """Overlapping boxes or ellipses, more or less out of focus."""
    image = np.empty((size_px, size_px, 3), np.uint8)
    image[:] = colour.astype(np.uint8)
    for _ in range(stream.integers(4, 14)):
        centre = stream.uniform(0.0, size_px, 2)
        axes = stream.uniform(0.05, 0.35, 2) * size_px
        if boxes:
            corners = centre + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * axes
            fill_polygon(image, corners, random_colour(stream))
        else:
            fill_ellipse(image, centre, (axes[0], axes[1]), stream.uniform(0.0, np.pi), random_colour(stream))
    return np.asarray(cv2.GaussianBlur(image, (0, 0), stream.uniform(0.004, 0.06) * size_px), np.uint8)
