"""Bad cameras: what comes out is a photo of the size asked for, and the face can still be told."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.images import decode_stored
from tasks.spoil import spoil


def drawing(size_px: int) -> np.ndarray:
    image = np.full((size_px, size_px, 3), 200, np.uint8)
    image[size_px // 4 : 3 * size_px // 4, size_px // 4 : 3 * size_px // 4] = (60, 40, 30)
    return image


@pytest.mark.parametrize("face_px", [22.0, 60.0, 120.0])
def test_the_square_is_still_there(face_px: float) -> None:
    levels = set()
    for number in range(20):
        photo = decode_stored(spoil(drawing(256), np.random.default_rng(number), size_px=128, face_px=face_px))
        assert photo.shape == (128, 128, 3)
        inside, outside = photo[48:80, 48:80].mean(), np.concatenate([photo[:16], photo[-16:]]).mean()
        assert outside - inside > 10
        levels.add(round(float(outside)))
    assert len(levels) > 10


def test_some_photos_are_grey_and_files_differ_in_size() -> None:
    grey, sizes = 0, []
    for number in range(80):
        content = spoil(drawing(128), np.random.default_rng(number), size_px=64, face_px=40.0)
        photo = decode_stored(content).astype(int)
        grey += bool(np.ptp(photo, axis=2).max() <= 2)
        sizes.append(len(content))
    assert 2 <= grey <= 20
    assert max(sizes) > 3 * min(sizes)


def test_same_stream_same_file() -> None:
    first, second = (spoil(drawing(128), np.random.default_rng(3), size_px=64, face_px=40.0) for _ in range(2))
    assert first == second
