"""Our detector: the hierarchical network looks at whole photos, at windows where it must, then ever more closely.

Every pass frames the face by the points of the pass before, upright and tight, so the last one sees a face at the size
it was trained on. The last look is also taken in the mirror. All passes run over batches of photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import nn

from models.landmarks.detector import Annotations, Detection, confidence_from_sigma
from models.landmarks.framing import (
    FLIP_PERMUTATION,
    box_side,
    cut_frames,
    frame_affine,
    landmark_box,
    tight_frame,
    transform_points,
)
from models.landmarks.hierarchical import HierarchicalNetwork, LandmarkOutput, NetworkWidths
from models.types import LANDMARK_COUNT

REFINEMENTS = 3

WINDOW_SCALES = (0.7, 0.5)
"""Sides of the search windows relative to the shorter side of the photo."""

CASCADE_MARGIN = 1.3
"""A box of OpenCV's cascade ends at chin and brows; the network wants some room around."""

MIN_POINT_SPREAD_PX = 1.0
"""Points closer together than this are no face and cannot be framed again."""


@dataclass(frozen=True)
class Guesses:
    """What the network says about N frames."""

    photo: Int[np.ndarray, "N"]
    points: Float[np.ndarray, "N 68 2"]
    """Pixels of the photo."""
    sigma: Float[np.ndarray, "N 68"]
    """Expected error as a fraction of the larger side of the points' box."""
    presence: Float[np.ndarray, "N"]

    def rank(self) -> Float[np.ndarray, "N"]:
        """Higher is better: sure of a face, and sure of its points, which favours windows that fit tightly."""
        return np.log(self.presence + 1e-6) - 0.5 * np.log(self.sigma.mean(1) + 1e-6)

    def average(self, other: Guesses) -> Guesses:
        """Mean of two looks at the same faces."""
        return Guesses(
            self.photo,
            (self.points + other.points) / 2.0,
            (self.sigma + other.sigma) / 2.0,
            (self.presence + other.presence) / 2.0,
        )

    def take(self, rows: Int[np.ndarray, "M"]) -> Guesses:
        """The guesses of those rows."""
        return Guesses(self.photo[rows], self.points[rows], self.sigma[rows], self.presence[rows])


class HierarchicalDetector:
    """`LandmarkDetector` around a trained `HierarchicalNetwork`."""

    def __init__(
        self,
        network: nn.Module,
        *,
        input_size_px: int,
        mean_shape: Float[np.ndarray, "68 2"],
        sigma_scale: float = 1.0,
        min_face_score: float = 0.5,
        batch_size: int = 64,
        half_precision: bool = False,
        device: str = "cpu",
    ) -> None:
        self.network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.input_size_px = input_size_px
        self.mean_shape = mean_shape
        self.sigma_scale = sigma_scale
        self.min_face_score = min_face_score
        self.batch_size = batch_size
        self.half_precision = half_precision
        self.device = device

    def detect(
        self,
        images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        *,
        annotations: Annotations | None = None,  # noqa: ARG002
    ) -> list[Detection | None]:
        """The best face of each photo, None where none scores `min_face_score`; annotations are not read."""
        everything = np.arange(len(images))
        found: list[Detection | None] = [None] * len(images)
        missed = self._accept(self._refine(images, self._whole(images, everything)), found)
        if len(missed):
            self._accept(self._refine(images, self._search(images, missed)), found)
        return found

    def _accept(self, guesses: Guesses, found: list[Detection | None]) -> Int[np.ndarray, "M"]:
        """Note the guesses that show a face; return the photos whose guess does not."""
        good = (guesses.presence >= self.min_face_score) & (box_side(guesses.points) >= MIN_POINT_SPREAD_PX)
        boxes = landmark_box(guesses.points).astype(np.float32)
        confidence = confidence_from_sigma(guesses.sigma).astype(np.float32)
        for row in np.flatnonzero(good).tolist():
            found[int(guesses.photo[row])] = Detection(
                guesses.points[row].astype(np.float32), confidence[row], boxes[row], float(guesses.presence[row])
            )
        return guesses.photo[~good]

    def _whole(self, images: Sequence[np.ndarray], photos: Int[np.ndarray, "N"]) -> Guesses:
        sizes = np.array([images[index].shape[:2] for index in photos], np.float64).reshape(-1, 2)
        return self._look(images, photos, self._affine(sizes[:, ::-1] / 2.0, sizes.max(1)))

    def _search(self, images: Sequence[np.ndarray], photos: Int[np.ndarray, "N"]) -> Guesses:
        """Best window of each photo, among a grid of overlapping squares and the boxes of OpenCV's face cascade."""
        windows = [(int(index), *window) for index in photos for window in search_windows(images[index])]
        table = np.array(windows, np.float64)
        which = table[:, 0].astype(np.int64)
        guesses = self._look(images, which, self._affine(table[:, 1:3], table[:, 3]))
        rank = guesses.rank()
        best = [rows[rank[rows].argmax()] for rows in (np.flatnonzero(which == index) for index in photos)]
        return guesses.take(np.array(best))

    def _refine(self, images: Sequence[np.ndarray], guesses: Guesses) -> Guesses:
        for step in range(REFINEMENTS):
            centre, side, angle = tight_frame(guesses.points, self.mean_shape)
            side = np.maximum(side, MIN_POINT_SPREAD_PX)
            photos = guesses.photo
            guesses = self._look(images, photos, self._affine(centre, side, angle))
            if step == REFINEMENTS - 1:
                mirrored = self._look(images, photos, self._affine(centre, side, angle, flip=True), mirrored=True)
                guesses = guesses.average(mirrored)
        return guesses

    def _affine(
        self, centre: np.ndarray, side: np.ndarray, angle: np.ndarray | None = None, *, flip: bool = False
    ) -> Float[np.ndarray, "N 3 3"]:
        upright = np.zeros(len(side)) if angle is None else angle
        return frame_affine(centre, side, upright, size_px=self.input_size_px, flip=np.full(len(side), flip))

    @torch.inference_mode()
    def _look(
        self,
        images: Sequence[np.ndarray],
        which: Int[np.ndarray, "N"],
        affine: Float[np.ndarray, "N 3 3"],
        *,
        mirrored: bool = False,
    ) -> Guesses:
        points, sigma, presence = [], [], []
        for start in range(0, len(which), self.batch_size):
            part = slice(start, start + self.batch_size)
            crops = cut_frames(images, which[part], affine[part], size_px=self.input_size_px)
            pixels = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2).float() / 255.0
            with torch.autocast(self.device, torch.bfloat16, enabled=self.half_precision):
                output: LandmarkOutput = self.network(pixels)
            points.append(output.points.double().cpu().numpy())
            sigma.append(output.log_sigma.exp().double().cpu().numpy())
            presence.append(output.presence.sigmoid().double().cpu().numpy())
        if not points:
            return Guesses(which, np.zeros((0, 68, 2)), np.zeros((0, 68)), np.zeros(0))
        found = np.concatenate(points)
        side = np.maximum(box_side(found), MIN_POINT_SPREAD_PX)
        relative = np.concatenate(sigma) * self.sigma_scale / side[:, None]
        order = FLIP_PERMUTATION if mirrored else np.arange(LANDMARK_COUNT)
        return Guesses(which, transform_points(affine, found)[:, order], relative[:, order], np.concatenate(presence))


def search_windows(image: UInt8[np.ndarray, "H W 3"]) -> list[tuple[float, float, float]]:
    """Squares (centre x, centre y, side) in which to look for a face that the whole photo did not show."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    windows = []
    for scale in (1.0, *WINDOW_SCALES):
        side = scale * shorter
        for y in _steps(float(height), side):
            windows += [(x, y, side) for x in _steps(float(width), side)]
    return windows + cascade_windows(image)


def cascade_windows(image: UInt8[np.ndarray, "H W 3"]) -> list[tuple[float, float, float]]:
    """Squares around the frontal faces that OpenCV's bundled Haar cascade sees."""
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"))
    grey = cv2.equalizeHist(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    boxes = cascade.detectMultiScale(grey, scaleFactor=1.15, minNeighbors=3, minSize=(32, 32))
    return [(x + w / 2.0, y + h / 2.0, CASCADE_MARGIN * max(w, h)) for x, y, w, h in boxes]


def _steps(extent: float, side: float) -> list[float]:
    """Centres of windows that cover the extent with half overlap."""
    count = 1 + int(np.ceil(max(0.0, extent - side) / (0.5 * side)))
    return np.linspace(side / 2.0, extent - side / 2.0, count).tolist() if count > 1 else [extent / 2.0]


def detector_content(
    network: HierarchicalNetwork, *, mean_shape: Float[np.ndarray, "68 2"], sigma_scale: float
) -> dict[str, Any]:
    """What a checkpoint must hold for `load_hierarchical`."""
    return {
        "kind": "hierarchical",
        "weights": network.state_dict(),
        "widths": network.widths.to_dict(),
        "input_size_px": network.input_size_px,
        "mean_shape": torch.from_numpy(np.asarray(mean_shape, np.float64)),
        "sigma_scale": float(sigma_scale),
    }


def load_hierarchical(content: dict[str, Any], **options: Any) -> HierarchicalDetector:
    """Detector from the content of its checkpoint; options as in `HierarchicalDetector`.

    Raises: ValueError if the content is not that of a landmark network.
    """
    if content.get("kind") != "hierarchical":
        raise ValueError(
            f"landmark checkpoint: kind {content.get('kind')!r}, expected 'hierarchical'; run train_detector again"
        )
    network = HierarchicalNetwork(content["input_size_px"], widths=NetworkWidths(**content["widths"]))
    network.load_state_dict(content["weights"])
    return HierarchicalDetector(
        network,
        input_size_px=content["input_size_px"],
        mean_shape=content["mean_shape"].numpy(),
        sigma_scale=content["sigma_scale"],
        **options,
    )
