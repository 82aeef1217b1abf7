"""When lips touch: closure read from labels, lip distance read from predictions, and the loss that joins them.

Convention: coefficients lie in [0, 1] in the order of `ARKIT_NAMES`. Distances are fractions of the gap that a fully
open jaw makes between the inner lips, so that 1 is `jawOpen` alone and 0 or less is a closed mouth.
Source: China Unicom's patent on audio-driven animation (2024-02-02), second loss; the distance's weights, which it does
not give, are measured on the face model in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.face.morphable import MorphableModel
from models.face.procedural_expressions import ARKIT_NAMES

PATENT_SHAPES = (
    *("jawOpen", "mouthClose", "mouthShrugUpper", "mouthShrugLower"),
    *("mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight"),
)
"""What the patent's lip distance consists of."""

EXTENDED_SHAPES = (
    *PATENT_SHAPES,
    *("mouthFunnel", "mouthRollLower", "mouthRollUpper", "mouthPressLeft", "mouthPressRight"),
)
"""With the shapes that part or join lips as well and that the patent leaves out."""

MODES = {"patent": PATENT_SHAPES, "extended": EXTENDED_SHAPES}

ICT_GAPS = {
    "jawOpen": 1.0,
    "mouthClose": -1.286,
    "mouthShrugUpper": 0.158,
    "mouthShrugLower": -0.221,
    "mouthLowerDownLeft": 0.101,
    "mouthLowerDownRight": 0.101,
    "mouthUpperUpLeft": 0.121,
    "mouthUpperUpRight": 0.121,
    "mouthFunnel": 0.375,
    "mouthRollLower": -0.085,
    "mouthRollUpper": 0.055,
    "mouthPressLeft": -0.038,
    "mouthPressRight": -0.038,
}
"""Gap that each shape opens on ICT-FaceKit, for face models without ARKit's shapes."""

UPPER_INNER_LIP, LOWER_INNER_LIP = (61, 62, 63), (67, 66, 65)
"""Landmarks that lie over each other."""

CLOSED_BELOW = 0.03
"""Lips nearer than this count as closed."""

JAW_AT_REST = 0.05
"""Below this opening of the jaw its ratio to `mouthClose` says nothing."""

RATIO_EPSILON = 1e-3
OPEN_RATIO, CLOSED_RATIO = 0.25, 0.75
"""Thresholds of `mouthClose` over `jawOpen` on ICT-FaceKit, whose lips meet at `ICT_MEETING_RATIO`."""

ICT_MEETING_RATIO = 1.0 / 1.286


@dataclass(frozen=True)
class LipCalibration:
    """How far each of the 52 shapes parts the lips of one face model."""

    gaps: Float[Tensor, "52"]
    """Signed, relative to `jawOpen`; zero for shapes that are not counted."""
    jaw_gap_mm: float
    """Gap of a fully open jaw."""
    face_model: str
    """Hash of the model that was measured, empty for the built-in numbers."""

    @property
    def meeting_ratio(self) -> float:
        """`mouthClose` over `jawOpen` where the lips of this face meet."""
        return 1.0 / max(0.1, -float(self.gaps[ARKIT_NAMES.index("mouthClose")]))


def calibrate_lips(model: MorphableModel, *, mode: str = "extended") -> LipCalibration:
    """Measure the inner-lip gap that each shape opens on a face model.

    Degenerate: a model without `jawOpen` and `mouthClose`, or whose jaw parts no lips, gets the numbers of ICT-FaceKit.
    Raises: ValueError if there is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"lip distance {mode!r} is unknown, expected one of {', '.join(MODES)}")
    basis = model.landmark_expression_basis[..., 1].double()
    found = basis[:, list(UPPER_INNER_LIP)].mean(1) - basis[:, list(LOWER_INNER_LIP)].mean(1)
    measured = dict(zip(model.expression_names, found.tolist(), strict=True))
    jaw_mm = measured.get("jawOpen", 0.0)
    usable = jaw_mm > 1.0 and measured.get("mouthClose", 0.0) < -0.1 * jaw_mm
    shares = {name: gap / jaw_mm for name, gap in measured.items()} if usable else ICT_GAPS
    gaps = [shares.get(name, 0.0) if name in MODES[mode] else 0.0 for name in ARKIT_NAMES]
    return LipCalibration(
        gaps=torch.tensor(gaps, dtype=torch.float32),
        jaw_gap_mm=jaw_mm if usable else 28.9,
        face_model=model.content_hash() if usable else "",
    )


def lip_distance(coefficients: Float[Tensor, "*batch 52"], gaps: Float[Tensor, "52"]) -> Float[Tensor, "*batch"]:
    """Gap between the inner lips as a fraction of that of an open jaw; negative where lips are pressed together."""
    return coefficients @ gaps


def lip_closure(
    coefficients: Float[Tensor, "*batch 52"],
    calibration: LipCalibration,
    *,
    open_ratio: float = OPEN_RATIO,
    closed_ratio: float = CLOSED_RATIO,
    closed_distance: float = CLOSED_BELOW,
) -> Float[Tensor, "*batch"]:
    """How closed the lips of a label are, 0 open to 1 closed, from the ratio of `mouthClose` to `jawOpen`.

    Between the two thresholds, which hold for ICT-FaceKit and scale with the ratio at which the lips of this face
    meet, the ratio counts linearly. With the jaw at rest the ratio says nothing, and lips are closed where their
    distance is next to none.
    """
    jaw = coefficients[..., ARKIT_NAMES.index("jawOpen")]
    ratio = coefficients[..., ARKIT_NAMES.index("mouthClose")] / (jaw + RATIO_EPSILON)
    scale = calibration.meeting_ratio / ICT_MEETING_RATIO
    low, high = open_ratio * scale, closed_ratio * scale
    by_ratio = ((ratio - low) / (high - low)).clamp(0.0, 1.0)
    distance = lip_distance(coefficients, calibration.gaps.to(coefficients))
    return torch.where(jaw < JAW_AT_REST, (distance < closed_distance).to(coefficients), by_ratio)


def closing_loss(
    predicted: Float[Tensor, "*batch"],
    closure: Float[Tensor, "*batch"],
    *,
    bilabial: Bool[Tensor, "*batch"],
    bilabial_weight: float = 3.0,
    tolerance: float = 0.02,
) -> Float[Tensor, "*batch"]:
    """Squared lip distance beyond a tolerance where the label's lips are closed, more on /p b m/."""
    weight = torch.where(bilabial, bilabial_weight, 1.0)
    return weight * closure * (predicted - tolerance).clamp_min(0.0).square()


def opening_loss(
    predicted: Float[Tensor, "*batch"],
    target: Float[Tensor, "*batch"],
    closure: Float[Tensor, "*batch"],
    *,
    sharpness: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Squared difference of lip distances where the label's lips are open, the more the nearer they are.

    Source: NVIDIA Audio2Face-3D weights lip distance by the same exponential.
    """
    return (1.0 - closure) * torch.exp(-sharpness * target.clamp_min(0.0)) * (predicted - target).square()


@dataclass(frozen=True)
class ClosureCounts:
    """Frames from which precision and recall come; sums over clips are plain additions."""

    true: int
    """Closed in the label."""
    found: int
    """Of these, predicted as closed within the tolerance."""
    predicted: int
    """Closed in the prediction."""
    right: int
    """Of these, closed in the label within the tolerance."""

    def __add__(self, other: ClosureCounts) -> ClosureCounts:
        return ClosureCounts(
            self.true + other.true,
            self.found + other.found,
            self.predicted + other.predicted,
            self.right + other.right,
        )

    @property
    def precision(self) -> float:
        """Share of the predicted closures that are closures; NaN without any."""
        return self.right / self.predicted if self.predicted else float("nan")

    @property
    def recall(self) -> float:
        """Share of the closures that were predicted; NaN without any."""
        return self.found / self.true if self.true else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean; 0 where nothing is right, NaN where there is nothing to find."""
        if not self.true:
            return float("nan")
        precision = self.precision if self.predicted else 0.0
        return 2.0 * precision * self.recall / (precision + self.recall) if precision + self.recall else 0.0


def count_closures(
    predicted: Float[Tensor, "T"],
    target: Float[Tensor, "T"],
    *,
    considered: Bool[Tensor, "T"] | None = None,
    threshold: float = CLOSED_BELOW,
    tolerance_frames: int = 1,
) -> ClosureCounts:
    """Compare closed frames of two curves of lip distance, forgiving a shift of some frames.

    Only `considered` frames are counted; their partners may lie beside them.
    """
    closed, truth = predicted < threshold, target < threshold
    counted = torch.ones_like(truth) if considered is None else considered
    return ClosureCounts(
        true=int((truth & counted).sum()),
        found=int((truth & widen(closed, tolerance_frames) & counted).sum()),
        predicted=int((closed & counted).sum()),
        right=int((closed & widen(truth, tolerance_frames) & counted).sum()),
    )


def widen(frames: Bool[Tensor, "*batch T"], margin: int) -> Bool[Tensor, "*batch T"]:
    """The frames and `margin` more on each side."""
    flat = frames.reshape(-1, 1, frames.shape[-1]).float()
    return torch.nn.functional.max_pool1d(flat, 2 * margin + 1, 1, margin).bool().view(frames.shape)
