from __future__ import annotations

import pytest
import torch

from models.animation.animator import (
    CONVOLUTION_REACH,
    Animator,
    AnimatorSettings,
    animator_content,
    load_animator,
    reach_of_layers,
)


def small_animator(**changes: object) -> Animator:
    torch.manual_seed(0)
    settings = {
        "emotions": ("anger", "joy"),
        "styles": ("plain",),
        "width": 16,
        "layers": 2,
        "heads": 2,
        "feed_forward": 16,
        "emotion_size": 4,
        "style_size": 4,
        "feature_size": 8,
        **reach_of_layers(layers=2, position_kernel=9, memory=20, lookahead=8),
        **changes,
    }
    animator = Animator(AnimatorSettings(**settings)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        animator.output.weight.normal_()
        for block in animator.blocks:
            block.bias.normal_()
    return animator


NONE = torch.zeros(1, dtype=torch.long)


def test_frames_and_range() -> None:
    found = small_animator()(torch.randn(3, 140, 8), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])).detach()
    assert found.shape == (3, 70, 52)
    assert 0.0 <= float(found.min()) < float(found.max()) <= 1.0


@pytest.mark.parametrize("frames", [1, 31, 32, 33, 100])
def test_blocks_give_what_one_block_gives(frames: int) -> None:
    animator, features = small_animator(), torch.randn(2, 2 * frames, 8)
    names = torch.tensor([1, 2])
    whole = animator(features, names, names * 0, in_one_block=True)
    assert torch.allclose(animator(features, names, names * 0), whole, atol=1e-6)


def test_a_frame_depends_on_its_context_only() -> None:
    animator, features = small_animator(), torch.randn(1, 160, 8)
    past, future = animator.settings.context_frames
    changed = features.clone()
    changed[:, 80:82] += 1.0
    difference = (animator(features, NONE, NONE) - animator(changed, NONE, NONE)).abs().amax(2)[0]
    touched = difference.nonzero()[:, 0]
    assert 40 - future <= int(touched.min()) < 40 < int(touched.max()) <= 40 + past


def test_reach_stays_within_what_was_asked() -> None:
    for layers, lookahead in ((3, 15), (4, 6), (2, CONVOLUTION_REACH)):
        reach = reach_of_layers(layers=layers, position_kernel=31, memory=60, lookahead=lookahead)
        settings = AnimatorSettings(emotions=(), styles=(), layers=layers, **reach)
        assert settings.context_frames[1] <= lookahead
        assert settings.context_frames[0] <= 60
        assert reach["position_past"] + reach["position_future"] == 30
    with pytest.raises(ValueError, match="lookahead_s"):
        reach_of_layers(layers=2, position_kernel=31, memory=60, lookahead=1)


def test_emotion_and_style_matter() -> None:
    animator, features = small_animator(), torch.randn(1, 40, 8)
    plain = animator(features, NONE, NONE)
    assert not torch.allclose(plain, animator(features, NONE + 2, NONE))
    assert not torch.allclose(plain, animator(features, NONE, NONE + 1))


def test_names() -> None:
    animator = small_animator()
    assert (animator.emotion_index(None), animator.emotion_index("joy"), animator.style_index("plain")) == (0, 2, 1)
    with pytest.raises(ValueError, match="emotion 'glee' is unknown, expected one of anger, joy"):
        animator.emotion_index("glee")


def test_wrong_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 41, 8\), expected \(B, a multiple of 2, 8\)"):
        small_animator()(torch.randn(1, 41, 8), NONE, NONE)


def test_start_from_a_mean_face() -> None:
    animator = small_animator()
    mean = torch.linspace(0.05, 0.5, 52)
    with torch.no_grad():
        animator.output.weight.zero_()
    animator.start_from(mean)
    assert torch.allclose(animator(torch.randn(1, 8, 8), NONE, NONE)[0], mean.expand(4, 52), atol=1e-5)


def test_checkpoints_bring_the_network_back() -> None:
    animator, features = small_animator(), torch.randn(1, 20, 8)
    again = load_animator(animator_content(animator))
    assert again.settings == animator.settings
    assert torch.equal(again(features, NONE, NONE), animator(features, NONE, NONE))


def test_foreign_checkpoints_are_refused() -> None:
    content = animator_content(small_animator())
    with pytest.raises(ValueError, match="holds a detector, expected an animator"):
        load_animator({**content, "kind": "detector"})
    with pytest.raises(ValueError, match="shrug"):
        load_animator({**content, "settings": {**content["settings"], "shrug": 1}})
    with pytest.raises(ValueError, match="do not fit"):
        load_animator({**content, "settings": {**content["settings"], "width": 32}})
