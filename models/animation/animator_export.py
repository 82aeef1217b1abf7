"""The animator as one ONNX file that runs without our code: log-mel features of any length in, coefficients out."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.animation.animator import Animator
from models.onnx_graph import check_graph, write_graph

INPUTS = ("features", "manner")
OUTPUTS = ("coefficients",)


class AnimatorGraph(nn.Module):
    """Features (1, N, F), and (1, N, 2) with emotion and style in the first row, to coefficients (1, T, 52).

    Both inputs are as long as each other, so that one symbol stands for the length of the graph.
    """

    def __init__(self, animator: Animator) -> None:
        super().__init__()
        self.animator = animator

    def forward(self, features: Float[Tensor, "1 N F"], manner: Float[Tensor, "1 N 2"]) -> tuple[Tensor, ...]:
        """One recording."""
        names = manner[:, 0].long()
        return (self.animator(features, names[:, 0], names[:, 1], in_one_block=True),)


def export_animator(animator: Animator, path: Path) -> float:
    """Write an animator as a graph; returns the largest relative difference found.

    Raises: ValueError if the graph differs from the network by more than `TOLERANCE`.
    """
    settings = animator.settings
    step = settings.features_per_frame

    def example(frames: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(frames)
        features = torch.randn(1, frames * step, settings.feature_size, generator=generator)
        manner = torch.zeros(1, frames * step, 2)
        manner[..., 0] = len(settings.emotions)
        return features, manner

    graph = AnimatorGraph(animator).eval()
    frames = torch.export.Dim("frames", min=2, max=100_000)
    write_graph(graph, example(40), path, inputs=INPUTS, outputs=OUTPUTS, dynamic={1: step * frames})
    return check_graph(graph, example(133), path, inputs=INPUTS, outputs=OUTPUTS)
