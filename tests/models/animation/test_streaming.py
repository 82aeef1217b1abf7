from __future__ import annotations

import pytest
import torch

from models.animation import streaming
from models.animation.animator import Animator
from models.animation.log_mel import log_mel
from models.animation.streaming import AnimationStream, animate_features
from tests.models.animation.test_animator import small_animator


def hearing() -> Animator:
    return small_animator(feature_size=80)


def speech(samples: int) -> torch.Tensor:
    """Noise that grows louder, so that the level that is heard changes all the time."""
    return torch.linspace(0.001, 0.3, samples) * torch.randn(samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("samples", "chunk"), [(40_000, 8_000), (40_123, 777), (16_000, 16_000), (1_000, 100), (319, 64)]
)
def test_chunks_give_what_the_whole_gives(samples: int, chunk: int) -> None:
    animator, sound = hearing(), speech(samples)
    whole = animate_features(animator, log_mel(sound), emotion=1)
    stream = AnimationStream(animator, emotion=1)
    found = torch.cat([*(stream.push(piece) for piece in sound.split(chunk)), stream.finish()])
    assert found.shape == whole.shape == (samples // 320, 52)
    assert torch.allclose(found, whole, atol=2e-5)


def test_frames_come_as_soon_as_their_context_is_there() -> None:
    animator = hearing()
    stream = AnimationStream(animator)
    first = stream.push(speech(8_000))
    assert len(first) >= 25 - stream.delay_frames
    assert stream.delay_frames == animator.settings.context_frames[1] + 1
    assert len(stream.push(torch.zeros(0))) == 0


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    animator, features = hearing(), torch.randn(240, 80)
    whole = animator(features[None], torch.tensor([2]), torch.tensor([0]))[0]
    monkeypatch.setattr(streaming, "PIECE_FRAMES", 37)
    assert torch.allclose(animate_features(animator, features, emotion=2), whole, atol=1e-5)


def test_a_stream_needs_features_of_its_own() -> None:
    animator = small_animator(features_per_frame=1)
    with pytest.raises(ValueError, match="needs whole recordings"):
        AnimationStream(animator)
