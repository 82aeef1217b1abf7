"""Which of the faces of a photo are meant, and which are none: how sure each is, beside the surest one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from models.landmarks.detector import Detection, confidence_from_sigma
from models.landmarks.guesses import Guesses

SURE_SHARE = 0.5
"""Of the surest face's certainty, what the largest must reach to be the best one."""

DOUBTFUL_SHARE = 0.4
"""The same for being a face at all: on portraits, what was none beside a face had 0.01 to 0.5 of its certainty."""

FIRST_LOOK_SHARE = 0.2
"""The same after the first look, half as strict because it is framed worse; what fails is not looked at again."""


def best_face(faces: Sequence[Detection]) -> Detection | None:
    """The largest face, unless another is more than twice as sure that it is one and where its points lie."""
    enough = SURE_SHARE * max(map(_certainty, faces), default=0.0)
    return next((one for one in faces if _certainty(one) >= enough), None)


def without_doubtful(faces: list[Detection]) -> list[Detection]:
    """The faces without those that are far less sure than the surest beside them: knees, hands, patterns."""
    enough = DOUBTFUL_SHARE * max(map(_certainty, faces), default=0.0)
    return [one for one in faces if _certainty(one) >= enough]


def are_doubtful(guesses: Guesses, *, share: float) -> Bool[np.ndarray, "N"]:
    """Guesses that are less than this share as certain as the most certain one of their photo."""
    certainty = guesses.presence * mean_confidence(guesses)
    most = np.zeros(1 + guesses.photo.max(initial=0))
    np.maximum.at(most, guesses.photo, certainty)
    return certainty < share * most[guesses.photo]


def mean_confidence(guesses: Guesses) -> Float[np.ndarray, "N"]:
    """Of all points of each guess."""
    return confidence_from_sigma(guesses.sigma).mean(1)


def _certainty(face: Detection) -> float:
    return face.face_score * float(face.confidence.mean())
