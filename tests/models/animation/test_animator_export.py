from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.animation.animator_export import export_animator
from models.onnx_graph import TOLERANCE, open_session
from tests.models.animation.test_animator import small_animator


@pytest.mark.slow
def test_the_graph_takes_speech_of_any_length(tmp_path: Path) -> None:
    animator = small_animator()
    assert export_animator(animator, tmp_path / "animator.onnx") < TOLERANCE
    session = open_session(tmp_path / "animator.onnx")
    for frames in (3, 77):
        features = torch.randn(1, 2 * frames, 8)
        manner = torch.tensor([2.0, 1.0]).expand(1, 2 * frames, 2)
        (found,) = session.run(None, {"features": features.numpy(), "manner": manner.numpy()})
        expected = animator(features, torch.tensor([2]), torch.tensor([1])).detach()
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)
