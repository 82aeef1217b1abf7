"""How near predicted curves come to true ones: on the coefficients, on the lips, on the upper face, and over time.

Convention: curves (T, 52) at 50 Hz in the order of `ARKIT_NAMES`; vertex errors are those of the face that wears them,
in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.animation.rig import arkit_basis
from models.face.morphable import MorphableModel
from models.face.procedural_expressions import ARKIT_NAMES

LIP_RADIUS_MM = 8.0
"""A face model that does not say which vertices are lips has them this near to the points of the mouth."""

OUTER_AND_INNER_LIPS = range(48, 68)
NOSE_TIP = 30

MOUTH_AND_JAW = torch.tensor([name.startswith(("mouth", "jaw")) for name in ARKIT_NAMES])


@dataclass(frozen=True)
class SpeakingFace:
    """What the shapes do to two regions of a face."""

    lips: Float[Tensor, "52 L 3"]
    upper: Float[Tensor, "52 U 3"]

    @classmethod
    def of(cls, model: MorphableModel) -> SpeakingFace:
        """The lips, and the skin above the tip of the nose.

        Raises: ValueError if the model has no ARKit-named expressions.
        """
        basis = arkit_basis(model)
        lips = model.part("lips")
        if not bool(lips.any()):
            mouth = model.landmark_mean[list(OUTER_AND_INNER_LIPS)]
            lips = torch.cdist(model.mean, mouth).amin(1) < LIP_RADIUS_MM
        skin = model.part("skin") | model.part("brows")
        upper = skin & (model.mean[:, 1] > model.landmark_mean[NOSE_TIP, 1])
        return cls(lips=basis[:, lips], upper=basis[:, upper])


def lip_vertex_error(
    predicted: Float[Tensor, "T 52"], target: Float[Tensor, "T 52"], face: SpeakingFace
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """Largest squared distance (mm²) and largest distance (mm) of a lip vertex, per frame.

    Source: the published numbers of CodeTalker and its kin are the mean over frames of the squared one.
    """
    moved = torch.einsum("tc,cvx->tvx", predicted - target, face.lips)
    largest = moved.square().sum(2).amax(1)
    return largest, largest.sqrt()


def upper_face_deviation(predicted: Float[Tensor, "T 52"], target: Float[Tensor, "T 52"], face: SpeakingFace) -> float:
    """Mean over the upper face of the standard deviation of squared motion (mm²), of the truth less the prediction.

    Positive where the prediction moves less. Source: FDD of CodeTalker.
    """
    if len(target) < 2:
        return 0.0

    def dynamics(curves: Tensor) -> Tensor:
        return torch.einsum("tc,cvx->tvx", curves, face.upper).square().sum(2).std(0)

    return float((dynamics(target) - dynamics(predicted)).mean())


def jitter(curves: Float[Tensor, "T C"], known: Bool[Tensor, "C"]) -> float:
    """Mean size of the second difference between frames, over known coefficients; 0 for less than three frames."""
    return float(curves[:, known].diff(n=2, dim=0).abs().mean()) if len(curves) > 2 and bool(known.any()) else 0.0
