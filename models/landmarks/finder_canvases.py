"""Training pictures for the face finder: annotated faces of any size, place and turn, pasted over what is no face.

Faces bring their surroundings along, cut off in any way, and patches without a face are pasted alike, so that neither
seams nor black borders tell where a face is. Frames are centre, side and angle as in `framing.tight_frame`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from models.landmarks.augment import Frames, faceless_crops
from models.landmarks.framing import cut_frames, frame_affine, tight_frame, transform_points
from models.landmarks.learning import LandmarkSamples

ELLIPSE = np.stack([np.cos(np.arange(24) * np.pi / 12.0), np.sin(np.arange(24) * np.pi / 12.0)], 1)

SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])

DECOY_PX = 48
"""Resolution at which patches without a face are made."""

NOBODY = -1


@dataclass(frozen=True)
class CanvasSettings:
    """What the canvases show."""

    face_shares: tuple[float, ...] = (0.08, 0.42, 0.2, 0.15, 0.15)
    """How many canvases get no face, one, two …; a face that finds no free place is left out."""
    smallest_px: float = 11.5
    largest: float = 1.6
    """Side of a face relative to the canvas; with company at most `largest_in_company`."""
    largest_in_company: float = 0.6
    beyond: float = 0.12
    """How far outside the canvas the centre may lie, in sides of the face."""
    tilted_share: float = 0.25
    """Faces of any roll, the others stand upright within `upright_angle_rad` (standard deviation)."""
    upright_angle_rad: float = 0.35
    decoys: float = 1.2
    """Mean number of patches without a face behind the faces."""
    occluders: float = 0.3
    """Mean number of such patches before them."""
    whole_share: float = 0.5
    """Faces that bring all of their photo along."""
    soft_share: float = 0.25
    """Patches whose edge is soft."""
    ellipse_share: float = 0.3
    black_share: float = 0.1
    """Backgrounds that are black."""
    bars_share: float = 0.15
    coarse_share: float = 0.25
    compressed_share: float = 0.2
    noise_share: float = 0.25


@dataclass(frozen=True)
class Canvases:
    """Pictures and the faces in them."""

    images: UInt8[np.ndarray, "B S S 3"]
    canvas: Int[np.ndarray, "F"]
    """Which picture each face is in."""
    centre: Float[np.ndarray, "F 2"]
    side: Float[np.ndarray, "F"]
    angle: Float[np.ndarray, "F"]
    visible: Float[np.ndarray, "F"]
    """Share of the face's points that are inside the picture and not covered."""


class CanvasComposer:
    """Draws canvases from annotated photos."""

    def __init__(self, samples: LandmarkSamples, *, size_px: int, settings: CanvasSettings | None = None) -> None:
        self.samples = samples
        self.size_px = size_px
        self.settings = settings or CanvasSettings()
        self.frames: Frames = tight_frame(samples.points.astype(np.float64), samples.mean_shape)

    def compose(self, count: int, random: np.random.Generator) -> Canvases:
        """So many canvases; all randomness comes from the generator."""
        canvas, centre, side, angle = self._place(count, random)
        which = random.integers(0, len(self.samples.points), len(canvas))
        affine = self._affine(which, centre, side, angle)
        layers = cut_frames(self.samples.images, which, affine, size_px=self.size_px)
        points = transform_points(np.linalg.inv(affine), self.samples.points[which].astype(np.float64))
        owner = np.full((count, self.size_px, self.size_px), NOBODY, np.int16)
        images = self._backgrounds(count, random)
        self._paste_decoys(images, owner, self.settings.decoys, random)
        for face in range(len(which)):
            mask = self._face_mask(int(which[face]), affine[face], random)
            self._paste(images[canvas[face]], layers[face], mask, random)
            owner[canvas[face]][mask > 0] = face
        self._paste_decoys(images, owner, self.settings.occluders, random)
        for row in np.flatnonzero(random.random(count) < self.settings.bars_share).tolist():
            _add_bars(images[row], owner[row], random)
        visible = _visible_shares(points, owner[canvas], np.arange(len(which)))
        flipped = random.random(count) < 0.5
        for row in range(count):
            image = images[row, :, ::-1] if flipped[row] else images[row]
            images[row] = self._degrade(np.ascontiguousarray(image), random)
        mirrored = flipped[canvas]
        centre[mirrored, 0] = self.size_px - centre[mirrored, 0]
        angle = np.where(mirrored, -angle, angle)
        return Canvases(images, canvas, centre, side, angle, visible)

    def _place(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Canvas, centre, side and angle of every face, large ones before small ones in each canvas."""
        settings, size = self.settings, self.size_px
        shares = np.array(settings.face_shares)
        rows: list[tuple[int, float, float, float, float]] = []
        for canvas, number in enumerate(random.choice(len(shares), count, p=shares / shares.sum()).tolist()):
            largest = size * (settings.largest if number == 1 else settings.largest_in_company)
            low, high = math.log(settings.smallest_px), math.log(largest)
            placed: list[tuple[int, float, float, float, float]] = []
            for side in np.sort(np.exp(random.uniform(low, high, number)))[::-1].tolist():
                reach = settings.beyond * side
                x, y = random.uniform(-reach, size + reach, 2).tolist()
                if all(math.hypot(x - other[1], y - other[2]) > 0.5 * (side + other[3]) for other in placed):
                    placed.append((canvas, x, y, side, self._angle(random)))
            rows += placed
        table = np.array(rows, np.float64).reshape(-1, 5)
        return table[:, 0].astype(np.int64), table[:, 1:3].copy(), table[:, 3].copy(), table[:, 4].copy()

    def _angle(self, random: np.random.Generator) -> float:
        if random.random() < self.settings.tilted_share:
            return float(random.uniform(-math.pi, math.pi))
        return float(random.normal(0.0, self.settings.upright_angle_rad))

    def _affine(
        self, which: np.ndarray, centre: np.ndarray, side: np.ndarray, angle: np.ndarray
    ) -> Float[np.ndarray, "F 3 3"]:
        """Canvas to photo, such that the face of the photo comes to lie where it was placed."""
        own_centre, own_side, own_angle = (values[which] for values in self.frames)
        turn, scale = own_angle - angle, own_side / side
        offset = scale[:, None] * (centre - self.size_px / 2.0)
        cosine, sine = np.cos(turn), np.sin(turn)
        turned = np.stack([cosine * offset[:, 0] - sine * offset[:, 1], sine * offset[:, 0] + cosine * offset[:, 1]], 1)
        return frame_affine(own_centre - turned, scale * self.size_px, turn, size_px=self.size_px)

    def _backgrounds(self, count: int, random: np.random.Generator) -> UInt8[np.ndarray, "B S S 3"]:
        size = self.size_px
        images = self._faceless(count, size, random)
        black = random.random(count) < self.settings.black_share
        for row in range(count):
            if black[row]:
                images[row] = 0
            elif random.random() < 0.5:
                # Repeated in mirrors: finer texture than a piece of background beside a face has.
                tile = max(8, int(size / random.uniform(1.5, 5.0)))
                small = cv2.resize(images[row], (tile, tile), interpolation=cv2.INTER_AREA)
                images[row] = cv2.copyMakeBorder(small, 0, size - tile, 0, size - tile, cv2.BORDER_REFLECT)
        return images

    def _faceless(self, count: int, size_px: int, random: np.random.Generator) -> UInt8[np.ndarray, "N S S 3"]:
        which = random.integers(0, len(self.samples.points), count)
        return faceless_crops(self.samples.images, self.samples.points, which, size_px=size_px, generator=random)

    def _paste_decoys(
        self,
        images: UInt8[np.ndarray, "B S S 3"],
        owner: Int[np.ndarray, "B S S"],
        mean: float,
        random: np.random.Generator,
    ) -> None:
        numbers = random.poisson(mean, len(images))
        patches = iter(self._faceless(int(numbers.sum()), DECOY_PX, random))
        half = DECOY_PX / 2.0
        for image, belongs, number in zip(images, owner, numbers.tolist(), strict=True):
            for _ in range(number):
                side = math.exp(random.uniform(math.log(self.settings.smallest_px), math.log(self.size_px)))
                centre, angle = random.uniform(0.0, self.size_px, 2), self._angle(random)
                linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                linear *= side / DECOY_PX
                matrix = np.concatenate([linear, (centre - linear.sum(1) * half)[:, None]], 1)
                layer = cv2.warpAffine(next(patches), matrix, (self.size_px, self.size_px), flags=cv2.INTER_LINEAR)
                outline = self._outline(random) * (half - 1.0) @ linear.T + centre
                mask = self._fill(outline)
                self._paste(image, layer, mask, random)
                belongs[mask > 0] = NOBODY

    def _face_mask(
        self, which: int, affine: Float[np.ndarray, "3 3"], random: np.random.Generator
    ) -> UInt8[np.ndarray, "S S"]:
        """Where the photo of a face is pasted: all of it, or a rectangle or an ellipse around the face."""
        height, width = self.samples.images[which].shape[:2]
        low, high = np.array([1.0, 1.0]), np.array([width - 1.0, height - 1.0])
        outline = SQUARE
        if random.random() >= self.settings.whole_share:
            centre, side = self.frames[0][which], self.frames[1][which]
            reach = side * random.uniform(0.5, 1.5, (2, 2))
            low, high = np.maximum(low, centre - reach[0]), np.minimum(high, centre + reach[1])
            outline = self._outline(random)
        corners = (low + high) / 2.0 + outline * (high - low) / 2.0
        return self._fill(transform_points(np.linalg.inv(affine)[None], corners[None])[0])

    def _outline(self, random: np.random.Generator) -> Float[np.ndarray, "K 2"]:
        return ELLIPSE if random.random() < self.settings.ellipse_share else SQUARE

    def _fill(self, outline: Float[np.ndarray, "K 2"]) -> UInt8[np.ndarray, "S S"]:
        mask = np.zeros((self.size_px, self.size_px), np.uint8)
        # Eight fractional bits; OpenCV draws lines far outside correctly as long as the numbers fit.
        fixed = np.rint(np.clip(outline - 0.5, -2e4, 2e4) * 256.0).astype(np.int32)
        cv2.fillConvexPoly(mask, fixed, 255, cv2.LINE_8, 8)
        return mask

    def _paste(
        self,
        image: UInt8[np.ndarray, "S S 3"],
        layer: UInt8[np.ndarray, "S S 3"],
        mask: UInt8[np.ndarray, "S S"],
        random: np.random.Generator,
    ) -> None:
        if random.random() >= self.settings.soft_share:
            np.copyto(image, layer, where=mask[..., None] > 0)
            return
        inner = cv2.erode(mask, np.ones((3, 3), np.uint8))
        weight = cv2.GaussianBlur(inner, (0, 0), random.uniform(0.7, 2.5)).astype(np.float32)[..., None] / 255.0
        image[:] = np.rint(image + weight * (layer.astype(np.float32) - image))

    def _degrade(self, image: UInt8[np.ndarray, "S S 3"], random: np.random.Generator) -> UInt8[np.ndarray, "S S 3"]:
        settings, size = self.settings, (self.size_px, self.size_px)
        if random.random() < settings.coarse_share:
            reduced = int(self.size_px / random.uniform(1.2, 2.0))
            small = cv2.resize(image, (reduced, reduced), interpolation=cv2.INTER_AREA)
            image = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)
        if random.random() < settings.compressed_share:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(20, 80))]
            decoded = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
            image = np.asarray(decoded, np.uint8)
        if random.random() < settings.noise_share:
            noise = random.standard_normal(image.shape, np.float32) * random.uniform(2.0, 14.0)
            image = np.clip(image + noise, 0.0, 255.0).astype(np.uint8)
        return image


def _add_bars(image: UInt8[np.ndarray, "S S 3"], owner: np.ndarray, random: np.random.Generator) -> None:
    """Cover a strip along one or two borders, black, grey or of any colour, as letterboxed photos have."""
    size = len(image)
    colour = (np.zeros(3), np.full(3, 128.0), random.uniform(0.0, 255.0, 3))[int(random.integers(0, 3))]
    extent = int(size * random.uniform(0.05, 0.3))
    for area in random.permutation(4)[: random.integers(1, 3)].tolist():
        strip = (slice(None, extent), slice(size - extent, None))[area % 2]
        place = (strip, slice(None)) if area < 2 else (slice(None), strip)
        image[place] = colour
        owner[place] = NOBODY


def _visible_shares(
    points: Float[np.ndarray, "F 68 2"], owner: Int[np.ndarray, "F S S"], faces: Int[np.ndarray, "F"]
) -> Float[np.ndarray, "F"]:
    size = owner.shape[1]
    pixel = np.floor(points).astype(np.int64)
    inside = ((pixel >= 0) & (pixel < size)).all(2)
    pixel = pixel.clip(0, size - 1)
    own = owner[faces[:, None], pixel[..., 1], pixel[..., 0]] == faces[:, None]
    return np.asarray((inside & own).mean(1))
