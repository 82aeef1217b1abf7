"""What a training step learns beside the encoder: a memory of persons, and a network of confidence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.reconstruction.confidence import ConfidenceNetwork
from models.training.person_memory import PersonMemory


class Learner(nn.Module):
    """The encoder with its companions, so that one optimiser moves them and one state holds them.

    To whoever runs it, it is the encoder.
    """

    steps: Tensor

    def __init__(
        self, encoder: nn.Module, *, memory: PersonMemory | None = None, confidence: ConfidenceNetwork | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.memory = memory
        self.confidence = confidence
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor, landmarks: Tensor, confidence: Tensor) -> Any:
        """What the encoder gives."""
        return self.encoder(image, landmarks, confidence)

    def settle(self) -> None:
        """End a step and count it, see `PersonMemory.settle`."""
        self.steps += 1
        if self.memory is not None:
            self.memory.settle()

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds beside the encoder."""
        found: dict[str, Any] = {}
        if self.memory is not None:
            found["persons"] = self.memory.content()
        if self.confidence is not None:
            found["confidence"] = self.confidence.content()
        return found
