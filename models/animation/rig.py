"""Any ARKit-named face under the 52 coefficients: its shapes in our order, and curves at other frame rates.

Convention: coefficients in the order of `ARKIT_NAMES`; frame t of a curve at rate r is centred at (t + 0.5) / r s.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.face.morphable import MorphableModel
from models.face.procedural_expressions import ARKIT_NAMES

NEEDED = ("jawOpen", "mouthClose", "mouthFunnel", "mouthPucker")
"""Shapes without which a face cannot speak."""


def arkit_basis(model: MorphableModel) -> Float[Tensor, "52 V 3"]:
    """Displacements of the 52 shapes at full activation; zero for those that the model lacks.

    Shapes that a model halves, such as browInnerUpLeft and browInnerUpRight, are added up.
    Raises: ValueError if the model has no ARKit-named expressions.
    """
    places = {name: place for place, name in enumerate(model.expression_names)}
    missing = [name for name in NEEDED if name not in places]
    if missing:
        raise ValueError(
            f"face model {model.name}: has no expressions {', '.join(missing)}, expected ARKit's names as in the "
            "procedural model or ICT-FaceKit; reconstruct the face with one of these"
        )
    shapes = []
    for name in ARKIT_NAMES:
        found = [places[part] for part in (name, f"{name}Left", f"{name}Right") if part in places]
        shapes.append(model.expression_basis[found].sum(0) if found else torch.zeros_like(model.mean))
    return torch.stack(shapes)


def resample_curves(
    curves: Float[np.ndarray, "T C"], *, rate: float | int, new_rate: float | int, frames: int | None = None
) -> Float[np.ndarray, "N C"]:
    """Curves at another frame rate, interpolated linearly between frame centres and held beyond the first and last.

    `frames` of the result; by default as many as fit into the same duration, one at least.
    """
    count = max(1, round(len(curves) * new_rate / rate)) if frames is None else frames
    times = (np.arange(count) + 0.5) / new_rate
    known = (np.arange(len(curves)) + 0.5) / rate
    columns = [np.interp(times, known, column) for column in curves.T]
    return np.stack(columns, 1).astype(np.float32)
