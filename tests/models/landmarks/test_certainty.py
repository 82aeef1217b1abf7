"""The largest face that is sure enough, and what is no face beside a surer one."""

from __future__ import annotations

import numpy as np

from models.landmarks.certainty import are_doubtful, best_face, without_doubtful
from models.landmarks.detector import Detection
from tests.models.landmarks.test_guesses import guesses


def test_the_best_face_is_large_and_sure() -> None:
    def face(score: float, confidence: float) -> Detection:
        return Detection(np.zeros((68, 2)), np.full(68, confidence), np.zeros(4), score)

    doubtful, sure, fair = face(0.6, 0.3), face(0.99, 0.9), face(0.9, 0.55)
    assert best_face([doubtful, sure]) is sure
    assert best_face([fair, sure]) is fair
    assert best_face([]) is None
    hardly = face(0.9, 0.1)
    assert without_doubtful([hardly, fair, sure]) == [fair, sure]
    assert without_doubtful([hardly]) == [hardly]


def test_guesses_are_compared_with_those_of_their_photo() -> None:
    # An expected error of 0.02 is a confidence of one half, 0.06 of a tenth.
    table = guesses((0, 0, 100, 0.9, 0.02), (0, 300, 90, 0.8, 0.06), (1, 0, 80, 0.9, 0.06), (0, 600, 90, 0.2, 0.02))
    assert are_doubtful(table, share=0.2).tolist() == [False, True, False, False]
    assert are_doubtful(table, share=0.25).tolist() == [False, True, False, True]
    assert are_doubtful(table.take(np.zeros(0, np.int64)), share=0.2).tolist() == []
