"""Hair and clothes for strong randomisation, drawn in pixels with some texture.

Convention: pixels are uint8 RGB (H, W, 3); coordinates are pixels with centres at +0.5.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tasks.images import Pixels
from tasks.scenery import HeadOutline, blend, fill_ellipse, fill_polygon, fill_polygons, random_colour
from tasks.subjects import Subject

Floats = NDArray[np.floating]

SHOULDERS = np.array(
    [[-0.36, -0.12], [-0.6, 0.0], [-1.2, 0.2], [-1.55, 0.5], [-1.75, 1.3], [-1.8, 5.0]]
    + [[1.8, 5.0], [1.75, 1.3], [1.55, 0.5], [1.2, 0.2], [0.6, 0.0], [0.36, -0.12]]
)
"""Outline of a torso around the pit of the neck, in widths of the face."""


def draw_back(image: Pixels, head: HeadOutline, subject: Subject, stream: Generator, *, has_neck: bool) -> None:
    """Draw the hair that lies behind the face, and the neck where the face model has none."""
    width = head.width_px
    if subject.hair_volume:
        mask = np.zeros(image.shape[:2], np.uint8)
        fill_polygons(mask, head.hair, 255)
        if subject.hair_length > 0.2:
            down = head.centre + width * np.array([0.0, 0.6 * subject.hair_length])
            axes = (0.62 * width * subject.hair_volume, (0.5 + 0.6 * subject.hair_length) * width)
            fill_ellipse(mask, down, axes, 0.5 * head.roll, 255)
        _lay_hair(image, mask, head, subject, stream, darkness=0.7)
    if has_neck:
        return
    shade = head.skin * stream.uniform(0.65, 0.95)
    bottom = head.neck + width * np.array([0.0, 0.9])
    side = np.array([stream.uniform(0.3, 0.4) * width, 0.0])
    mask = np.zeros(image.shape[:2], np.uint8)
    fill_polygon(mask, [head.neck - side, head.neck + side, bottom + 1.15 * side, bottom - 1.15 * side], 255)
    skull = np.zeros(image.shape[:2], np.uint8)
    fill_ellipse(skull, head.centre, (0.5 * width, 0.62 * width), head.roll, 255)
    blend(image, head.skin * stream.uniform(0.7, 1.0), skull)
    columns = (np.arange(image.shape[1]) - head.neck[0]) / max(float(side[0]), 1.0)
    round_it = 1.0 - 0.35 * columns.clip(-1.2, 1.2) ** 2
    blend(image, np.broadcast_to(shade * round_it[None, :, None], image.shape), mask)


def draw_front_hair(image: Pixels, head: HeadOutline, subject: Subject, stream: Generator) -> None:
    """Draw the hair over the face, down to a ragged hairline."""
    visible = head.hair[head.hair_facing]
    if not subject.hair_volume or not len(visible):
        return
    mask = np.zeros(image.shape[:2], np.uint8)
    fill_polygons(mask, visible, 255)
    _lay_hair(image, mask, head, subject, stream, darkness=1.0)


def draw_clothes(
    image: Pixels, head: HeadOutline, stream: Generator, *, face: NDArray[np.bool_], neck: NDArray[np.bool_]
) -> None:
    """Draw a torso behind the face, in front of its neck; `face` (H, W) is drawn already, `neck` a part of it."""
    hidden = face & ~neck
    width = head.width_px
    pit = head.neck + width * np.array([stream.normal(0.0, 0.08), stream.uniform(0.55, 0.78)])
    turned = stream.uniform(0.75, 1.05)

    def place(points: object) -> Floats:
        return pit + width * np.asarray(points, np.float64) * [turned, 1.0]

    layer = image.astype(np.uint8).copy()
    mask = np.zeros(image.shape[:2], np.uint8)
    fill_polygon(mask, place(SHOULDERS), 255)
    colour = random_colour(stream) * stream.uniform(0.3, 1.0)
    layer[:] = colour.clip(0.0, 255.0).astype(np.uint8)
    kind = stream.random()
    if kind < 0.45:
        _suit(layer, place, stream)
    else:
        _pattern(layer, stream, width)
    fabric = 1.0 + 0.05 * stream.standard_normal(image.shape[:2], dtype=np.float32)
    folds = cv2.resize(stream.random((6, 6), dtype=np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    light = fabric * (0.65 + 0.5 * folds)
    cloth = (layer * light[..., None]).clip(0.0, 255.0)
    if kind >= 0.45:
        # Skin shows down to the neckline.
        opening = np.zeros(image.shape[:2], np.uint8)
        depth = stream.uniform(0.0, 0.5)
        fill_ellipse(opening, place([0.0, -0.05]), (0.38 * width, (0.1 + depth) * width), 0.0, 255)
        skin_like = np.zeros(image.shape[:2], np.uint8)
        fill_polygon(skin_like, place(SHOULDERS), 255)
        blend(image, head.skin * stream.uniform(0.6, 0.95), np.where(face, 0, opening & skin_like).astype(np.uint8))
        mask = np.where(opening > 0, mask * (1.0 - opening / 255.0), mask).astype(np.uint8)
    soft = cv2.GaussianBlur(mask, (3, 3), 0)
    blend(image, cloth, np.where(hidden, 0, soft).astype(np.uint8))


def _suit(layer: Pixels, place: Callable[[object], Floats], stream: Generator) -> None:
    """Shirt, collar, and perhaps a tie, between lapels."""
    if stream.random() < 0.7:
        layer[:] = (np.full(3, stream.uniform(15.0, 60.0)) + stream.normal(0.0, 6.0, 3)).clip(0.0, 255.0)
    half, depth = stream.uniform(0.28, 0.42), stream.uniform(0.8, 1.5)
    shirt = np.array([1.0, 1.0, 1.0]) * stream.uniform(150.0, 245.0) + stream.normal(0.0, 10.0, 3)
    fill_polygon(layer, place([[-half, -0.3], [half, -0.3], [0.0, depth]]), shirt)
    if stream.random() < 0.7:
        tie = random_colour(stream)
        fill_polygon(layer, place([[-0.08, -0.02], [0.08, -0.02], [0.06, 0.12], [-0.06, 0.12]]), 0.8 * tie)
        fill_polygon(layer, place([[-0.06, 0.12], [0.06, 0.12], [0.11, 1.6], [-0.11, 1.6]]), tie)
        if stream.random() < 0.5:
            for row in np.arange(0.2, 1.5, stream.uniform(0.08, 0.2)):
                stripe = [[-0.1, row], [0.1, row + 0.08], [0.1, row + 0.11], [-0.1, row + 0.03]]
                fill_polygon(layer, place(stripe), random_colour(stream))
    dark = layer[-1, 0].astype(np.float64) * stream.uniform(0.6, 1.3)
    for side in (-1.0, 1.0):
        collar = np.array([[0.02, 0.05], [0.38, -0.2], [0.3, 0.12], [0.14, 0.3]]) * [side, 1.0]
        fill_polygon(layer, place(collar), shirt * stream.uniform(0.85, 1.0))
        lapel = np.array([[half, -0.2], [half + 0.16, 0.1], [half + 0.12, 0.45], [0.03, depth]]) * [side, 1.0]
        fill_polygon(layer, place(lapel), dark)


def _pattern(layer: Pixels, stream: Generator, width: float) -> None:
    """Plain cloth, stripes, checks or dots."""
    kind, period = stream.integers(5), max(3.0, stream.uniform(0.06, 0.3) * width)
    rows, columns = np.arange(layer.shape[0])[:, None] / period, np.arange(layer.shape[1])[None, :] / period
    other = random_colour(stream)
    if kind == 0:
        pattern = (rows % 1.0 < stream.uniform(0.2, 0.6)) & (columns > -1.0)
    elif kind == 1:
        pattern = ((rows % 1.0 < 0.4) ^ (columns % 1.0 < 0.4)) & (rows > -1.0)
    elif kind == 2:
        pattern = (rows % 1.0 - 0.5) ** 2 + (columns % 1.0 - 0.5) ** 2 < 0.08
    else:
        return
    layer[pattern] = other.clip(0.0, 255.0).astype(np.uint8)


def _lay_hair(
    image: Pixels, mask: Pixels, head: HeadOutline, subject: Subject, stream: Generator, *, darkness: float
) -> None:
    """Fill a mask with strands that run away from the crown; its border becomes ragged."""
    height, width = mask.shape
    size = head.width_px
    grid = max(4, int(width / max(0.04 * size, 2.0)))
    ragged = stream.normal(0.0, 1.0, (grid, grid, 2)).astype(np.float32)
    bend = cv2.resize(ragged, (width, height), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(stream.standard_normal((height, width, 2), dtype=np.float32), (0, 0), 1.2)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    shift = bend * np.float32(stream.uniform(0.005, 0.03) * size) + fine * np.float32(stream.uniform(0.0, 0.015) * size)
    mask = cv2.remap(mask, x + shift[..., 0], y + shift[..., 1], cv2.INTER_LINEAR)
    mask = cv2.GaussianBlur(mask, (0, 0), max(0.6, 0.008 * size)).astype(np.uint8)
    up = np.array([np.sin(head.roll), -np.cos(head.roll)])
    crown = head.centre + 0.45 * size * up
    right, down = x - np.float32(crown[0]), y - np.float32(crown[1])
    around = np.arctan2(right, down + np.float32(0.3 * size))
    away = np.hypot(right, down) / np.float32(size)
    wave = np.float32(stream.uniform(0.0, 0.25)) * np.sin(away * np.float32(stream.uniform(4.0, 14.0)))
    strands = stream.standard_normal((64, 2048), dtype=np.float32)
    strands = cv2.GaussianBlur(strands, (0, 0), sigmaX=1.5, sigmaY=4.0)
    strands = strands / strands.std()
    column = ((around + wave + np.float32(np.pi)) * np.float32(2048.0 / (2.0 * np.pi))).clip(0, 2047)
    noise = cv2.remap(strands, column, (away * 24.0).clip(0, 63), cv2.INTER_LINEAR)
    # Light falls on the top, and as a band around the head.
    band = np.exp(-(((away - np.float32(stream.uniform(0.1, 0.5))) / np.float32(0.18)) ** 2))
    tone = 0.75 + 0.22 * noise + np.float32(stream.uniform(0.0, 0.7)) * band * (1.0 + 0.3 * noise)
    tone = tone * (1.1 - np.float32(0.25) * away.clip(0.0, 2.0)) * np.float32(darkness * stream.uniform(0.6, 1.1))
    colour = subject.hair_colour * np.exp(stream.normal(0.0, 0.06, 3))
    blend(image, (colour * tone.clip(0.05, 2.5)[..., None]).clip(0.0, 255.0), mask)
