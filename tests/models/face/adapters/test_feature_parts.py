from __future__ import annotations

import numpy as np
import pytest

from models.face.adapters.assemble import procedural_donor
from models.face.adapters.feature_parts import feature_parts
from models.types import PART_NAMES


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ((0.0, -40.0, 40.0), "lips"),
        ((32.0, 32.0, 25.0), "eyes"),
        ((-32.0, 32.0, 25.0), "eyes"),
        ((0.0, 0.0, 50.0), "skin"),
        ((0.0, -70.0, 30.0), "skin"),
        ((0.0, -40.0, -60.0), "skin"),
        ((32.0, 32.0, -90.0), "skin"),
    ],
)
def test_places_of_a_face_have_their_part(place: tuple[float, float, float], part: str) -> None:
    landmarks = procedural_donor().landmark_mean.numpy().astype(np.float64)
    assert PART_NAMES[feature_parts(np.array([place]), landmarks)[0]] == part


def test_vertices_of_a_brow_are_brows() -> None:
    landmarks = procedural_donor().landmark_mean.numpy().astype(np.float64)
    between = (landmarks[18] + landmarks[19]) / 2
    assert feature_parts(
        np.stack([between, between + [0.0, 3.0, 0.0], between + [0.0, 9.0, 0.0]]), landmarks
    ).tolist() == [
        PART_NAMES.index("brows"),
        PART_NAMES.index("brows"),
        PART_NAMES.index("skin"),
    ]


def test_the_procedural_faces_own_lips_and_eyes_are_found() -> None:
    donor = procedural_donor()
    found = feature_parts(donor.mean.numpy(), donor.landmark_mean.numpy())
    own = donor.parts.numpy()
    lips, eyes = PART_NAMES.index("lips"), PART_NAMES.index("eyes")
    assert (found[own == lips] == lips).mean() > 0.8
    front = (own == eyes) & (donor.mean.numpy()[:, 2] > 18.0)
    assert np.isin(found[front], [eyes, PART_NAMES.index("skin")]).all()


def test_labels_follow_a_shift_of_the_whole() -> None:
    donor = procedural_donor()
    mean, landmarks = donor.mean.numpy().astype(np.float64), donor.landmark_mean.numpy().astype(np.float64)
    shift = np.array([100.0, -50.0, 30.0])
    assert np.array_equal(feature_parts(mean + shift, landmarks + shift), feature_parts(mean, landmarks))
