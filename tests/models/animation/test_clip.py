from __future__ import annotations

import pytest

from models.animation.clip import frame_count, frame_times


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (319, 0), (320, 1), (16_000, 50), (16_100, 50)])
def test_only_whole_frames_count(samples: int, frames: int) -> None:
    assert frame_count(samples) == frames


def test_a_frame_stands_for_its_middle() -> None:
    assert frame_times(3).tolist() == pytest.approx([0.01, 0.03, 0.05])
