"""How much each photo of a set deserves to be heard, learned on simulated sets."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SetConfidence(nn.Module):
    """How much of its evidence each photo deserves, coefficient by coefficient.

    It sees the features of the encoder's geometry branch and says positive factors c, by which evidence L becomes
    sqrt(c) L sqrt(c). They start at 1, so that learning begins from what the landmarks say.
    """

    def __init__(self, *, features: int, identity_size: int, width: int = 64) -> None:
        super().__init__()
        last = nn.Linear(width, identity_size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width), nn.SiLU(), last)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B I"]:
        """The factors, between e⁻⁴ and e⁴."""
        return torch.exp(4.0 * torch.tanh(self.layers(features) / 4.0))

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"weights": {key: value.detach().cpu().clone() for key, value in self.state_dict().items()}}

    @staticmethod
    def build(content: dict[str, Any]) -> SetConfidence:
        """The head that `content` describes."""
        weights = content["weights"]
        width, features = weights["layers.1.weight"].shape
        head = SetConfidence(features=features, identity_size=len(weights["layers.3.weight"]), width=width)
        head.load_state_dict(weights)
        return head.eval()
