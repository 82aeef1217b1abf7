"""Encoders with random weights: what is tested is alignment, cache and errors, not what they have learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.animation import features
from models.animation.clip import SpeechClip
from models.animation.features import EncoderError, encoded_speech, open_encoder

transformers = pytest.importorskip("transformers")
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def saved(folder: Path, kind: str = "Wav2Vec2", **changes: object) -> str:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **changes})
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("wav2vec2"))


def clip(samples: int = 16_000) -> SpeechClip:
    audio = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    frames = samples // 320
    return SpeechClip(
        clip_id=f"clip-{samples}",
        source="s",
        speaker="s/a",
        emotion="neutral",
        style="plain",
        text=None,
        split="train",
        held_out=None,
        audio=audio,
        coefficients=np.zeros((frames, 52), np.float32),
        known=np.ones(52, bool),
        phonemes=np.zeros(frames, np.int64),
    )


@pytest.mark.parametrize("samples", [0, 320, 330, 16_000, 17_777])
def test_one_row_per_frame(wav2vec2: str, samples: int) -> None:
    assert open_encoder(wav2vec2)(torch.randn(samples)).shape == (samples // 320, 16)


def test_hubert_works_as_well(tmp_path: Path) -> None:
    assert open_encoder(saved(tmp_path / "h", "Hubert"))(torch.randn(3200)).shape == (10, 16)


def test_a_row_belongs_to_its_frame(wav2vec2: str) -> None:
    audio = torch.zeros(16_000)
    audio[25 * 320 + 160] = 1.0  # in the middle of frame 25
    network = open_encoder(wav2vec2).network
    padded = torch.nn.functional.pad(audio, (40, 40))
    quiet = torch.nn.functional.pad(torch.zeros(16_000), (40, 40))
    with torch.inference_mode():
        change = network.feature_extractor(padded[None]) - network.feature_extractor(quiet[None])
    assert int(change[0].abs().sum(0).argmax()) == 25


def test_long_sound_goes_in_pieces(wav2vec2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = torch.randn(320 * 60, generator=torch.Generator().manual_seed(1))
    whole = open_encoder(wav2vec2)(audio)
    monkeypatch.setattr(features, "PIECE_FRAMES", 20)
    monkeypatch.setattr(features, "MARGIN_FRAMES", 40)
    pieces = open_encoder(wav2vec2)(audio)
    assert pieces.shape == whole.shape
    # Attention sees less of the clip, so the numbers differ, but not much.
    assert float((pieces - whole).abs().mean()) < 0.5 * float(whole.std())


def test_the_cache_is_read_and_mended(wav2vec2: str, tmp_path: Path) -> None:
    first = encoded_speech(clip(), encoder=wav2vec2, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    np.save(kept, np.full((50, 16), 2.0, np.float16))
    assert torch.equal(encoded_speech(clip(), encoder=wav2vec2, cache=tmp_path), torch.full((50, 16), 2.0))
    kept.write_bytes(b"broken")
    assert torch.equal(encoded_speech(clip(), encoder=wav2vec2, cache=tmp_path), first)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_other_weights_have_other_entries(wav2vec2: str, tmp_path: Path) -> None:
    encoded_speech(clip(), encoder=wav2vec2, cache=tmp_path / "c")
    torch.manual_seed(9)
    other = tmp_path / "other"
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SMALL)).save_pretrained(other)
    encoded_speech(clip(), encoder=str(other), cache=tmp_path / "c")
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_what_is_no_speech_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"cannot be opened .*; name a folder or a model of the hub, or log_mel"):
        open_encoder(str(tmp_path))
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)  # fmt: skip  # noqa: E501
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(EncoderError, match="is a bert, expected one that reads samples"):
        open_encoder(str(tmp_path / "bert"))
    fast = saved(tmp_path / "fast", conv_stride=(5, 2, 2, 2, 2, 2, 1), conv_kernel=(10, 3, 3, 3, 3, 2, 2))
    with pytest.raises(EncoderError, match="gives 100 rows a second, expected 50"):
        open_encoder(fast)
