"""The network of method E: speech features, emotion and speaking style to the 52 ARKit coefficients.

Every layer looks back and ahead by a bounded number of frames, so that long recordings run in pieces, and a stream in
chunks, with the result of the whole.

Convention: frame t of the output is centred at (t + 0.5) / 50 s; features have a whole number of frames per output
frame, log-mel spectra two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.face.procedural_expressions import ARKIT_NAMES

CONVOLUTION_REACH = 2
"""Output frames that the first two convolutions see on each side."""

BLOCK_FRAMES = 32
"""Frames of which the attention is computed at once."""

MARGIN = 0.03
"""By which the sigmoid reaches beyond [0, 1], so that shapes at rest, as most are, lie where it is not yet flat."""

UNKNOWN = 0
"""Index of the emotion and of the style that stand for any."""


@dataclass(frozen=True)
class AnimatorSettings:
    """Everything that the network's shape depends on."""

    emotions: tuple[str, ...]
    """Names of those learned; index 0 is for the unknown, so that the first name has index 1."""
    styles: tuple[str, ...]
    feature_size: int = 80
    features_per_frame: int = 2
    width: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 512
    emotion_size: int = 32
    style_size: int = 32
    past_frames: int = 25
    """How far each layer of attention looks back."""
    future_frames: int = 3
    position_past: int = 24
    """Reach of the depthwise convolution that tells positions apart."""
    position_future: int = 6
    dropout: float = 0.1

    @property
    def context_frames(self) -> tuple[int, int]:
        """Frames before and after an output frame that it depends on."""
        return (
            CONVOLUTION_REACH + self.position_past + self.layers * self.past_frames,
            CONVOLUTION_REACH + self.position_future + self.layers * self.future_frames,
        )


def reach_of_layers(*, layers: int, position_kernel: int, memory: int, lookahead: int) -> dict[str, int]:
    """How the frames that a network may look back and ahead are shared out among its layers.

    Half of what lies ahead is attention's, the rest is the position convolution's, which has its kernel's remainder
    behind. `context_frames` of settings made of this exceed neither number, unless it is too small to give each layer
    one frame. Raises: ValueError if the look-ahead is shorter than the first convolutions need.
    """
    if lookahead < CONVOLUTION_REACH:
        raise ValueError(f"a look-ahead of {lookahead} frames, expected {CONVOLUTION_REACH} or more; raise lookahead_s")
    future = round(0.5 * (lookahead - CONVOLUTION_REACH) / layers)
    position_future = min(position_kernel - 1, lookahead - CONVOLUTION_REACH - layers * future)
    position_past = position_kernel - 1 - position_future
    past = max(1, (memory - CONVOLUTION_REACH - position_past) // layers)
    return {
        "past_frames": past,
        "future_frames": future,
        "position_past": position_past,
        "position_future": position_future,
    }


class Animator(nn.Module):
    """Convolutions, embeddings of emotion and style, a transformer of bounded reach, and a stretched sigmoid."""

    def __init__(self, settings: AnimatorSettings) -> None:
        super().__init__()
        self.settings = settings
        step = settings.features_per_frame
        # A window of twice the stride, so that an output frame lies in the middle of what it sees.
        self.first = nn.Conv1d(settings.feature_size, settings.width, 3, padding=1)
        self.second = nn.Conv1d(
            settings.width,
            settings.width,
            2 * step if step > 1 else 3,
            stride=step,
            padding=step // 2 if step > 1 else 1,
        )
        self.emotion = nn.Embedding(len(settings.emotions) + 1, settings.emotion_size)
        self.style = nn.Embedding(len(settings.styles) + 1, settings.style_size)
        self.join = nn.Linear(settings.width + settings.emotion_size + settings.style_size, settings.width)
        self.position = nn.Conv1d(
            settings.width,
            settings.width,
            settings.position_past + settings.position_future + 1,
            groups=settings.width,
        )
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.output = nn.Linear(settings.width, len(ARKIT_NAMES))
        nn.init.normal_(self.output.weight, std=0.02)

    def start_from(self, mean: Float[Tensor, "52"]) -> None:
        """Let an untrained network predict a mean face, so that it has not to learn that first."""
        with torch.no_grad():
            self.output.bias.copy_(torch.logit((mean.clamp(0.0, 0.9) + MARGIN) / (1.0 + 2.0 * MARGIN)))

    def forward(
        self,
        features: Float[Tensor, "B N F"],
        emotion: Int[Tensor, "B"],
        style: Int[Tensor, "B"],
        *,
        in_one_block: bool = False,
    ) -> Float[Tensor, "B T 52"]:
        """Coefficients in [0, 1], in training a little beyond, T = N / features_per_frame.

        `in_one_block` computes all of the attention at once: slower for long speech, but a graph of any length.

        Raises: ValueError if N is not a multiple of `features_per_frame`, or the features have another size.
        """
        settings = self.settings
        if features.shape[1] % settings.features_per_frame or features.shape[2] != settings.feature_size:
            raise ValueError(
                f"features of shape {tuple(features.shape)}, expected (B, a multiple of "
                f"{settings.features_per_frame}, {settings.feature_size})"
            )
        found = nn.functional.gelu(self.first(features.transpose(1, 2)))
        found = nn.functional.gelu(self.second(found)).transpose(1, 2)
        manner = torch.cat([self.emotion(emotion), self.style(style)], 1)[:, None]
        found = self.join(torch.cat([found, manner.expand(-1, found.shape[1], -1)], 2))
        padded = nn.functional.pad(found.transpose(1, 2), (settings.position_past, settings.position_future))
        found = found + nn.functional.gelu(self.position(padded)).transpose(1, 2)
        length = found.shape[1]
        near = _near(length, settings, found.device, size=length if in_one_block else BLOCK_FRAMES)
        for block in self.blocks:
            found = block(found, near)
        values = (1.0 + 2.0 * MARGIN) * torch.sigmoid(self.output(self.norm(found)).float()) - MARGIN
        # While it learns a value may leave the range a little: cut off, it would have no gradient to come back.
        return values if self.training else values.clamp(0.0, 1.0)

    def emotion_index(self, name: str | None) -> int:
        """Index of an emotion; none is the unknown one.

        Raises: ValueError listing the known ones.
        """
        return _index(name, self.settings.emotions, "emotion")

    def style_index(self, name: str | None) -> int:
        """Index of a speaking style; none is the unknown one.

        Raises: ValueError listing the known ones.
        """
        return _index(name, self.settings.styles, "style")


class _Block(nn.Module):
    """One pre-norm layer; its attention knows how far frames lie apart."""

    def __init__(self, settings: AnimatorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.heads = settings.heads
        self.before_attention = nn.LayerNorm(settings.width)
        self.project = nn.Linear(settings.width, 3 * settings.width)
        self.bias = nn.Parameter(torch.zeros(settings.heads, settings.past_frames + settings.future_frames + 1))
        self.merge = nn.Linear(settings.width, settings.width)
        self.before_feed_forward = nn.LayerNorm(settings.width)
        self.expand = nn.Linear(settings.width, settings.feed_forward)
        self.contract = nn.Linear(settings.feed_forward, settings.width)

    def forward(self, found: Float[Tensor, "B T W"], near: Int[Tensor, "N S K"]) -> Float[Tensor, "B T W"]:
        batch, length, width = found.shape
        settings = self.settings
        blocks, size = len(near), near.shape[1]
        rest = blocks * size - length
        projected = self.project(self.before_attention(found)).view(batch, length, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        query = nn.functional.pad(query, (0, 0, 0, rest)).unflatten(2, (blocks, size))
        around = (0, 0, settings.past_frames, settings.future_frames + rest)
        span = size + settings.past_frames + settings.future_frames
        key, value = (nn.functional.pad(item, around) for item in (key, value))
        if blocks == 1:
            key, value = key[:, :, None], value[:, :, None]
        else:
            key, value = (item.unfold(2, span, size).transpose(3, 4) for item in (key, value))
        # (blocks, heads, size, span), the same for all of the batch.
        nearness = self.bias[:, near.clamp_min(0)].masked_fill(near < 0, float("-inf")).transpose(0, 1)
        heard = nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2).flatten(0, 1),
            key.transpose(1, 2).flatten(0, 1),
            value.transpose(1, 2).flatten(0, 1),
            attn_mask=nearness.to(query.dtype).repeat(batch, 1, 1, 1),
        )
        # Not a transposition, which the exporter would take for a view.
        heard = torch.cat(heard.unbind(1), 2).view(batch, -1, width)
        found = found + self._drop(self.merge(heard[:, :length]))
        inner = nn.functional.gelu(self.expand(self.before_feed_forward(found)))
        return found + self._drop(self.contract(inner))

    def _drop(self, values: Tensor) -> Tensor:
        return nn.functional.dropout(values, self.settings.dropout, self.training)


def animator_content(animator: Animator) -> dict[str, Any]:
    """What a checkpoint keeps of an animator."""
    settings = asdict(animator.settings)
    return {
        "kind": "animator",
        "settings": {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()},
        "weights": animator.state_dict(),
    }


def load_animator(content: dict[str, Any]) -> Animator:
    """Build the network of a checkpoint, in evaluation mode.

    Raises: ValueError if the content is another network's or another version's.
    """
    if content.get("kind") != "animator":
        raise ValueError(f"holds a {content.get('kind', 'checkpoint')}, expected an animator; train it again")
    known = {field.name for field in fields(AnimatorSettings)}
    settings = content["settings"]
    if set(settings) - known:
        raise ValueError(f"has settings {sorted(set(settings) - known)} of another version; train it again")
    tuples: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    animator = Animator(AnimatorSettings(**tuples))
    try:
        animator.load_state_dict(content["weights"])
    except RuntimeError:
        raise ValueError("its weights do not fit its settings; train it again") from None
    return animator.eval()


def _near(length: int, settings: AnimatorSettings, device: torch.device, *, size: int) -> Int[Tensor, "N S K"]:
    """Place in the table of biases of each pair of a frame and one that it may see, in blocks; -1 for all others.

    A block's frames look at the block and what lies around it, so that the cost grows with the length alone.
    """
    past, future = settings.past_frames, settings.future_frames
    blocks = -(-length // size)
    query = torch.arange(blocks * size, device=device).view(blocks, size, 1)
    key = query[:, :1] - past + torch.arange(size + past + future, device=device)
    place = key - query + past
    seen = (place >= 0) & (place <= past + future)
    # Frames that fill up the last block are dropped later; they look at something, or they would become NaN.
    seen &= ((key >= 0) & (key < length)) | (query >= length)
    return torch.where(seen, place, -1)


def _index(name: str | None, known: Sequence[str], what: str) -> int:
    if name is None:
        return UNKNOWN
    if name not in known:
        raise ValueError(f"{what} {name!r} is unknown, expected one of {', '.join(known) or 'none'}; or leave it out")
    return known.index(name) + 1
