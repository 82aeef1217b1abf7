from __future__ import annotations

import numpy as np
import torch

from models.animation.portrait import BACKGROUND, Framing, draw_faces
from tests.speaking_face import speaking_face


def test_the_face_fills_the_frame_upright() -> None:
    model = speaking_face()
    framing = Framing.around(model.mean)
    opened = model.vertices(torch.zeros(1, 2), torch.eye(7)[:1])
    pictures = draw_faces(
        torch.cat([model.mean[None], opened]), model.triangles, model.albedo_mean, framing=framing, size_px=64
    )
    assert pictures.shape == (2, 64, 64, 3)
    assert pictures.dtype == np.uint8
    face = np.abs(pictures[0].astype(int) - round(255 * BACKGROUND)).max(2) > 8
    rows = np.nonzero(face.any(1))[0]
    assert 6 <= rows.min() <= 10
    assert 53 <= rows.max() <= 57
    changed = np.abs(pictures[0].astype(int) - pictures[1]).max(2) > 8
    assert np.nonzero(changed.any(1))[0].min() > 30
