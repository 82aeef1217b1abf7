"""Part of the registered model: the largest face of a photo and its 68 points, by the two exported graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from tasks.served_photos import cut_frame

WINDOW_SCALES = (1.0, 0.7, 0.5, 0.35)
"""Sides of the search windows relative to the shorter side of the photo."""

MAX_CELLS, SAME_OVERLAP, INSIDE_OVERLAP, SURE_CONFIDENCE, SURE_SHARE = 400, 0.35, 0.7, 0.5, 0.5
"""How cells become boxes and which face is taken, as in models/landmarks/finder.py and cascade.py."""

Face = tuple[np.ndarray, np.ndarray, float]
"""Points (68, 2) in photo pixels, confidence (68,) and score of a face; while searching, expected errors of several."""


def search_windows(height: int, width: int) -> list[tuple[float, float, float]]:
    """Squares (centre x, centre y, side) that cover the photo with half overlap, in several sizes."""
    windows = []
    for scale in WINDOW_SCALES:
        side = scale * min(height, width)
        windows += [(x, y, side) for y in _steps(height, side) for x in _steps(width, side)]
    return windows


def _steps(extent: float, side: float) -> list[float]:
    count = 1 + int(np.ceil(max(0.0, extent - side) / (0.5 * side)))
    return np.linspace(side / 2.0, extent - side / 2.0, count).tolist() if count > 1 else [extent / 2.0]


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def find_boxes(session: onnxruntime.InferenceSession, photo: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Squares around faces, the likely first: centre x, y, side, angle, score; see models/landmarks/finder.py."""
    height, width = photo.shape[:2]
    factor = settings["longest_px"] / max(height, width)
    size = [max(1, round(extent * min(1.0, factor))) for extent in (width, height)]
    reduced = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX), dtype=np.float32)
    stride, multiple = settings["stride"], settings["size_multiple"]
    pixels = np.full((1, 3, *(max(2, -(-extent // multiple)) * multiple for extent in size[::-1])), 0.5, np.float32)
    pixels[0, :, : size[1], : size[0]] = reduced.transpose(2, 0, 1) / 255.0
    found = session.run(["score", "offset", "log_side", "turn"], {"image": pixels})
    logit, offset, log_side, turn = (values[0].astype(np.float64) for values in found)
    cells = []
    for level in range(settings["levels"]):
        rows, columns = (-(-(extent >> level) // stride) for extent in pixels.shape[2:])
        y, x = np.divmod(np.arange(rows * columns), columns)
        cells.append(2.0**level * np.stack([x * stride + 0.5, y * stride + 0.5, np.ones(len(x))], 1))
    order = np.argsort(-logit, kind="stable")[:MAX_CELLS]
    order = order[logit[order] >= np.log(settings["min_score"] / (1.0 - settings["min_score"]))]
    cell = np.concatenate(cells)[order]
    centre = cell[:, :2] + offset[order] * settings["offset_unit"] * cell[:, 2:]
    side = settings["reference_side"] * cell[:, 2] * np.exp(log_side[order])
    kept: list[int] = []
    for row in range(len(side)):
        # Elsewhere the squares of a face are averaged; the surest is as good to start from.
        reach = (side[kept, None] + side[row]) / 2.0 - np.abs(centre[kept] - centre[row])
        common = np.minimum(reach.clip(0.0), np.minimum(side[kept], side[row])[:, None]).prod(1)
        same = common > SAME_OVERLAP * (side[kept] ** 2 + side[row] ** 2 - common)
        if not (same | ((common > INSIDE_OVERLAP * side[row] ** 2) & (side[kept] >= side[row]))).any():
            kept.append(row)
    boxes: np.ndarray = np.column_stack([centre, side, np.arctan2(*turn[order].T[::-1]), logit[order]])[kept]
    boxes[:, :3] *= np.array([width, height, width]) / np.array(size)[[0, 1, 0]]
    boxes[:, 4] = 1.0 / (1.0 + np.exp(-boxes[:, 4]))
    return boxes[np.lexsort((-boxes[:, 2], boxes[:, 4] < settings["likely_score"]))]


class FaceFinder:
    """The detector of models/landmarks/cascade.py on one photo; without boxes it looks at more windows than that."""

    def __init__(self, session: Any, settings: dict[str, Any], boxes: Any = None) -> None:
        self.session, self.settings, self.boxes = session, settings, boxes
        self.size_px: int = settings["input_size_px"]
        self.mean_shape = np.array(settings["mean_shape"])

    def find(self, photo: np.ndarray) -> Face | None:
        """The largest face that is sure enough, or the surest where there are no boxes."""
        height, width = photo.shape[:2]
        looks = self.settings["unboxed_refinements"]
        finder, faces, sure = self.settings["finder"], [], False
        for row in [] if self.boxes is None else find_boxes(self.boxes, photo, finder):
            if sure and row[4] < finder["likely_score"]:
                break
            face = self._refine(photo, row[None, :3], float(row[3]), self.settings["refinements"])
            faces += [] if face is None else [face]
            sure = sure or (face is not None and face[1].mean() >= SURE_CONFIDENCE)
        if not sure:
            whole = self._refine(photo, np.array([[width / 2.0, height / 2.0, max(height, width)]]), 0.0, looks)
            faces += [] if whole is None else [whole]
        if not faces and self.boxes is None:
            return self._refine(photo, np.array(search_windows(height, width)), 0.0, looks)
        best = max((face[2] * face[1].mean() for face in faces), default=0.0)
        good = (face for face in faces if face[2] * face[1].mean() >= SURE_SHARE * best)
        return max(good, key=lambda face: float(np.ptp(face[0], axis=0).max()), default=None)

    def _refine(self, photo: np.ndarray, squares: np.ndarray, angle: float, looks: int) -> Face | None:
        guesses = self._look(photo, self._affine(squares[:, :2], squares[:, 2], angle))
        # Sure of a face, and sure of its points, which favours windows that fit tightly.
        rank = np.log(guesses[2] + 1e-6) - 0.5 * np.log(guesses[1].mean(1) + 1e-6)
        points, sigma, score = (values[rank.argmax()] for values in guesses)
        for _ in range(looks):
            centre, side, angle = self._tight_frame(points)
            affine = self._affine(centre[None], np.array([side]), angle)
            points, sigma, score = (values[0] for values in self._look(photo, affine))
        # The last look is also taken from right to left.
        flip = np.array([[-1.0, 0.0, self.size_px], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        mirrored, order = self._look(photo, affine @ flip), self.settings["mirror_order"]
        points, sigma = (points + mirrored[0][0][order]) / 2.0, (sigma + mirrored[1][0][order]) / 2.0
        score = (score + mirrored[2][0]) / 2.0
        if score < self.settings["min_face_score"] or np.ptp(points, axis=0).max() < 1.0:
            return None
        return points, 1.0 / (1.0 + (sigma / self.settings["confidence_sigma"]) ** 2), float(score)

    def _look(self, photo: np.ndarray, affines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        crops = np.stack([cut_frame(photo, affine, self.size_px) for affine in affines])
        pixels = crops.transpose(0, 3, 1, 2).astype(np.float32) / 255.0
        points, log_sigma, presence = self.session.run(["points", "log_sigma", "presence"], {"image": pixels})
        points = points.astype(np.float64)
        side = np.maximum(np.ptp(points, axis=1).max(1), 1.0)
        sigma = np.exp(log_sigma.astype(np.float64)) * self.settings["sigma_scale"] / side[:, None]
        photo_points = points @ affines[:, :2, :2].transpose(0, 2, 1) + affines[:, None, :2, 2]
        return photo_points, sigma, 1.0 / (1.0 + np.exp(-presence.astype(np.float64)))

    def _affine(self, centre: np.ndarray, side: np.ndarray, angle: float = 0.0) -> np.ndarray:
        linear = _rotation(angle)[None] * (side / self.size_px)[:, None, None]
        affine = np.zeros((len(side), 3, 3))
        affine[:, :2, :2] = linear
        affine[:, :2, 2] = centre - linear.sum(2) * (self.size_px / 2.0)
        affine[:, 2, 2] = 1.0
        return affine

    def _tight_frame(self, points: np.ndarray) -> tuple[np.ndarray, float, float]:
        middle = points.mean(0)
        centred, reference = points - middle, self.mean_shape - self.mean_shape.mean(0)
        sine = (reference[:, 0] * centred[:, 1] - reference[:, 1] * centred[:, 0]).sum()
        angle = float(np.arctan2(sine, (reference * centred).sum()))
        upright = centred @ _rotation(angle)
        low, high = upright.min(0), upright.max(0)
        side = max(self.settings["frame_scale"] * float((high - low).max()), 1.0)
        return middle + _rotation(angle) @ ((low + high) / 2.0), side, angle
