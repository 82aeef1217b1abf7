"""Skin beneath the jaw: a photo from the front sees it edge-on or not at all, and shows a collar where it lies.

There the texture keeps what has the tint of the skin before it, and no more than a shadow's darkness; the rest becomes
that skin, continued smoothly and a little darker, as what looks down is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from models.face.morphable import MorphableModel
from models.rendering.falloff import densely, ramp
from models.rendering.lids import skin_around
from models.rendering.texture import DARKEST, FILLED, OUTSIDE, SEEN, Texture
from models.rendering.texture_chart import TextureChart

JAW, LOWER_LIP = range(4, 13), 57
"""Landmarks."""
BACKWARDS = 0.7
"""Beside how far a point lies below the jaw's line counts how far it lies behind it, by this share."""
JAW_MM, UNDER_MM = 1.0, 7.0
"""Beyond the line by these a point is no more on the jaw, and wholly beneath it."""
FADE_MM = 15.0
"""Below the ends of the line, over which the ears' side gives way."""
AROUND_MM = 22.0
"""Skin so far before the line is like that beneath."""
NEAR_MM, FAR_MM = 45.0, 70.0
"""From the line: what is further is neck, which photos show."""

BRIGHTNESS, TINT = (0.6, 1.6), 0.16
"""Of the skin before it, by its median; a face is brighter on one side."""
LIKE_TINT, LIKE_DARKNESS = 0.1, 0.4
"""Differences of logarithms at which a texel is believed by 1/e; shadow is no fault."""
SQUARE_WEIGHT = 0.3
SHADE = 0.85
"""Of the skin's colour, where it looks down."""
BEYOND_SHARE = 1 / 48
SPECKLE_SHARE, FEATHER_SHARE = 1 / 100, 1 / 40
"""Of the texture's size: what is looked at beside the place, what is too small to be believed, and over which distance
what is believed gives way."""


@dataclass(frozen=True)
class Underside:
    """What lies beneath the jaw in a texture."""

    share: Float[Tensor, "1 1 H W"]
    """1 beneath the jaw, 0 elsewhere, smooth between."""
    around: Bool[Tensor, "1 1 H W"]
    """Skin before it."""


def find_underside(model: MorphableModel, chart: TextureChart) -> Underside | None:
    """The underside of a face model's jaw; None if it has none."""
    marks = model.landmarks(model.mean[None])[0].double().numpy()
    points = chart.interpolate(model.mean[None])[0].double().numpy()
    skin = chart.interpolate(model.part("skin").float()[None, :, None])[0, :, 0].numpy() > 0.5
    line = marks[list(JAW)]
    jaw = densely(line)
    distance, nearest = cKDTree(jaw).query(points)
    offset = points - jaw[nearest]
    beyond = -(offset[:, 1] + BACKWARDS * offset[:, 2])
    ends = max(line[0, 1], line[-1, 1])
    share = ramp(beyond, JAW_MM, UNDER_MM) * ramp(ends - points[:, 1], 0.0, FADE_MM)
    share = share * ramp(-distance, -FAR_MM, -NEAR_MM) * skin
    under = points[share > 0.5]
    if not len(under):
        return None
    around = (distance < AROUND_MM) & (beyond < 0.0) & (points[:, 1] < marks[LOWER_LIP, 1]) & skin
    stacked = chart.image(torch.from_numpy(np.stack([share, around], 1)).float()[None])
    return Underside(share=stacked[:, :1], around=stacked[:, 1:] > 0.5)


@torch.no_grad()
def mend_underside(texture: Texture, underside: Underside | None) -> Texture:
    """A whole texture with skin beneath the jaw; see the head of this file."""
    if underside is None:
        return texture
    found = torch.where((underside.share > 0.0)[0, 0] | underside.around[0, 0])
    beyond = round(BEYOND_SHARE * texture.colour.shape[-1])
    rows, columns = (slice(max(0, int(one.min()) - beyond), int(one.max()) + 1 + beyond) for one in found)
    share, around = underside.share[..., rows, columns], underside.around[..., rows, columns]
    colour, weight = texture.colour[..., rows, columns], texture.weight[..., rows, columns]
    origin = texture.origin[..., rows, columns]
    skin = skin_around(colour, around, origin, brightness=BRIGHTNESS, tint=TINT)
    if skin is None:
        return texture
    shaded = skin * (1.0 - (1.0 - SHADE) * share)
    apart = ((colour + DARKEST) / (shaded + DARKEST)).log()
    darker = apart.mean(1, keepdim=True)
    tinted = (apart - darker).abs().amax(1, keepdim=True)
    believed = (-((tinted / LIKE_TINT) ** 2) - (darker / LIKE_DARKNESS) ** 2).exp()
    believed = believed * (origin == SEEN)[:, None] * (weight / SQUARE_WEIGHT).clamp(0.0, 1.0)[:, None]
    reach = max(1, round(SPECKLE_SHARE * texture.colour.shape[-1]))
    believed = torch.minimum(believed, functional.avg_pool2d(believed, 2 * reach + 1, 1, reach))
    feather = max(1, round(FEATHER_SHARE * texture.colour.shape[-1]))
    replaced = share * (1.0 - functional.avg_pool2d(believed, 2 * feather + 1, 1, feather))
    whole, origins = texture.colour.clone(), texture.origin.clone()
    whole[..., rows, columns] = (1.0 - replaced) * colour + replaced * shaded
    origins[..., rows, columns] = torch.where((replaced[:, 0] > 0.5) & (origin != OUTSIDE), FILLED, origin)
    return Texture(colour=whole, weight=texture.weight, origin=origins)
