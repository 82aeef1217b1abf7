"""Textures from photos: what a photo shows of a face, filled up from its mirror image, and faces drawn with them.

Convention: textures are (B, 3, T, T) in the colours of the photo, light included; see `TextureChart` for the layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from models.face.camera import NEAR_MM, project
from models.rendering.maps import depth_image
from models.rendering.rasterize import rasterize_ids
from models.rendering.shade import interpolate, vertex_normals
from models.rendering.texture_chart import MirrorMap, TextureChart
from models.rendering.visibility import depth_gap, depth_tolerance, facing
from models.types import Camera

OUTSIDE, SEEN, MIRRORED, FILLED = range(4)
"""Where a texel's colour comes from: not on the surface, the photo, the photo's other side of the face, neither."""

LEAST_COSINE, FULL_COSINE = 0.15, 0.6
"""A surface seen at a smaller cosine (81°) gives no colour, one above (53°) full weight; smooth between."""

DARKEST = 0.05
"""Added to colours before their ratio is taken, so that black has one."""

GAIN_QUANTILES = (0.02, 0.98)
"""Differences of light beyond these shares of the texels are differences of detail."""

FEATHER_SHARE = 1 / 64
"""Of the texture's size: over this distance the photo gives way to its mirror image."""

SMOOTHING_STEPS = 8


@dataclass(frozen=True)
class Texture:
    """Colours of a face model's surface and how they are known."""

    colour: Float[Tensor, "B 3 T T"]
    weight: Float[Tensor, "B T T"]
    """0 to 1: how squarely the photo saw the texel; 0 where it did not."""
    origin: Int[Tensor, "B T T"]
    """`OUTSIDE`, `SEEN`, `MIRRORED` or `FILLED`."""

    @property
    def mask(self) -> Bool[Tensor, "B T T"]:
        """True where the photo itself showed the texel."""
        return self.origin == SEEN


@torch.no_grad()
def extract_texture(
    photo: Float[Tensor, "B 3 H W"],
    vertices: Float[Tensor, "B V 3"],
    *,
    chart: TextureChart,
    camera: Camera,
    photo_mask: Bool[Tensor, "B H W"] | None = None,
    rasterizer: str = "auto",
) -> Texture:
    """What a photo shows of the mesh (camera space) that was fitted to it; the rest is zero and marked `FILLED`.

    A texel is seen if it faces the camera, and all four pixels that it is sampled from show the surface at its depth:
    at a contour they mix in what is beside or behind it. `photo_mask` excludes pixels, such as hair or the border.
    Sampling is bilinear, without a filter: a texture much coarser than the photo aliases.
    """
    height, width = camera.size
    points = chart.interpolate(vertices)
    normals = functional.normalize(chart.interpolate(vertex_normals(vertices, chart.triangles)), dim=2)
    depth = depth_image(vertices, chart.triangles, camera, rasterizer=rasterizer)
    pixels = project(points, camera)
    cosine = facing(points, normals)
    seen = (cosine > LEAST_COSINE) & (points[..., 2] >= NEAR_MM)
    tolerance = depth_tolerance(points, normals, camera)
    image = torch.arange(len(points), device=points.device)[:, None]
    first_column, first_row = (pixels - 0.5).floor().long().unbind(2)
    for down in (0, 1):
        for right in (0, 1):
            column, row = first_column + right, first_row + down
            seen &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
            column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
            gap, hit = depth_gap(points, normals, depth, camera, column=column, row=row)
            seen &= hit & (gap.abs() <= tolerance)
            if photo_mask is not None:
                seen &= photo_mask[image, row, column]
    colours = _sample(photo, pixels / pixels.new_tensor([width, height]))
    ramp = ((cosine - LEAST_COSINE) / (FULL_COSINE - LEAST_COSINE)).clamp(0.0, 1.0)
    weight = chart.image((ramp.square() * (3.0 - 2.0 * ramp) * seen)[..., None])[:, 0]
    shown = chart.image(seen[..., None].to(photo))[:, 0] > 0
    origin = torch.where(shown, SEEN, torch.where(chart.inside, FILLED, OUTSIDE))
    return Texture(colour=chart.image(colours * seen[..., None]), weight=weight, origin=origin)


@torch.no_grad()
def mirror_fill(
    texture: Texture,
    *,
    chart: TextureChart,
    mirror: MirrorMap,
    fallback: Float[Tensor, "B 3 T T"] | None = None,
) -> Texture:
    """Fill what the photo did not show from the other side of the face, and what neither side shows from `fallback`.

    Where both sides saw a texel, the blend follows the angles at which they did, and where one side ends it gives way
    over a few texels. The other side's colours, and the fallback's, are multiplied by a smooth gain that makes them
    meet the known colours at the border: light differs, detail stays. Without a fallback the known colours are
    continued smoothly. Colours go on beyond the surface too, so that sampling between texels finds no dark fringe.
    `weight` stays that of the photo.
    Source: the membrane of Pérez et al. 2003 (Poisson image editing), here of log ratios and solved on a pyramid.
    """
    inside, seen = chart.inside, texture.origin == SEEN
    known = seen[:, None].to(texture.colour)
    weight = texture.weight[:, None] * _feather(known, inside[None, None].to(known))
    other_colour, other_weight, other_known = _other_side(texture.colour, weight, known, chart=chart, mirror=mirror)
    other_colour = _matched(other_colour, texture.colour, known * other_known)
    # The photo alone where the other side is hidden; otherwise by the angle, fully the photo's where that is square.
    share = known * torch.where(other_known > 0, weight / (weight + (1.0 - weight) * other_weight).clamp_min(1e-6), 1.0)
    colour = share * texture.colour + (1.0 - share) * other_colour
    somewhere = torch.maximum(known, other_known)
    if fallback is None:
        filled = continue_smoothly(colour, somewhere)
    else:
        filled = _matched(fallback, colour, somewhere)
    colour = torch.where(somewhere > 0, colour, filled).clamp(0.0, 1.0)
    colour = continue_smoothly(colour, inside[None, None].to(colour).expand(len(colour), -1, -1, -1))
    origin = torch.where(share[:, 0] >= 0.5, SEEN, torch.where(other_known[:, 0] > 0, MIRRORED, FILLED))
    return Texture(colour=colour, weight=texture.weight, origin=torch.where(inside, origin, OUTSIDE))


def _feather(known: Float[Tensor, "B 1 T T"], inside: Float[Tensor, "1 1 T T"]) -> Float[Tensor, "B 1 T T"]:
    """From 0 where the known texels end to 1 a little inside; the end of the surface does not count as one."""
    reach = max(1, round(FEATHER_SHARE * known.shape[-1]))
    around = functional.avg_pool2d(torch.cat([known, inside.expand_as(known)]), 2 * reach + 1, 1, reach)
    share, possible = around.chunk(2)
    return known * (2.0 * share / possible.clamp_min(1e-6) - 1.0).clamp(0.0, 1.0)


def _other_side(
    colour: Float[Tensor, "B 3 T T"],
    weight: Float[Tensor, "B 1 T T"],
    known: Float[Tensor, "B 1 T T"],
    *,
    chart: TextureChart,
    mirror: MirrorMap,
) -> tuple[Float[Tensor, "B 3 T T"], Float[Tensor, "B 1 T T"], Float[Tensor, "B 1 T T"]]:
    """Colour and weight of every texel's mirror image, and 1 where most of its sources were seen."""
    values = chart.values(torch.cat([colour * known, weight * known, known], 1))
    other = (values[:, mirror.sources] * mirror.weights[..., None]).sum(2)
    # Sources that were not seen must not darken the others.
    share = other[..., 4:]
    there = (share > 0.5).to(other)
    other = chart.image(torch.cat([there * other[..., :4] / share.clamp_min(1e-6), there], 2))
    return other[:, :3], other[:, 3:4], other[:, 4:]


def _matched(
    colour: Float[Tensor, "B 3 T T"], target: Float[Tensor, "B 3 T T"], common: Float[Tensor, "B 1 T T"]
) -> Float[Tensor, "B 3 T T"]:
    """Colours under a light that changes smoothly and gives the target's where `common` is 1."""
    gain = ((target + DARKEST) / (colour + DARKEST)).log()
    measured = gain.masked_fill(common == 0, torch.nan).flatten(2)
    # A nostril beside a bright cheek says nothing about the light.
    low, high = measured.nanquantile(gain.new_tensor(GAIN_QUANTILES), dim=2).nan_to_num()[..., None, None]
    gain = torch.minimum(torch.maximum(gain, low), high)
    lit: Float[Tensor, "B 3 T T"] = (colour + DARKEST) * continue_smoothly(gain, common).exp() - DARKEST
    return lit.clamp_min(0.0)


def attribute_texture(attributes: Float[Tensor, "B V C"], chart: TextureChart) -> Float[Tensor, "B C T T"]:
    """Vertex attributes, such as a model's albedo, as a texture; continued smoothly outside the surface."""
    drawn = chart.image(chart.interpolate(attributes))
    inside = chart.inside[None, None].to(drawn).expand(len(drawn), -1, -1, -1)
    return torch.where(inside > 0, drawn, continue_smoothly(drawn, inside))


def texture_at_vertices(
    texture: Float[Tensor, "B C T T"], chart: TextureChart, *, uncharted_colours: Float[Tensor, "B V C"]
) -> Float[Tensor, "B V C"]:
    """What a texture holds at the vertices; those of uncharted triangles alone keep `uncharted_colours`."""
    placed = torch.stack([chart.uv[:, 0], 1.0 - chart.uv[:, 1]], 1).expand(len(texture), -1, -1)
    charted = torch.zeros(len(chart.uv), dtype=torch.bool, device=texture.device)
    charted[chart.triangles[~chart.uncharted].unique()] = True
    return torch.where(charted[:, None], _sample(texture, placed), uncharted_colours)


def draw_texture(
    texture: Float[Tensor, "B C T T"],
    vertices: Float[Tensor, "B V 3"],
    *,
    chart: TextureChart,
    camera: Camera,
    uncharted_colours: Float[Tensor, "B V C"] | None = None,
    rasterizer: str = "auto",
) -> Float[Tensor, "B C H W"]:
    """The textured mesh (camera space) seen by a camera, without further light; zero where no triangle is seen.

    Differentiable in texture and vertices. Triangles without texels show `uncharted_colours`, such as the model's
    albedo, or else blend what the texture holds at their corners.
    """
    ids, _ = rasterize_ids(vertices, chart.triangles, camera, rasterizer=rasterizer)
    placed = torch.stack([chart.uv[:, 0], 1.0 - chart.uv[:, 1]], 1).expand(len(vertices), -1, -1)
    colours = _sample(texture, placed) if uncharted_colours is None else uncharted_colours
    pixels = interpolate(torch.cat([placed.to(colours), colours], 2), vertices, chart.triangles, ids, camera)
    places, plain = pixels.split((2, colours.shape[2]), 1)
    sampled = _sample(texture, places.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, camera.size)
    uncharted = chart.uncharted[ids.clamp_min(0)][:, None]
    return torch.where((ids >= 0)[:, None], torch.where(uncharted, plain, sampled), 0.0)


def continue_smoothly(values: Float[Tensor, "B C H W"], known: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B C H W"]:
    """Values where `known` is 1, elsewhere the smooth surface through them (a membrane); zero if nothing is known.

    Coarse to fine: each level halves the image, starts from the level above, and relaxes a few times.
    """
    height, width = values.shape[2:]
    if height == 1 and width == 1:
        return values * known
    odd = (0, width % 2, 0, height % 2)
    padded, there = functional.pad(values * known, odd), functional.pad(known, odd)
    share = functional.avg_pool2d(there, 2)
    coarse = functional.avg_pool2d(padded, 2) / share.clamp_min(1e-6)
    coarse = continue_smoothly(coarse, (share > 0).to(values))
    guess = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    result = torch.where(known > 0, values, guess[..., :height, :width])
    for _ in range(SMOOTHING_STEPS):
        around = functional.pad(result, (1, 1, 1, 1), mode="replicate")
        mean = (around[..., :-2, 1:-1] + around[..., 2:, 1:-1] + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]) / 4.0
        result = torch.where(known > 0, values, mean)
    return result


def _sample(image: Float[Tensor, "B C H W"], places: Float[Tensor, "B N 2"]) -> Float[Tensor, "B N C"]:
    """Bilinear values at (x, y) in [0, 1] of the image's width and height; its edge continues beyond it."""
    grid = (2.0 * places - 1.0)[:, None].to(image)
    found = functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)
