"""The FAN landmark network of the face-alignment package, behind our protocol.

The package reads its weights from torch's cache; nothing is downloaded here. Its own read-out rounds points to whole
pixels of the photo, so crops and heat maps are handled here, framed as the package frames them.
Source: Bulat and Tzimiropoulos 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from models.landmarks.detector import Annotations, Detection, confidence_from_sigma
from models.landmarks.framing import cut_frames, frame_affine, landmark_box, transform_points
from models.landmarks.windows import cascade_windows

LANDMARK_WEIGHTS = "2DFAN4-11f355bf06.pth.tar"

FACE_WEIGHTS = "s3fd-619a316812.pth"
"""Of the package's face detector; where it is missing OpenCV's cascade finds the boxes."""

INPUT_PX = 256

CENTRE_RAISE = 0.12

SIDE_PER_BOX = 200.0 / 195.0
"""Side of the crop relative to width plus height of the box."""

SURE_SIGMA = 0.012
"""Expected error of a point whose heat map peaks at one, as a fraction of the face."""

MIN_RESPONSE = 0.05
"""Lower peaks say nothing about where the point is."""

CASCADE_SCORE = 1.0
"""OpenCV's cascade gives no probabilities: what it reports is a face."""


class FaceAlignmentDetector:
    """`LandmarkDetector` of FAN points; a point's confidence follows from the height of its heat map.

    Raises: FileNotFoundError naming the missing files and the folder they belong in.
    """

    def __init__(self, *, device: str = "cpu", folder: Path | None = None, min_face_score: float = 0.5) -> None:
        place = folder or Path(torch.hub.get_dir()) / "checkpoints"
        if not (place / LANDMARK_WEIGHTS).exists():
            raise FileNotFoundError(
                f"detector face_alignment: {LANDMARK_WEIGHTS} is missing in {place} (optionally with {FACE_WEIGHTS}); "
                "put the weights of the face-alignment package there, or use detector: hierarchical"
            )
        self.device = device
        self.min_face_score = min_face_score
        self.finds_faces = (place / FACE_WEIGHTS).exists()
        self.package = build_face_alignment(device=device, with_faces=self.finds_faces)

    def detect(
        self,
        images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        *,
        annotations: Annotations | None = None,  # noqa: ARG002
    ) -> list[Detection | None]:
        """The most certain face of each photo; annotations are not read."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: UInt8[np.ndarray, "H W 3"]) -> Detection | None:
        boxes = self._boxes(image)
        if not len(boxes) or boxes[:, 4].max() < self.min_face_score:
            return None
        box = boxes[boxes[:, 4].argmax()]
        width, height = box[2] - box[0], box[3] - box[1]
        centre = np.array([[(box[0] + box[2]) / 2.0, (box[1] + box[3]) / 2.0 - CENTRE_RAISE * height]])
        affine = frame_affine(centre, np.array([SIDE_PER_BOX * (width + height)]), np.zeros(1), size_px=INPUT_PX)
        crop = cut_frames([image], np.zeros(1, np.int64), affine, size_px=INPUT_PX)
        with torch.inference_mode():
            pixels = torch.from_numpy(crop).to(self.device).permute(0, 3, 1, 2).float() / 255.0
            answer = self.package.face_alignment_net(pixels)
        maps = (answer[-1] if isinstance(answer, list) else answer).float().cpu().numpy()
        cells, peaks = read_heat_maps(maps[0])
        points = transform_points(affine, cells[None] * (INPUT_PX / maps.shape[-1]))[0].astype(np.float32)
        sigma = SURE_SIGMA / np.sqrt(np.clip(peaks, MIN_RESPONSE, 1.0))
        confidence = confidence_from_sigma(sigma).astype(np.float32)
        return Detection(points, confidence, landmark_box(points[None])[0], float(box[4]))

    def _boxes(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "N 5"]:
        """x0, y0, x1, y1 and score of the faces."""
        if self.finds_faces:
            return np.array(self.package.face_detector.detect_from_image(image.copy()), np.float64).reshape(-1, 5)
        windows = cascade_windows(image)
        rows = [[x - s / 2, y - s / 2, x + s / 2, y + s / 2, CASCADE_SCORE] for x, y, s in windows]
        return np.array(rows, np.float64).reshape(-1, 5)


def read_heat_maps(maps: Float[np.ndarray, "L H W"]) -> tuple[Float[np.ndarray, "L 2"], Float[np.ndarray, "L"]]:
    """Centroid of the responses around each map's peak, in cells with centres at +0.5, and the height of the peak."""
    width = maps.shape[2]
    peak = maps.reshape(len(maps), -1).argmax(1)
    rows, columns = peak // width, peak % width
    padded = np.pad(np.clip(maps, 0.0, None), ((0, 0), (1, 1), (1, 1)))
    steps = np.arange(3)
    around = padded[
        np.arange(len(maps))[:, None, None], (rows[:, None] + steps)[:, :, None], (columns[:, None] + steps)[:, None]
    ]
    total = np.maximum(around.sum((1, 2)), 1e-9)
    x = (around.sum(1) * (steps - 1)).sum(1) / total
    y = (around.sum(2) * (steps - 1)).sum(1) / total
    cells = np.stack([columns + 0.5 + x, rows + 0.5 + y], 1)
    return cells, maps[np.arange(len(maps)), rows, columns]


def build_face_alignment(*, device: str, with_faces: bool) -> Any:
    """The package's own object, not compiled; without face weights its detector is a stub that is never asked."""
    from face_alignment import FaceAlignment, LandmarksType

    return FaceAlignment(
        LandmarksType.TWO_D,
        device=device,
        flip_input=False,
        face_detector="sfd" if with_faces else "folder",
        compile=False,
    )
