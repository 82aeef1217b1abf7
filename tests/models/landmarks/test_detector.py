"""Builders, confidence, given annotations."""

from __future__ import annotations

import numpy as np
import pytest

from models.landmarks.detector import build_detector, confidence_from_sigma

PHOTO = np.zeros((10, 12, 3), np.uint8)


def test_confidence_convention() -> None:
    np.testing.assert_allclose(confidence_from_sigma(np.array([0.0, 0.01, 0.02, 0.06])), [1.0, 0.8, 0.5, 0.1])


class TestProvided:
    def test_hands_on_annotations(self) -> None:
        points = np.random.default_rng(0).uniform(0, 10, (68, 2)).astype(np.float32)
        found = build_detector("provided").detect([PHOTO, PHOTO], annotations=[points, None])
        assert found[1] is None
        assert found[0] is not None
        np.testing.assert_array_equal(found[0].landmarks, points)
        np.testing.assert_allclose(found[0].box, [*points.min(0), *points.max(0)])
        np.testing.assert_allclose(found[0].confidence, 0.8)
        assert found[0].face_score == 1.0

    def test_needs_one_entry_per_photo(self) -> None:
        with pytest.raises(ValueError, match="none annotations for 1 photos"):
            build_detector("provided").detect([PHOTO])


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'dlib' is unknown, expected one of provided, hierarchical, face_alignment"):
        build_detector("dlib")


def test_checkpoint_of_something_else() -> None:
    with pytest.raises(ValueError, match="kind 'reconstructor', expected 'hierarchical'"):
        build_detector("hierarchical", content={"kind": "reconstructor"})
