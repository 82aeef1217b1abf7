"""The benchmark of landmark detectors: what its rows hold, and what was measured. No timing is judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import landmarks
from benchmarks.landmarks import drawn_photo, fan_network, measure, missed_aims, random_content
from models.landmarks.hierarchical import NetworkWidths

SMALL = NetworkWidths(stem=8, patch=16, second=24, third=32, level_two=32, fused=24, hidden=64)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        # The package's network takes half a second per look.
        patch.setattr(landmarks, "fan_network", lambda: torch.nn.Conv2d(3, 4, 3))
        before = torch.get_num_threads()
        try:
            return measure(random_content(widths=SMALL), drawn_photo(), seconds=0.01, made_up=True)
        finally:
            torch.set_num_threads(before)


def test_a_row_per_detector(rows: list[dict[str, Any]]) -> None:
    assert [row["detector"] for row in rows] == ["hierarchical", "hierarchical_torch", "face_alignment"]
    for row in rows[:2]:
        assert row["boxes"] == "finder: 1"
        assert 0.0 < row["ms_per_face"] < row["ms_per_photo"]
        assert row["times_faster"] == pytest.approx(rows[2]["ms_per_face"] / row["ms_per_face"], rel=0.1, abs=0.1)
    assert rows[2]["ms_per_photo"] is None
    assert rows[0]["parameters"] == rows[1]["parameters"] > 10_000
    assert rows[2]["parameters"] == 3 * 4 * 9 + 4


def test_fan_is_the_packages_own() -> None:
    network = fan_network()
    # As the paper has it: four hourglasses, 24 million parameters.
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(24e6, rel=0.02)
    assert not network.training


def test_missed_aims_are_told_of_our_portable_detector_alone() -> None:
    rows: list[dict[str, Any]] = [
        {"detector": "hierarchical", "ms_per_face": 6.0, "ms_per_photo": 14.0, "times_faster": 49.0},
        {"detector": "hierarchical_torch", "ms_per_face": 60.0, "ms_per_photo": 140.0, "times_faster": 4.0},
    ]
    assert missed_aims(rows) == ["ms_per_face 6.0, aim 5.0", "49.0 times FAN, aim 50"]


def test_the_photo_has_the_size_that_the_heading_says() -> None:
    assert drawn_photo().shape == (480, 640, 3)
    assert np.ptp(drawn_photo()) > 200
