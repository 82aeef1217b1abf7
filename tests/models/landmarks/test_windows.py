"""Search windows."""

from __future__ import annotations

import numpy as np
import pytest

from models.landmarks.windows import search_windows


@pytest.mark.parametrize(("height", "width"), [(60, 60), (90, 160), (200, 70)])
def test_windows_of_each_size_cover_the_photo(height: int, width: int) -> None:
    windows = np.array(search_windows(np.zeros((height, width, 3), np.uint8)))
    for scale in (1.0, 0.7, 0.5):
        rows = windows[np.isclose(windows[:, 2], scale * min(height, width))]
        seen = np.zeros((height, width), bool)
        for x, y, side in rows:
            low = np.rint([y - side / 2, x - side / 2]).astype(int)
            high = np.rint([y + side / 2, x + side / 2]).astype(int)
            seen[max(0, low[0]) : high[0], max(0, low[1]) : high[1]] = True
        assert seen.all()


def test_a_square_photo_has_one_window_of_its_size() -> None:
    windows = search_windows(np.zeros((80, 80, 3), np.uint8))
    assert windows[0] == (40.0, 40.0, 80.0)
    assert sum(side == 80.0 for _, _, side in windows) == 1
