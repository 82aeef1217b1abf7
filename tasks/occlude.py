"""Things in front of a face for strong randomisation: hands, masks, hats, glasses, microphones, fringes.

Convention: pixels are uint8 RGB (H, W, 3); coordinates are pixels with centres at +0.5; directions of the head (across,
up) are those of its tilt in the image.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tasks.disturb import draw_occluder
from tasks.images import Pixels
from tasks.scenery import HeadOutline, blend, draw_line, fill_ellipse, fill_polygon, random_colour
from tasks.subjects import Subject

Floats = NDArray[np.floating]


def draw_wear(image: Pixels, head: HeadOutline, subject: Subject, stream: Generator, *, yaw: float) -> None:
    """Draw what people wear on their heads: glasses, hats, headscarves, fringes, as often as on photos of people."""
    if subject.hair_volume and stream.random() < 0.12:
        _fringe(image, head, subject, stream)
    if subject.wears_glasses or stream.random() < 0.1:
        draw_spectacles(image, head, stream, yaw=yaw)
    chance = stream.random()
    if chance < 0.09:
        _hat(image, head, stream)
    elif chance < 0.12 and abs(yaw) < 0.6:
        _headscarf(image, head, stream)


def draw_obstacle(image: Pixels, head: HeadOutline, stream: Generator) -> None:
    """Draw one thing that is in the way."""
    chance = stream.random()
    if chance < 0.3:
        _hand(image, head, stream)
    elif chance < 0.5:
        _mask(image, head, stream)
    elif chance < 0.65:
        _microphone(image, head, stream)
    elif chance < 0.75:
        _patch(image, head, stream)
    else:
        draw_occluder(image, head, stream)


def draw_spectacles(image: Pixels, head: HeadOutline, stream: Generator, *, yaw: float) -> None:
    """Draw glasses through the eyes: frames of many shapes, lenses clear, tinted or dark, with reflections."""
    points, width = head.landmarks, head.width_px
    frame, lenses = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8)
    line_px = max(1, round(stream.uniform(0.008, 0.045) * width))
    rimless = stream.random() < 0.15
    exponent, height = stream.uniform(2.0, 5.0), stream.uniform(0.1, 0.17) * width
    reach, drop = stream.uniform(0.8, 1.05), stream.uniform(-0.02, 0.05) * width
    down = np.array([-np.sin(head.roll), np.cos(head.roll)])
    turn = np.linspace(0.0, 2.0 * np.pi, 40)
    bow = np.stack([np.cos(turn), np.sin(turn)], 1)
    outline = np.sign(bow) * np.abs(bow) ** (2.0 / exponent)
    for eye, temple, turned_away in (
        (points[36:42], points[0], yaw > 0.35),
        (points[42:48], points[16], yaw < -0.35),
    ):
        along = eye[3] - eye[0]
        span = max(float(np.linalg.norm(along)), 0.03 * width)
        across = along / span if np.linalg.norm(along) > 1e-3 else np.array([1.0, 0.0])
        centre = (eye[0] + eye[3]) / 2.0 + drop * down
        ring = centre + outline[:, :1] * across * (reach * span) + outline[:, 1:] * down * height
        fill_polygon(lenses, ring, 255)
        if not rimless:
            draw_line(frame, ring, 255, line_px)
        if not turned_away:
            outer = centre + across * (reach * span) * np.sign(float((temple - centre) @ across))
            draw_line(frame, np.stack([outer, temple + 0.1 * (temple - centre)]), 255, line_px)
    bridge = points[27] + drop * down
    draw_line(frame, np.stack([points[39], bridge, points[42]]), 255, line_px)
    kind = stream.random()
    strength = stream.uniform(0.85, 1.0) if kind < 0.25 else stream.uniform(0.2, 0.6) if kind < 0.4 else 0.04
    tint = random_colour(stream) * (0.15 if kind < 0.25 else 0.6)
    rows = (np.arange(image.shape[0]) - points[36:48, 1].mean()) / max(height, 1.0)
    fade = (1.0 - stream.uniform(0.0, 0.3) * rows).clip(0.3, 1.0)
    blend(image, tint, (lenses * (strength * fade)[:, None]).clip(0.0, 255.0).astype(np.uint8))
    if stream.random() < 0.4:
        slope, place = stream.uniform(-1.0, 1.0), points[36:48].mean(0) + stream.normal(0.0, 0.2, 2) * width
        y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(np.float32)
        distance = (x - place[0]) + slope * (y - place[1])
        gleam = np.exp(-((distance / (stream.uniform(0.03, 0.2) * width)) ** 2)) * stream.uniform(0.1, 0.8)
        blend(image, np.array([235.0, 240.0, 245.0]), (lenses * gleam).astype(np.uint8))
    shadow = cv2.GaussianBlur(np.roll(frame, max(1, line_px), 0), (0, 0), max(0.6, 0.015 * width))
    blend(image, head.skin * 0.35, (0.35 * shadow).astype(np.uint8))
    blend(image, random_colour(stream) * stream.uniform(0.2, 1.0), frame)


def _axes(head: HeadOutline) -> tuple[Floats, Floats]:
    """Across and up in the image."""
    return np.array([np.cos(head.roll), np.sin(head.roll)]), np.array([np.sin(head.roll), -np.cos(head.roll)])


def _lay(image: Pixels, mask: Pixels, colour: Floats, head: HeadOutline, stream: Generator, *, relief: float) -> None:
    """Fill a mask with a colour that is lit from one side and rounded towards the mask's border."""
    soft = cv2.GaussianBlur(mask, (0, 0), max(0.5, 0.006 * head.width_px)).astype(np.uint8)
    body = cv2.GaussianBlur(mask, (0, 0), max(1.0, 0.08 * head.width_px)).astype(np.float32) / 255.0
    slope_x, slope_y = cv2.Sobel(body, cv2.CV_32F, 1, 0), cv2.Sobel(body, cv2.CV_32F, 0, 1)
    angle = stream.uniform(0.0, 2.0 * np.pi)
    light = np.cos(angle) * slope_x + np.sin(angle) * slope_y
    light = light / max(float(np.abs(light).max()), 1e-6)
    grain = cv2.GaussianBlur(stream.standard_normal(mask.shape, dtype=np.float32), (0, 0), 1.0)
    tone = 1.0 + relief * (0.6 * light + 0.8 * (body - 0.8)) + 0.06 * grain
    near = cv2.GaussianBlur(mask, (0, 0), max(1.0, 0.04 * head.width_px)).astype(np.float32)
    # What is before the face throws a soft shadow on it.
    blend(image, np.zeros(3), (near * 0.35).astype(np.uint8))
    blend(image, (colour * tone.clip(0.2, 1.8)[..., None]).clip(0.0, 255.0), soft)


def _hand(image: Pixels, head: HeadOutline, stream: Generator) -> None:
    width = head.width_px
    mask, creases = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8)
    palm = head.landmarks[stream.choice([0, 2, 4, 6, 8, 10, 12, 14, 16])] + stream.normal(0.0, 0.15, 2) * width
    target = head.landmarks[stream.choice([27, 30, 33, 51, 62])]
    inward = float(np.arctan2(*(target - palm)[::-1]) + stream.normal(0.0, 0.5))
    towards, beside = np.array([np.cos(inward), np.sin(inward)]), np.array([-np.sin(inward), np.cos(inward)])
    size = stream.uniform(0.75, 1.15) * width
    fill_ellipse(mask, palm, (0.26 * size, 0.21 * size), inward, 255)
    wrist = palm - towards * size
    fill_polygon(
        mask,
        [palm + 0.17 * size * beside, palm - 0.17 * size * beside]
        + [wrist - 0.15 * size * beside, wrist + 0.15 * size * beside],
        255,
    )
    bent = stream.uniform(0.3, 1.0)
    for finger, length in zip(np.linspace(-0.16, 0.16, 4), (0.34, 0.42, 0.45, 0.38), strict=True):
        root = palm + 0.18 * size * towards + finger * size * beside
        spread = inward + finger * stream.uniform(0.3, 2.0)
        middle = root + 0.55 * length * size * bent * np.array([np.cos(spread), np.sin(spread)])
        curl = spread + stream.normal(0.0, 0.25)
        tip = middle + 0.45 * length * size * bent * np.array([np.cos(curl), np.sin(curl)])
        thickness = max(2, round(0.085 * size))
        draw_line(mask, np.stack([root, middle, tip]), 255, thickness)
        fill_ellipse(mask, tip, (thickness / 2.0, thickness / 2.0), 0.0, 255)
        draw_line(creases, np.stack([root, middle, tip]) + 0.045 * size * beside, 255, max(1, round(0.012 * size)))
    if stream.random() < 0.6:
        thumb = palm + 0.2 * size * beside * stream.choice([-1.0, 1.0])
        draw_line(mask, np.stack([palm, thumb, thumb + 0.25 * size * towards]), 255, max(2, round(0.1 * size)))
    colour = head.skin * stream.uniform(0.7, 1.25) * (1.0 + stream.normal(0.0, 0.05, 3))
    _lay(image, mask, colour, head, stream, relief=stream.uniform(0.3, 0.8))
    creases = cv2.GaussianBlur(np.minimum(creases, mask), (0, 0), max(0.5, 0.006 * width))
    blend(image, colour * 0.45, (0.6 * creases).astype(np.uint8))


def _mask(image: Pixels, head: HeadOutline, stream: Generator) -> None:
    """A surgical or cloth mask, or a scarf, with pleats and straps."""
    points, width = head.landmarks, head.width_px
    share = stream.uniform(0.0, 0.9)
    left, right = points[2] * share + points[1] * (1 - share), points[14] * share + points[15] * (1 - share)
    bridge = points[33] * share + points[28] * (1 - share)
    below = stream.uniform(1.02, 1.18) * (points[3:14] - points[30]) + points[30]
    mask, straps = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8)
    fill_polygon(
        mask, np.concatenate([[left, (left + bridge) / 2.0, bridge, (bridge + right) / 2.0, right], below[::-1]]), 255
    )
    surgical = stream.random() < 0.6
    colour = np.array([[150.0, 190.0, 215.0], [235.0, 235.0, 235.0], [30.0, 30.0, 34.0]][stream.integers(3)])
    colour = colour * stream.uniform(0.8, 1.05) if surgical else random_colour(stream)
    line_px = max(1, round(0.012 * width))
    draw_line(straps, np.stack([left, points[0]]), 255, line_px)
    draw_line(straps, np.stack([right, points[16]]), 255, line_px)
    blend(image, colour, straps)
    _lay(image, mask, colour, head, stream, relief=stream.uniform(0.3, 0.9))
    if surgical:
        pleats = np.zeros(image.shape[:2], np.uint8)
        for height in (0.3, 0.5, 0.7):
            ends = [left + height * (below[1] - left), bridge + height * (below[5] - bridge)]
            draw_line(pleats, np.stack([*ends, right + height * (below[9] - right)]), 255, line_px)
        blend(image, colour * 0.7, (0.6 * np.minimum(pleats, mask)).astype(np.uint8))


def _microphone(image: Pixels, head: HeadOutline, stream: Generator) -> None:
    width = head.width_px
    mask = np.zeros(image.shape[:2], np.uint8)
    tip = head.landmarks[[57, 8]].mean(0) + width * np.array([stream.normal(0.0, 0.25), stream.uniform(-0.1, 0.35)])
    size = stream.uniform(0.08, 0.22) * width
    foot = tip + width * np.array([stream.normal(0.0, 0.5), stream.uniform(1.0, 2.0)])
    draw_line(mask, np.stack([tip, foot]), 255, max(2, round(stream.uniform(0.5, 1.2) * size)))
    _lay(image, mask, np.full(3, stream.uniform(20.0, 90.0)), head, stream, relief=0.8)
    ball = np.zeros(image.shape[:2], np.uint8)
    fill_ellipse(ball, tip, (size, 1.2 * size), stream.uniform(-0.5, 0.5), 255)
    colour = random_colour(stream) if stream.random() < 0.2 else np.full(3, stream.uniform(15.0, 110.0))
    _lay(image, ball, colour, head, stream, relief=0.9)


def _hat(image: Pixels, head: HeadOutline, stream: Generator) -> None:
    """A cap, a hat with a brim, or a woollen hat, down to somewhere above the brows."""
    points, width = head.landmarks, head.width_px
    across, up = _axes(head)
    band = points[17:27].mean(0) + stream.uniform(0.08, 0.3) * width * up
    # The skull's middle lies behind the face where the head is turned.
    band = band + across * float((head.centre - band) @ across)
    half, height = stream.uniform(0.56, 0.68) * width, stream.uniform(0.45, 0.8) * width
    turn = np.linspace(0.0, np.pi, 24)
    dome = (
        band + half * np.cos(turn)[:, None] * across + height * (np.sin(turn) ** stream.uniform(0.5, 1.0))[:, None] * up
    )
    mask = np.zeros(image.shape[:2], np.uint8)
    fill_polygon(mask, dome, 255)
    colour = random_colour(stream)
    _lay(image, mask, colour, head, stream, relief=stream.uniform(0.3, 0.9))
    brim = np.zeros(image.shape[:2], np.uint8)
    kind = stream.integers(3)
    facing = points[27] - head.centre
    if kind == 0:
        place = band + across * float(facing @ across) * 0.8 - 0.03 * width * up
        fill_ellipse(
            brim, place, (stream.uniform(0.4, 0.55) * width, stream.uniform(0.07, 0.16) * width), head.roll, 255
        )
    elif kind == 1:
        fill_ellipse(brim, band, (stream.uniform(0.8, 1.2) * width, stream.uniform(0.06, 0.2) * width), head.roll, 255)
    else:
        roll = [band - 1.03 * half * across, band + 1.03 * half * across]
        rim = stream.uniform(0.1, 0.25) * width * up
        fill_polygon(brim, [*roll, roll[1] + rim, roll[0] + rim], 255)
    _lay(image, brim, colour * stream.uniform(0.6, 1.1), head, stream, relief=0.7)


def _headscarf(image: Pixels, head: HeadOutline, stream: Generator) -> None:
    """Cloth around the face; the face itself stays open."""
    points, width = head.landmarks, head.width_px
    _, up = _axes(head)
    mask = np.zeros(image.shape[:2], np.uint8)
    centre = head.centre - 0.15 * width * up
    fill_ellipse(mask, centre, (0.66 * width, 0.95 * width), head.roll, 255)
    middle = points[[0, 16, 8, 27]].mean(0)
    forehead = points[17:27] + stream.uniform(0.12, 0.3) * width * up
    face = np.concatenate([points[:17], forehead[::-1]])
    fill_polygon(mask, middle + stream.uniform(0.97, 1.08) * (face - middle), 0)
    _lay(image, mask, random_colour(stream), head, stream, relief=stream.uniform(0.5, 1.0))


def _fringe(image: Pixels, head: HeadOutline, subject: Subject, stream: Generator) -> None:
    """Strands that hang from the hairline over forehead and brows, sometimes over an eye."""
    points, width = head.landmarks, head.width_px
    across, up = _axes(head)
    mask = np.zeros(image.shape[:2], np.uint8)
    root = points[17:27].mean(0) + stream.uniform(0.3, 0.45) * width * up
    length, comb = stream.uniform(0.2, 0.6) * width, stream.normal(0.0, 0.4)
    for place in np.linspace(-0.45, 0.45, int(stream.integers(14, 40))):
        start = root + place * width * across - 0.35 * place**2 * width * up
        reach = length * stream.uniform(0.6, 1.1)
        bend = start - 0.5 * reach * up + (0.3 * comb + stream.normal(0.0, 0.04)) * width * across
        end = start - reach * up + (0.6 * comb + stream.normal(0.0, 0.06)) * width * across
        draw_line(mask, np.stack([start, bend, end]), 255, max(1, round(stream.uniform(0.01, 0.04) * width)))
    _lay(image, mask, np.asarray(subject.hair_colour) * stream.uniform(0.6, 1.1), head, stream, relief=0.6)


def _patch(image: Pixels, head: HeadOutline, stream: Generator) -> None:
    """A piece of the same photo, or of noise, as whatever may be in the way."""
    middle = head.landmarks[stream.integers(68)] + stream.normal(0.0, 0.2 * head.width_px, 2)
    half = (stream.uniform(0.12, 0.4, 2) * head.width_px).clip(2.0, image.shape[0] / 2.5)
    low = np.maximum(middle - half, 0).astype(int)
    high = np.minimum(middle + half, np.array(image.shape[1::-1]) - 1).astype(int)
    extent = high - low
    if (extent < 2).any():
        return
    room = np.array(image.shape[1::-1]) - extent
    corner = stream.integers(0, np.maximum(room, 1))
    piece = image[corner[1] : corner[1] + extent[1], corner[0] : corner[0] + extent[0]].copy()
    if stream.random() < 0.5:
        piece[:] = np.rot90(piece, 2)
    mask = np.zeros(image.shape[:2], np.uint8)
    if stream.random() < 0.5:
        mask[low[1] : high[1], low[0] : high[0]] = 255
    else:
        fill_ellipse(mask, (low + high) / 2.0, (extent[0] / 2.0, extent[1] / 2.0), 0.0, 255)
    layer = image.astype(np.float32)
    layer[low[1] : high[1], low[0] : high[0]] = piece
    inside = np.zeros_like(mask)
    inside[low[1] : high[1], low[0] : high[0]] = 255
    blend(image, layer, np.minimum(mask, inside))
