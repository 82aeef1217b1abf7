"""How good a reconstruction is: likeness of the rendering, landmarks, shape against a truth in the same topology.

Everything is per face, (B,), so that the caller can pool, bin and rank. Distances to a surface: models/face/surface.py.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from models.face.camera import angles_from_rotation

SSIM_SIGMA_PX = 1.5
SSIM_RADIUS_PX = 5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2
MIN_SUPPORT = 0.05
"""Share of a window's weight that must lie in the mask for its statistics to count."""

BEST_PSNR_DB = 100.0
"""Of equal images, whose ratio would be infinite."""

NOSE_TIP, OUTER_EYES, MOUTH_CORNERS = 30, (36, 45), (48, 54)

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


@torch.no_grad()
def peak_signal_to_noise(
    image: Float[Tensor, "B 3 H W"], rendering_image: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B"]:
    """PSNR in decibels of a rendering against its photo over the pixels of the mask; RGB in [0, 1], clamped to it.

    Degenerate: equal images reach 100; a face without a masked pixel returns NaN.
    """
    weight = mask[:, None].to(image.dtype)
    square = ((image - rendering_image.clamp(0.0, 1.0)).square() * weight).flatten(1).sum(1)
    error = square / (3.0 * weight.flatten(1).sum(1))
    return (-10.0 * error.log10()).clamp_max(BEST_PSNR_DB)


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


def nose_protrusion(landmarks: Float[Tensor, "B 68 3"]) -> Float[Tensor, "B"]:
    """Distance in mm by which the tip of the nose stands out of the plane through outer eye corners and mouth.

    The ratio of a predicted to the true one tells whether faces come out flat: 1 keeps the nose, 0 has none.
    """
    left, right = landmarks[:, OUTER_EYES[0]], landmarks[:, OUTER_EYES[1]]
    mouth = landmarks[:, list(MOUTH_CORNERS)].mean(1)
    normal = functional.normalize(torch.linalg.cross(mouth - left, right - left), dim=1)
    return ((landmarks[:, NOSE_TIP] - left) * normal).sum(1)


def angle_errors(
    predicted: Float[Tensor, "B 3"], target: Float[Tensor, "B 3"]
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Absolute errors of yaw, pitch and roll in degrees, of two rotations as axis-angle.

    Convention: angles of models/face/camera.py; a difference is taken the short way round.
    """
    turn = (angles_from_rotation(predicted) - angles_from_rotation(target)).rad2deg()
    around = (turn + 180.0).remainder(360.0) - 180.0
    yaw, pitch, roll = around.abs().unbind(1)
    return yaw, pitch, roll


def distinctness(embedding: Float[Tensor, "N K"], person: Int[Tensor, "N"]) -> float:
    """(D - d) / (D + d), d the mean distance between photos of one person and D between those of different ones.

    1: all photos of a person give one shape; 0: persons differ no more than their photos do. It does not change with
    the size of all differences together.
    Degenerate: NaN if no person has two photos, or if all are of one person.
    Source: method D, where D and d are distances of the geometry embedding.
    """
    embedding = embedding.double()
    sums, counts = embedding.new_zeros(2), embedding.new_zeros(2)
    place = torch.arange(len(embedding), device=embedding.device)
    for rows in torch.split(place, 256):
        distance = torch.cdist(embedding[rows], embedding, compute_mode="donot_use_mm_for_euclid_dist")
        # Each pair once, and no photo with itself.
        later = place > rows[:, None]
        alike = person[rows][:, None] == person
        for kind, mask in enumerate((later & alike, later & ~alike)):
            sums[kind] += distance[mask].sum()
            counts[kind] += mask.sum()
    intra, inter = (sums / counts).tolist()
    return (inter - intra) / (inter + intra) if inter + intra else float("nan")


def typology_angle(colour: Float[Tensor, "B 3"]) -> Float[Tensor, "B"]:
    """Individual typology angle of skin in degrees: high is light, low is dark; `colour` is sRGB in [0, 1].

    Convention: atan2(L* - 50, b*) of CIELAB under D65. Values above 41 are called light or very light, below 10 brown
    or dark.
    Source: Chardon et al. 1991.
    """
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055).clamp_min(0.0) ** 2.4)
    luminance = linear @ linear.new_tensor([0.2126, 0.7152, 0.0722])
    blue = linear @ linear.new_tensor([0.0193, 0.1192, 0.9505]) / 1.0890
    root, blue_root = _lab_root(luminance), _lab_root(blue)
    return torch.atan2(116.0 * root - 16.0 - 50.0, 200.0 * (root - blue_root)).rad2deg()


def _lab_root(value: Tensor) -> Tensor:
    return torch.where(value > (6 / 29) ** 3, value.clamp_min(1e-9) ** (1 / 3), value / (3 * (6 / 29) ** 2) + 4 / 29)


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
