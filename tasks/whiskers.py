"""Beards and moustaches that have grown away from the skin, for strong randomisation: they hide lips, chin and jawline.

What `paint` gives is hair as a colour of the skin; real beards change the outline of the face and hang over the mouth,
and people place the points where they suppose lip and chin below.
Convention: pixels are uint8 RGB (H, W, 3); coordinates are pixels with centres at +0.5.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tasks.images import Pixels
from tasks.scenery import HeadOutline, blend, draw_line, fill_polygon
from tasks.subjects import Subject

Floats = NDArray[np.floating]

SHARE = 0.2
"""On how many photos; more than among people, for these are the faces that are hard to read."""

STRANDS_PER_WIDTH = 900
"""How many hairs are drawn for a patch as long as the face is wide."""


def draw_whiskers(image: Pixels, head: HeadOutline, subject: Subject, stream: Generator) -> None:
    """Draw a moustache, a goatee, a full beard, or a moustache with one of these, on some faces."""
    if stream.random() > SHARE:
        return
    kind = stream.random()
    colour = subject.hair_colour * np.exp(stream.normal(0.0, 0.15))
    if stream.random() < 0.25:
        colour = np.full(3, stream.uniform(110.0, 210.0))
    if kind > 0.3:
        narrow = kind < 0.5
        _grow(image, head, stream, colour, *_chin_roots(head, stream, narrow=narrow), comb=stream.uniform(0.1, 0.9))
    if kind < 0.85:
        _grow(image, head, stream, colour, *_lip_roots(head, stream), comb=stream.uniform(0.4, 1.6))


def _lip_roots(head: HeadOutline, stream: Generator) -> tuple[Floats, Floats, float]:
    """Where the hairs of a moustache begin, where that line lies lowest, and how long they are."""
    points = head.landmarks
    nose, lip = points[31:36], points[48:55]
    above = stream.uniform(0.15, 0.35)
    place = np.linspace(0.0, 1.0, 7)[:, None]
    base = nose[0] + place * (nose[-1] - nose[0])
    reach = stream.uniform(0.75, 1.1)
    wide = base.mean(0) + reach * (lip - lip.mean(0)) + (lip.mean(0) - base.mean(0))
    top = base + above * (wide - base)
    bottom = wide + stream.uniform(-0.3, 0.1) * (wide - top)
    return top, bottom, float(stream.uniform(0.04, 0.16) * head.width_px)


def _chin_roots(head: HeadOutline, stream: Generator, *, narrow: bool) -> tuple[Floats, Floats, float]:
    """The same for a beard: the upper border of its roots, the lower one along the jaw, and the length of its hairs."""
    points = head.landmarks
    jaw = points[6:11] if narrow else points[2:15] if stream.random() < 0.6 else points[1:16]
    count = len(jaw)
    mouth = np.concatenate([points[48:49], points[59:54:-1], points[54:55]])
    # The border runs from the ears by the corners of the mouth to below the lower lip.
    place = np.linspace(0.0, 1.0, count)
    inner = np.stack([np.interp(place, np.linspace(0.0, 1.0, 7), mouth[:, axis]) for axis in range(2)], 1)
    middle = np.abs(2.0 * place - 1.0)[:, None]
    below = inner + stream.uniform(0.15, 0.4) * (jaw - inner)
    cheek = jaw + stream.uniform(0.1, 0.5) * (inner - jaw)
    share = middle ** stream.uniform(1.0, 3.0)
    length = float(np.exp(stream.uniform(np.log(0.03), np.log(0.6))) * head.width_px)
    return below + share * (cheek - below), jaw, length


def _grow(
    image: Pixels,
    head: HeadOutline,
    stream: Generator,
    colour: Floats,
    top: Floats,
    bottom: Floats,
    length: float,
    *,
    comb: float,
) -> None:
    """Lay hairs that begin between two lines and fall down, the outer ones outwards by the share `comb`."""
    width = head.width_px
    across = np.array([np.cos(head.roll), np.sin(head.roll)])
    down = np.array([-np.sin(head.roll), np.cos(head.roll)])
    # As bright as the skin is lit: a beard in the shade is dark, too.
    colour = colour * np.clip(head.skin.mean() / 150.0, 0.3, 1.3)
    layer = np.empty_like(image)
    layer[:] = colour.clip(0.0, 255.0) * stream.uniform(0.35, 0.7)
    mask = np.zeros(image.shape[:2], np.uint8)
    fill_polygon(mask, np.concatenate([top, bottom[::-1]]), 255)
    mask = (cv2.GaussianBlur(mask, (0, 0), max(0.8, 0.02 * width)) * stream.uniform(0.5, 1.0)).astype(np.uint8)
    spread = float(np.linalg.norm(top[-1] - top[0]))
    middle = (top.mean(0) + bottom.mean(0)) / 2.0
    count = int(np.clip(STRANDS_PER_WIDTH * spread / width, 60, 1200))
    place, depth = stream.uniform(0.0, len(top) - 1.0, count), stream.random(count)
    lower = place.astype(int).clip(0, len(top) - 2)
    share = (place - lower)[:, None]
    roots = [line[lower] + share * (line[lower + 1] - line[lower]) for line in (top, bottom)]
    starts = roots[0] + depth[:, None] * (roots[1] - roots[0])
    outwards = ((starts - middle) @ across) / max(spread / 2.0, 1.0)
    bend = stream.normal(0.0, 0.3, (count, 2))
    thickness = max(1, round(0.008 * width))
    tone = np.exp(0.3 * stream.standard_normal(count)) * (0.8 + 0.4 * depth)
    reach = length * stream.uniform(0.5, 1.1, count)
    for number in np.argsort(depth):
        fall = down + (comb * outwards[number] + bend[number, 0]) * across
        half = starts[number] + 0.5 * reach[number] * fall
        end = half + 0.5 * reach[number] * (down + (0.7 * comb * outwards[number] + bend[number, 1]) * across)
        strand = np.stack([starts[number], half, end])
        draw_line(layer, strand, colour * tone[number], thickness)
        draw_line(mask, strand, 255, thickness)
    mask = cv2.GaussianBlur(mask, (0, 0), max(0.5, 0.004 * width)).astype(np.uint8)
    blend(image, layer.astype(np.float32), mask)
