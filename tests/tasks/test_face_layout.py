"""Eyeballs and teeth of real face models are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.face.formats import build_face_model
from models.face.procedural import procedural_face
from tasks.face_layout import CHANNELS, FaceLayout


def test_eyes_of_the_procedural_face() -> None:
    model = procedural_face(identity_modes=2)
    layout = FaceLayout(model)
    eyes = model.landmark_mean[36:48].reshape(2, 6, 3).mean(1).numpy()
    assert layout.balls.shape == (2, 4)
    np.testing.assert_allclose(layout.balls[:, :2], eyes[:, :2], atol=4.0)
    assert (layout.balls[:, 2] < eyes[:, 2]).all()
    np.testing.assert_array_equal(layout.weights[:, CHANNELS.index("ball")], layout.weights[:, CHANNELS.index("eyes")])


def test_eyes_and_teeth_of_ict(shared_data: Path) -> None:
    path = shared_data / "face_models" / "ict_facekit_full_f16.npz"
    model = build_face_model("ict", path=path, region="full", identity_modes=1)
    layout = FaceLayout(model)
    assert layout.balls.shape == (2, 4)
    np.testing.assert_allclose(np.abs(layout.balls[:, 0]), 31.0, atol=1.0)
    # Cornea and iris are two pieces with one centre; the sockets around them are no balls.
    assert 13.0 < layout.balls[0, 3] < 16.0
    teeth = model.mean.numpy()[layout.weights[:, CHANNELS.index("teeth")] > 0]
    lips = model.landmark_mean[60:68].numpy()
    assert len(teeth) > 3000
    assert abs(teeth[:, 1].mean() - lips[:, 1].mean()) < 12.0
    assert teeth[:, 2].max() < lips[:, 2].max() + 1.0
