"""How good a reconstruction is: likeness of the rendering, landmarks, shape against a truth in the same topology.

Everything is per face, (B,), so that the caller can pool, bin and rank. Distances to a surface: models/face/surface.py.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

SSIM_SIGMA_PX = 1.5
SSIM_RADIUS_PX = 5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2
MIN_SUPPORT = 0.05
"""Share of a window's weight that must lie in the mask for its statistics to count."""

MIN_SPREAD = 1e-6
"""In mm²; less variation of depth than this is rounding."""


@torch.no_grad()
def similarity(
    image: Float[Tensor, "B 3 H W"], rendering_image: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B"]:
    """Masked SSIM between a photo and its rendering, over the pixels of the mask (rendered and inside the photo).

    Convention: RGB in [0, 1] (the rendering is clamped to it); Gaussian window of 11 pixels, sigma 1.5. Means and
    variances are taken over the masked pixels of a window alone, so that neither background nor padding leaks in at the
    border. With a full mask this is the usual SSIM. 1 is equality.
    Degenerate: a face without a masked pixel returns 0.
    Source: Wang et al. 2004, equation 13. It stands for the composite similarity of SSIM, ArcFace and LPIPS: the two
    perceptual networks would have to be downloaded, so only the SSIM part is kept.
    """
    score, counted = similarity_map(image, rendering_image, mask)
    return (score * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp_min(1)


def similarity_map(
    image: Float[Tensor, "B 3 H W"], rendering_image: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B H W"]
) -> tuple[Float[Tensor, "B H W"], Bool[Tensor, "B H W"]]:
    """SSIM of every pixel, averaged over the channels, and the pixels whose windows hold enough of the mask."""
    weight = mask[:, None].to(image.dtype)
    photo = image * weight
    rendered = rendering_image.clamp(0.0, 1.0) * weight
    support = _blur(weight)
    moments = _blur(torch.cat([photo, rendered, photo * photo, rendered * rendered, photo * rendered], 1))
    first, second, first_square, second_square, product = (moments / support.clamp_min(1e-6)).chunk(5, 1)
    first_variance = (first_square - first * first).clamp_min(0.0)
    second_variance = (second_square - second * second).clamp_min(0.0)
    covariance = product - first * second
    score = (2 * first * second + SSIM_C1) * (2 * covariance + SSIM_C2)
    score = score / ((first * first + second * second + SSIM_C1) * (first_variance + second_variance + SSIM_C2))
    return score.mean(1), mask & (support > MIN_SUPPORT)[:, 0]


def landmark_error(predicted: Float[Tensor, "B L 2"], target: Float[Tensor, "B L 2"]) -> Float[Tensor, "B"]:
    """Mean landmark distance as a fraction of the square root of the target box's area (NME of AFLW2000-3D).

    Degenerate: points of the target that are not finite do not count; a face without any returns NaN.
    """
    known = target.isfinite().all(2)
    low = torch.where(known[..., None], target, torch.inf).amin(1)
    high = torch.where(known[..., None], target, -torch.inf).amax(1)
    size = (high - low).prod(1).clamp_min(0.0).sqrt()
    distance = torch.where(known, torch.linalg.vector_norm(predicted - target, dim=2), 0.0)
    error = distance.sum(1) / known.sum(1) / size
    return torch.where(known.any(1) & (size > 0), error, torch.nan)


def vertex_error(
    predicted: Float[Tensor, "B V 3"], target: Float[Tensor, "B V 3"], vertices: Bool[Tensor, "V"]
) -> Float[Tensor, "B"]:
    """Mean distance in millimetres of corresponding vertices, over the chosen ones; both already aligned."""
    distance: Tensor = torch.linalg.vector_norm((predicted - target)[:, vertices], dim=2)
    return distance.mean(1)


def normal_error(
    predicted: Float[Tensor, "B V 3"], target: Float[Tensor, "B V 3"], vertices: Bool[Tensor, "V"]
) -> Float[Tensor, "B"]:
    """Mean angle in degrees between corresponding unit normals, over the chosen vertices."""
    cosine = functional.cosine_similarity(predicted[:, vertices], target[:, vertices], dim=2)
    return cosine.clamp(-1.0, 1.0).acos().rad2deg().mean(1)


def depth_moments(predicted: Float[Tensor, "B V"], target: Float[Tensor, "B V"]) -> Float[Tensor, "B 5"]:
    """Means over the vertices of p, t, p², t² and pt, which `depth_flatness` pools over faces."""
    predicted, target = predicted.double(), target.double()
    terms = [predicted, target, predicted.square(), target.square(), predicted * target]
    return torch.stack([term.mean(1) for term in terms], 1)


def depth_flatness(moments: Float[Tensor, "B 5"]) -> tuple[float, float]:
    """Slope and correlation of predicted on true depth, pooled over faces and vertices.

    Convention: depths are deviations from the mean face in millimetres, given by their `depth_moments`. A slope of 1
    keeps all relief, 0 is the mean face; the correlation says how much of what is there is right.
    Degenerate: without variation in the truth both are NaN; without variation in the prediction the correlation is.
    """
    predicted, target, predicted_square, target_square, product = moments.mean(0).tolist()
    covariance = product - predicted * target
    spread, truth_spread = predicted_square - predicted**2, target_square - target**2
    if truth_spread <= MIN_SPREAD:
        return math.nan, math.nan
    return covariance / truth_spread, covariance / math.sqrt(spread * truth_spread) if spread > MIN_SPREAD else math.nan


def _blur(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Gaussian window sums as two banded matrix products: on a processor many times faster than a convolution."""
    return _band(image.shape[-2], image) @ image @ _band(image.shape[-1], image)


def _band(size: int, like: Tensor) -> Float[Tensor, "S S"]:
    place = torch.arange(size, device=like.device)
    distance = (place[:, None] - place).to(like.dtype)
    offsets = torch.arange(-SSIM_RADIUS_PX, SSIM_RADIUS_PX + 1, device=like.device, dtype=like.dtype)
    weight = torch.exp(-distance.square() / (2 * SSIM_SIGMA_PX**2))
    weight = torch.where(distance.abs() <= SSIM_RADIUS_PX, weight, 0.0)
    return weight / torch.exp(-offsets.square() / (2 * SSIM_SIGMA_PX**2)).sum()
