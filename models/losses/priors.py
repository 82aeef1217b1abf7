"""What is probable about faces beside their coefficients: halves that mirror each other, and skin of one colour.

The priors are soft. No face is quite symmetric, and no skin is of one colour, so their weights fall while a network
learns (see `annealed`). Colour is judged against the photo's own face, never against a fixed palette of skin: a
palette knows the tones that it was made of.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.face.morphable import MorphableModel
from models.losses.image import EPSILON

MIRROR_TOLERANCE = 0.02
"""Share of the face's width by which a vertex may miss its mirrored place and still be the partner there."""

NEAREST_ROWS = 2048
"""Vertices whose distances to all others are held at once."""

SKIN_SHARE = 0.8
"""Of the pixels under the drawn skin that show skin, before their colour is seen."""

FOREIGN_DENSITY = (1.0, 4.0)
"""Density of anything else in chroma (Cb, Cr from -0.5 to 0.5) and in luma: what covers a face has any hue; its
brightness is judged mildly, because light makes skin as dark as hair."""

LEAST_SPREAD = (0.012, 0.08)
"""Least standard deviations of skin's chroma and luma within a photo: noise, make-up, shading."""


@lru_cache(maxsize=4)
def mirrored_vertices(model: MorphableModel) -> tuple[Int[Tensor, "K"], Int[Tensor, "K"]]:
    """Vertices of the mean face that have a mirror image among the vertices, and those images, on the processor.

    The plane is upright through the middle of the landmarks. Vertices on it are their own image.
    """
    mean = model.mean.detach().cpu().double()
    centre = float(model.landmark_mean[:, 0].mean())
    target = mean * mean.new_tensor([-1.0, 1.0, 1.0]) + mean.new_tensor([2.0 * centre, 0.0, 0.0])
    distance, partner = [], []
    for part in target.split(NEAREST_ROWS):
        least = torch.cdist(part, mean, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        distance.append(least.values)
        partner.append(least.indices)
    width = float(mean[:, 0].max() - mean[:, 0].min())
    known = torch.cat(distance) <= MIRROR_TOLERANCE * width
    return torch.nonzero(known)[:, 0], torch.cat(partner)[known]


@lru_cache(maxsize=4)
def asymmetry_basis(model: MorphableModel) -> Float[Tensor, "I K 3"]:
    """What each identity mode does to a vertex and not to its mirror image, in mm, on the processor.

    What is asymmetric about the mean face is nobody's fault and counts for nothing.
    Degenerate: a face without mirrored vertices has none.
    """
    own, other = mirrored_vertices(model)
    basis = model.identity_basis.detach().cpu()
    return basis[:, own] - basis[:, other] * basis.new_tensor([-1.0, 1.0, 1.0])


def symmetry_distance(identity: Float[Tensor, "B I"], asymmetry: Float[Tensor, "I K 3"]) -> Float[Tensor, "B"]:
    """Mean over the vertices of |v - S v'|₁ in mm between a neutral face and its mirror image, see `asymmetry_basis`.

    Degenerate: without mirrored vertices 0.
    Source: method B; DECA has the like for displacements in uv space.
    """
    if not asymmetry.shape[1]:
        return identity.new_zeros(len(identity))
    offsets = identity @ asymmetry.flatten(1)
    return offsets.abs().sum(1) / asymmetry.shape[1]


def albedo_variance(albedo: Float[Tensor, "B V 3"], skin: Bool[Tensor, "V"]) -> Float[Tensor, "B"]:
    """Variance of the albedo over the skin's vertices, mean of the channels: shadows are light, not paint.

    Degenerate: a model without skin returns 0.
    Source: the reflectance loss of Deng et al. 2019, there with weight 5.
    """
    if not bool(skin.any()):
        return albedo.new_zeros(len(albedo))
    return albedo[:, skin].var(1, unbiased=False).mean(1)


@torch.no_grad()
def skin_attention(image: Float[Tensor, "B 3 H W"], skin: Bool[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Probability that a pixel under the drawn skin shows the skin of this face; 0 outside.

    The colour of the face is a Gaussian in YCbCr around the median of the pixels under its skin, as wide as their
    median deviation; glasses, hair and hands of another colour are unlikely under it. Every photo is its own
    reference, so a dark face in dim light is judged like any other.
    Degenerate: a face without pixels of skin has no attention.
    Source: method B after Deng et al. 2019, whose mixture over all people's skin is replaced by the photo's own.
    """
    red, green, blue = image.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    channels = torch.stack([0.564 * (blue - luma), 0.713 * (red - luma), luma], 1)
    inside = torch.where(skin[:, None], channels, torch.nan).flatten(2)
    middle = inside.nanmedian(2, keepdim=True).values.nan_to_num()
    least = channels.new_tensor([LEAST_SPREAD[0], LEAST_SPREAD[0], LEAST_SPREAD[1]])
    spread = 1.4826 * (inside - middle).abs().nanmedian(2, keepdim=True).values.nan_to_num()
    spread = torch.maximum(spread, least[:, None])
    deviation = (channels.flatten(2) - middle) / spread
    # The density of skin at a pixel over that of anything else.
    own = torch.exp(-0.5 * deviation.square().sum(1)) / (spread.prod(1) * (2.0 * torch.pi) ** 1.5)
    foreign = FOREIGN_DENSITY[0] * FOREIGN_DENSITY[1]
    probable = SKIN_SHARE * own / (SKIN_SHARE * own + (1.0 - SKIN_SHARE) * foreign)
    return probable.unflatten(1, skin.shape[1:]) * skin


def attended_photo_distance(
    image: Float[Tensor, "B 3 H W"],
    rendering: Float[Tensor, "B 3 H W"],
    *,
    attention: Float[Tensor, "B H W"],
) -> Float[Tensor, "B"]:
    """Mean RGB distance of the pixels, weighted by attention.

    Degenerate: a face without attention returns 0.
    Source: method A.5, Σ A M ‖I - I'‖ / Σ A M.
    """
    distance = ((image - rendering).square().sum(1) + EPSILON).sqrt() * attention
    return distance.sum((1, 2)) / attention.sum((1, 2)).clamp_min(1e-6)
