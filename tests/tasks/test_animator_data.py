from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.training.loop import seeded
from tasks.animator_data import draw_windows, manner_index, prepare_clips
from tasks.train_animator import animator_settings
from tests.spoken_toy import CLOSED, toy_params, toy_workspace


def test_clips_come_with_features_and_marks(tmp_path: Path) -> None:
    clips = prepare_clips(toy_workspace(tmp_path), splits=["train", "validation"], encoder="log_mel")
    assert len(clips) == 8
    clip = clips[0]
    assert clip.features.shape == (2 * clip.frames, 80)
    assert bool(clip.bilabial[:CLOSED].all())
    assert not bool(clip.bilabial[CLOSED])
    assert bool(clip.spoken.all())


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no clips of the split holdout"):
        prepare_clips(toy_workspace(tmp_path), splits=["holdout"], encoder="log_mel")


def test_windows(tmp_path: Path) -> None:
    clips = prepare_clips(toy_workspace(tmp_path), splits=["train"], encoder="log_mel")
    settings = animator_settings(toy_params().train_animator, clips)

    def draw(seed: int, window_s: float, unknown_share: float = 0.0):  # type: ignore[no-untyped-def]
        generator = seeded(seed, 0)
        return draw_windows(
            clips, 16, settings=settings, window_s=window_s, unknown_share=unknown_share, generator=generator
        )

    batch = draw(0, 1.0)
    assert batch.features.shape == (16, 100, 80)
    assert batch.coefficients.shape == (16, 50, 52)
    assert bool((batch.known == 1.0).all())
    assert set(batch.emotion.tolist()) == {1, 2}
    assert torch.equal(batch.features, draw(0, 1.0).features)
    assert not torch.equal(batch.features, draw(1, 1.0).features)
    assert set(draw(0, 1.0, 1.0).emotion.tolist()) == {0}
    # Behind the end of a clip nothing is known.
    long = draw(0, 4.0)
    assert bool((long.known[:, clips[0].frames :] == 0.0).all())
    assert bool((long.known[:, : clips[0].frames] == 1.0).all())


def test_strange_emotions_count_as_unknown(tmp_path: Path) -> None:
    clips = prepare_clips(toy_workspace(tmp_path), splits=["train"], encoder="log_mel")
    settings = animator_settings(toy_params().train_animator, [clip for clip in clips if clip.clip.emotion == "joy"])
    assert [manner_index(clip.clip, settings) for clip in clips[:2]] == [(0, 1), (1, 1)]
