"""The image branch, and how it joins the geometry branch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.face.morphable import MorphableModel
from models.reconstruction.backbones import build_backbone
from models.reconstruction.geometry_branch import GeometryBranch

LIGHT_SIZE = 27


class Encoder(nn.Module):
    """Geometry branch plus image branch: raw numbers for identity, expression, pose, albedo and light.

    The image branch adds corrections to what the landmarks say; they start at zero, so that training begins
    from the pretrained geometry branch and not from noise.
    """

    def __init__(
        self,
        *,
        model: MorphableModel,
        geometry_width: int,
        geometry_blocks: int,
        geometry_refinements: int,
        backbone: str,
        width: int,
        features: int,
    ) -> None:
        super().__init__()
        self.geometry = GeometryBranch(
            model, width=geometry_width, blocks=geometry_blocks, refinements=geometry_refinements
        )
        self.sizes = self.geometry.sizes
        self.appearance_sizes = (model.albedo_size, LIGHT_SIZE)
        self.image = build_backbone(backbone, width=width, features=features)
        self.fusion = nn.Sequential(
            nn.Linear(features + geometry_width, features),
            nn.LayerNorm(features),
            nn.SiLU(),
            nn.Linear(features, features),
            nn.SiLU(),
        )
        self.correction = nn.Linear(features, sum(self.sizes))
        self.identity_map = nn.Linear(model.identity_size, model.identity_size)
        """Added to identity: stretches what photos of one person agree on, shrinks what they do not."""
        self.appearance = nn.Linear(features, sum(self.appearance_sizes))
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        nn.init.zeros_(self.identity_map.weight)
        nn.init.zeros_(self.identity_map.bias)
        nn.init.zeros_(self.appearance.bias)
        nn.init.normal_(self.appearance.weight, std=0.01)

    def forward(
        self,
        image: Float[Tensor, "B 3 S S"],
        landmarks: Float[Tensor, "B 68 2"],
        confidence: Float[Tensor, "B 68"],
    ) -> tuple[
        Float[Tensor, "B I"], Float[Tensor, "B E"], Float[Tensor, "B 6"], Float[Tensor, "B T"], Float[Tensor, "B 27"]
    ]:
        """Image in [0, 1]; landmarks in units of half the crop, zero at its centre."""
        hidden, states = self.geometry(landmarks, confidence)
        seen = self.image((image - 0.5) / 0.25)
        fused = self.fusion(torch.cat([seen, hidden], 1))
        shape, expression, pose = (states[-1] + self.correction(fused)).split(self.sizes, 1)
        shape = shape + self.identity_map(shape)
        albedo, light = self.appearance(fused).split(self.appearance_sizes, 1)
        return shape, expression, pose, albedo, light
