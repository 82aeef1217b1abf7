"""Colour of a person's irises as the photos show it.

Around each eye a small upright picture is cut by its landmarks. The iris is the darkest disk between the lids; of the
ring between pupil and white the lighter part is taken, for lashes and the pupil darken the rest. In a small picture
the skin around runs into the iris, and is taken out again. What remains is brought among the colours that irises have.

Convention: RGB in [0, 1] as it is displayed. Pixels of the upright picture: x from the subject's right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy.optimize import nnls

from models.face.inner_parts import LEAST_LIGHT, LEFT_EYE, MOST_LIGHT, RIGHT_EYE
from models.face.inner_shapes import IRIS, RGB
from models.face.lighting import irradiance
from models.reconstruction.photos import PhotoFace
from models.rendering.falloff import ramp
from models.types import FaceCoefficients

EYE_PX, WIDTH_PX, HEIGHT_PX = 48.0, 64, 40
"""From corner to corner of an eye, and size of the upright picture around it."""
BRIGHTNESS = (0.5, 0.35, 0.15)
"""Shares of the channels: blue irises too are dark in the red, where skin and the white are bright."""

RADII_PX = (9.0, 10.5, 12.0)
"""An iris has 12 mm, an eye from corner to corner about 28."""
ASIDE_PX, ABOVE_PX = 10, 4
"""How far its centre lies from the middle of the eye at most."""
AROUND = (1.05, 1.9)
"""Radii between which the white lies that it is compared with."""
RING = (0.4, 0.85)
"""Between the pupil and the dark rim."""
UNEVEN = 0.3
"""Of its standard deviation an iris is thought less dark: an even disk, not half of a lash."""
LASHES_SHARE = 0.2
"""Of the opening from above, where the lid's shadow lies."""
LIGHTER = (0.4, 0.85)
"""Of the ring, by brightness; more is glint."""
FEWEST_PX = 20

SMALL_PX, LARGE_PX = 9.0, 13.0
"""Eyes of so many pixels of the photo say nothing, or enough; see docs/outputs.md."""
SHUT, OPEN = 0.12, 0.22
"""Height of an opening by its width."""
PLAIN_CONTRAST = 0.15
"""By which an iris is darker than what is around it, as a share of the skin's brightness."""
PALE, DARK = 0.85, 0.65
"""Brightness by the skin's: paler ones are lids or glint."""
AWAY, TOWARDS = 0.5, 0.75
"""Width of an eye by the other's."""

SKIN_PX, PUPIL_PX = 3.0, 2.0
"""Over the width of the eye: share of skin that runs into the iris, and by how much pupil and lashes darken it."""

DIM, CLEAR = 0.12, 0.28
PURPLE, GREENISH = 0.75, 0.95
BROWNISH = (0.5, 0.7)
"""Brightness in neutral light, and green by red, between which a tint is believed: what is nearly black is taken for
brown, as most eyes are, and blue irises are no more red than green, while a brown one under a blue sky is. Blue by red
below which it is brown anyway."""

IRISES = np.array(
    [
        (0.13, 0.085, 0.06),  # the darkest brown
        (0.36, 0.23, 0.14),  # brown
        (0.55, 0.38, 0.18),  # amber
        (0.42, 0.40, 0.24),  # hazel
        (0.42, 0.47, 0.38),  # green
        (0.52, 0.62, 0.72),  # light blue
        (0.28, 0.42, 0.60),  # blue
        (0.20, 0.26, 0.34),  # slate
        (0.55, 0.57, 0.58),  # grey
    ]
)
"""Mixtures of these are believed."""


@dataclass(frozen=True)
class IrisColour:
    """Colour of a person's irises."""

    colour: RGB
    """In neutral light."""
    confidence: float = 0.0
    """0 to 1; what is missing to 1 was filled with the usual brown."""


@dataclass(frozen=True)
class EyeLook:
    """What one photo shows of one iris."""

    colour: Float[np.ndarray, "3"]
    """In the light of the photo."""
    confidence: float
    """0 to 1."""
    width_px: float
    """From corner to corner."""


def iris_colour(faces: Sequence[PhotoFace]) -> IrisColour:
    """The colour that the photos of one person show, both eyes together; the usual brown where none shows any."""
    looks, colours = [], []
    for face in faces:
        light = np.clip(frontal_light(face.coefficients), LEAST_LIGHT, MOST_LIGHT)
        pair = [look_at_eye(face.photo, face.detection.landmarks[list(eye)]) for eye in (RIGHT_EYE, LEFT_EYE)]
        widest = max(one.width_px for one in pair)
        for one in pair:
            towards = ramp(one.width_px / max(widest, 1e-6), AWAY, TOWARDS)
            looks.append((one.confidence * towards, one.width_px))
            colours.append(one.colour / light)
    sure = np.array([confidence for confidence, _ in looks])
    weight = sure * np.array([width for _, width in looks]) ** 2
    if weight.sum() <= 0.0:
        return IrisColour(IRIS)
    confidence = float(1.0 - np.prod(1.0 - sure))
    seen = believable((weight[:, None] * np.stack(colours)).sum(0) / weight.sum())
    mixed = confidence * seen + (1.0 - confidence) * np.array(IRIS)
    return IrisColour((float(mixed[0]), float(mixed[1]), float(mixed[2])), confidence)


@torch.no_grad()
def frontal_light(coefficients: FaceCoefficients) -> Float[np.ndarray, "3"]:
    """Light that reaches what faces the camera (a batch of one); colours are multiplied with it."""
    towards = torch.tensor([[[0.0, 0.0, -1.0]]])
    return np.asarray(irradiance(towards, coefficients.lighting)[0, 0].double().numpy())


def believable(colour: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """The nearest colour that irises have: nearest in the convex hull of `IRISES`, brown where the tint is doubtful."""
    heavy, bright = 100.0, float(colour @ BRIGHTNESS)
    _, green, blue = colour / max(float(colour[0]), 0.02)
    sure = max(ramp(bright, DIM, CLEAR) * ramp(green, PURPLE, GREENISH), ramp(-blue, -BROWNISH[1], -BROWNISH[0]))
    tinted = sure * colour + (1.0 - sure) * np.array(IRIS) * bright / float(np.array(IRIS) @ BRIGHTNESS)
    shares, _ = nnls(np.vstack([IRISES.T, np.full(len(IRISES), heavy)]), np.append(tinted, heavy))
    return np.asarray(shares @ IRISES / shares.sum())


def look_at_eye(photo: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "6 2"]) -> EyeLook:
    """The iris between six landmarks of an eye, from the corner on the subject's right clockwise, as in iBUG's order.

    Degenerate: an eye that is shut, or in which no disk is darker than the rest, has confidence 0.
    """
    width = float(np.linalg.norm(points[3] - points[0]))
    nothing = EyeLook(np.zeros(3), 0.0, width)
    if width < SMALL_PX:
        return nothing
    picture, placed = upright_eye(photo, points.astype(np.float64), width)
    top, bottom = placed[[1, 2], 1].mean(), placed[[4, 5], 1].mean()
    outline = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    cv2.fillPoly(outline, [np.rint((placed - 0.5) * 16.0).astype(np.int32)], 1, shift=4)
    bright = picture @ np.array(BRIGHTNESS, np.float32)
    # Landmarks err by about a pixel.
    found = darkest_disk(bright, cv2.dilate(outline, np.ones((3, 3), np.uint8)) > 0, middle=placed.mean(0))
    if found is None:
        return nothing
    x, y, radius, contrast = found
    down, right = np.mgrid[:HEIGHT_PX, :WIDTH_PX] + 0.5
    distance = np.hypot(right - x, down - y)
    ring = (distance > RING[0] * radius) & (distance < RING[1] * radius) & (outline > 0)
    ring &= down > top + LASHES_SHARE * (bottom - top)
    if ring.sum() < FEWEST_PX:
        return nothing
    low, high = np.quantile(bright[ring], LIGHTER)
    iris = np.median(picture[ring & (bright >= low) & (bright <= high)], axis=0).astype(np.float64)
    skin = np.median(picture[-HEIGHT_PX // 4 :].reshape(-1, 3), axis=0).astype(np.float64)
    of_skin = float(iris @ BRIGHTNESS) / max(float(skin @ BRIGHTNESS), 0.05)
    confidence = (
        ramp(width, SMALL_PX, LARGE_PX)
        * ramp((bottom - top) / EYE_PX, SHUT, OPEN)
        * ramp(contrast / max(float(skin @ BRIGHTNESS), 0.05), 0.0, PLAIN_CONTRAST)
        * ramp(-of_skin, -PALE, -DARK)
    )
    return EyeLook(_without_skin(iris, skin, width), confidence, width)


def upright_eye(
    photo: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "6 2"], width: float
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "6 2"]]:
    """The eye with its corners level, `EYE_PX` apart, and the landmarks in that picture."""
    scale = width / EYE_PX
    across = (points[3] - points[0]) / max(width, 1e-6) * scale
    axes = np.stack([across, [-across[1], across[0]]], 1)
    corner = points[[0, 3]].mean(0) - axes @ np.array([WIDTH_PX / 2.0, HEIGHT_PX / 2.0])
    # Pixel centres are at +0.5 here, at 0 for OpenCV.
    shift = corner + axes @ np.array([0.5, 0.5]) - 0.5
    reach = np.hypot(WIDTH_PX, HEIGHT_PX) * scale
    low = np.maximum(np.floor(points.mean(0) - reach), 0.0).astype(int)
    high = np.maximum(np.ceil(points.mean(0) + reach).astype(int), low + 1)
    piece = photo[low[1] : high[1], low[0] : high[0]]
    if piece.size == 0:
        return np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.float32), (points - corner) @ np.linalg.inv(axes).T
    if scale > 1.0:
        piece = cv2.GaussianBlur(piece, (0, 0), 0.5 * scale)
    cut = cv2.warpAffine(
        piece,
        np.column_stack([axes, shift - low]),
        (WIDTH_PX, HEIGHT_PX),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(cut, np.float32) / np.float32(255.0), (points - corner) @ np.linalg.inv(axes).T


def darkest_disk(
    bright: Float[np.ndarray, "h w"], within: Bool[np.ndarray, "h w"], *, middle: Float[np.ndarray, "2"]
) -> tuple[float, float, float, float] | None:
    """Centre, radius and contrast of the disk between the lids that is darkest against what is beside it there."""
    here = within.astype(np.float32)
    best: tuple[float, float, float, float] | None = None
    for radius in RADII_PX:
        inner, outer = _disk(0.0, radius), _disk(AROUND[0] * radius, AROUND[1] * radius)
        inside, total, squares = (_sums(one, inner) for one in (here, here * bright, here * bright**2))
        outside, beside = _sums(here, outer), _sums(here * bright, outer)
        mean = total / np.maximum(inside, 1.0)
        spread = np.sqrt(np.maximum(squares / np.maximum(inside, 1.0) - mean**2, 0.0))
        contrast = beside / np.maximum(outside, 1.0) - mean - UNEVEN * spread
        down, right = np.mgrid[: bright.shape[0], : bright.shape[1]] + 0.5
        possible = (np.abs(right - middle[0]) <= ASIDE_PX) & (np.abs(down - middle[1]) <= ABOVE_PX)
        possible &= (inside >= 2 * FEWEST_PX) & (outside >= FEWEST_PX)
        contrast = np.where(possible, contrast, -np.inf)
        row, column = np.unravel_index(int(contrast.argmax()), contrast.shape)
        value = float(contrast[row, column])
        if value > 0.0 and (best is None or value > best[3]):
            best = (float(column) + 0.5, float(row) + 0.5, radius, value)
    return best


def _without_skin(
    iris: Float[np.ndarray, "3"], skin: Float[np.ndarray, "3"], width_px: float
) -> Float[np.ndarray, "3"]:
    """An iris as it would be in a large picture: without the skin's tint, not darkened by pupil and lashes."""
    share = SKIN_PX / width_px
    pure = np.maximum((iris - share * skin) / (1.0 - share), 0.02)
    wanted = float(iris @ BRIGHTNESS) * (1.0 + PUPIL_PX / width_px)
    return np.asarray(pure * wanted / float(pure @ BRIGHTNESS))


def _disk(least: float, most: float) -> Float[np.ndarray, "k k"]:
    reach = int(np.ceil(most))
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(right, down)
    return ((distance >= least) & (distance < most)).astype(np.float32)


def _sums(values: Float[np.ndarray, "h w"], kernel: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "h w"]:
    return np.asarray(cv2.filter2D(values.astype(np.float32), -1, kernel, borderType=cv2.BORDER_CONSTANT), np.float64)
