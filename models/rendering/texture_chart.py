"""Which point of a face model's surface each texel of its texture shows, and which texels mirror which.

Convention: u runs right, v runs up, both from 0 to 1; row 0 of a texture is v = 1, texel centres are at +0.5.
Computed once per face model and texture size, on the mean face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from models.face.camera import NEAR_MM
from models.face.morphable import MorphableModel
from models.rendering.rasterize import rasterize
from models.rendering.shade import vertex_normals
from models.types import Camera

SEAM_LENGTH = 0.05
"""An edge must span this share of the texture to be one that jumps across a seam …"""

SEAM_STRETCH = 4.0
"""… and be so many times longer than edges of its length in millimetres are in the median."""

TILE_MARGIN = 1e-3
"""How far uv may reach beyond the unit square by rounding."""

MIRROR_NEIGHBOURS = 4
"""Texels that a mirrored texel is blended from."""

MIRROR_LIMIT_MM = 4.0
"""A texel whose mirror image is farther from the surface than this has no mirror."""

NORMAL_REACH_MM = 8.0
"""Opposite normals count as twice this far apart, so that a lid is not mistaken for the eye below it."""


@dataclass(frozen=True)
class TextureChart:
    """The N texels of a square texture that lie on the surface."""

    size_px: int
    uv: Float[Tensor, "V 2"]
    triangles: Int[Tensor, "F 3"]
    uncharted: Bool[Tensor, "F"]
    """Triangles that no texel shows: their corners lie in separate places of the texture, or beyond its unit square."""
    texels: Int[Tensor, "N"]
    """Row times size plus column, ascending."""
    corners: Int[Tensor, "N 3"]
    """Vertices of the triangle that each texel lies in."""
    weights: Float[Tensor, "N 3"]
    """Its barycentrics there."""

    @property
    def inside(self) -> Bool[Tensor, "T T"]:
        """True where a texel shows the surface."""
        flat = torch.zeros(self.size_px**2, dtype=torch.bool, device=self.texels.device)
        flat[self.texels] = True
        return flat.view(self.size_px, self.size_px)

    def interpolate(self, attributes: Float[Tensor, "B V C"]) -> Float[Tensor, "B N C"]:
        """Vertex attributes at the texels."""
        return (attributes[:, self.corners] * self.weights[..., None]).sum(2)

    def image(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B C T T"]:
        """Values at the texels as a texture, zero elsewhere."""
        flat = values.new_zeros(len(values), self.size_px**2, values.shape[2])
        flat = flat.index_copy(1, self.texels, values)
        return flat.transpose(1, 2).unflatten(2, (self.size_px, self.size_px))

    def values(self, texture: Float[Tensor, "B C T T"]) -> Float[Tensor, "B N C"]:
        """What a texture holds at the texels."""
        return texture.flatten(2)[..., self.texels].transpose(1, 2)

    def to(self, device: torch.device | str) -> TextureChart:
        """Copy on another device."""
        moved = {
            key: getattr(self, key).to(device)
            for key in ("uv", "triangles", "uncharted", "texels", "corners", "weights")
        }
        return TextureChart(size_px=self.size_px, **moved)


@dataclass(frozen=True)
class MirrorMap:
    """Where the mirror image of each texel's point lies in the texture."""

    sources: Int[Tensor, "N K"]
    """Indices into the chart's texels."""
    weights: Float[Tensor, "N K"]
    """Shares that sum to one; zero throughout where the surface has no mirror image."""


def texture_chart(model: MorphableModel, size_px: int) -> TextureChart:
    """The chart of a face model: its triangles rasterised where their uv put them, whichever way they wind.

    Where triangles overlap in the texture, the one further out of the mean face (+z) owns the texel. Triangles across a
    seam own none, for stretched over the texture they would smear it, nor do those in further tiles (UDIM).
    Raises: ValueError if the size is not positive, or no texel falls onto the surface.
    """
    if size_px <= 0:
        raise ValueError(f"texture of {size_px} px, expected a positive size")
    beyond = ((model.uv < -TILE_MARGIN) | (model.uv > 1.0 + TILE_MARGIN)).any(1)
    uncharted = seam_triangles(model.uv, model.triangles, model.mean) | beyond[model.triangles].any(1)
    uv = model.uv.double()[model.triangles]
    first, second = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    backwards = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0
    turned = torch.where(backwards[:, None], model.triangles.flip(1), model.triangles)
    # Every triangle at its own constant depth: there perspective is orthographic, and the depth decides overlaps.
    rank = (-model.mean[model.triangles, 2].mean(1)).argsort(stable=True).argsort()
    depth = NEAR_MM * (2.0 + rank.double() / max(1, len(rank)))
    flat = model.uv.double()[turned] * torch.tensor([1.0, -1.0], dtype=torch.float64, device=uv.device)
    flat = (flat + torch.tensor([-0.5, 0.5], dtype=torch.float64, device=uv.device)) * depth[:, None, None]
    unrolled = torch.cat([flat, depth[:, None, None].expand(-1, 3, 1)], 2)[~uncharted].reshape(1, -1, 3)
    camera = Camera(
        focal_px=uv.new_full((1,), size_px), principal_px=uv.new_full((1, 2), size_px / 2), size=(size_px, size_px)
    )
    separate = torch.arange(unrolled.shape[1], device=uv.device).view(-1, 3)
    fragments = rasterize(unrolled, separate, camera)
    texels = (fragments.triangle_ids.flatten() >= 0).nonzero()[:, 0]
    if len(texels) == 0:
        raise ValueError(
            f"face model {model.name}: no texel of {size_px} x {size_px} lies on the surface; check its uv"
        )
    return TextureChart(
        size_px=size_px,
        uv=model.uv,
        triangles=model.triangles,
        uncharted=uncharted,
        texels=texels,
        corners=turned[~uncharted][fragments.triangle_ids.flatten()[texels]],
        weights=fragments.barycentrics.reshape(-1, 3)[texels].float(),
    )


def seam_triangles(
    uv: Float[Tensor, "V 2"], triangles: Int[Tensor, "F 3"], mean: Float[Tensor, "V 3"]
) -> Bool[Tensor, "F"]:
    """Triangles that tie distant places of the texture together, since a vertex has one uv only.

    Told by an edge that is both long in the texture and stretched against the median, see `SEAM_STRETCH`.
    """
    start, end = triangles, triangles.roll(-1, 1)
    length = (uv[start] - uv[end]).norm(dim=2)
    length_mm = (mean[start] - mean[end]).norm(dim=2)
    usual = length.sum() / length_mm.sum().clamp_min(1e-9)
    measured = (length_mm > 0) & (length > 0)
    if measured.any():
        usual = (length[measured] / length_mm[measured]).median()
    return ((length > SEAM_LENGTH) & (length > SEAM_STRETCH * usual * length_mm)).any(1)


@torch.no_grad()
def mirror_map(model: MorphableModel, chart: TextureChart) -> MirrorMap:
    """The texels that show the mirror image (x to -x in model space) of each texel's point on the mean face.

    Nearest in position and normal, so it holds for any layout of the texture and across its seams.
    """
    reflection = model.mean.new_tensor([-1.0, 1.0, 1.0])
    points = chart.interpolate(model.mean[None])[0]
    normals = chart.interpolate(vertex_normals(model.mean[None], model.triangles))[0]
    normals = torch.nn.functional.normalize(normals, dim=1) * NORMAL_REACH_MM
    places = torch.cat([points, normals], 1).cpu().double().numpy()
    mirrored = torch.cat([points * reflection, normals * reflection], 1).cpu().double().numpy()
    count = min(MIRROR_NEIGHBOURS, len(places))
    distance, sources = cKDTree(places).query(mirrored, k=[*range(1, count + 1)])
    # Squared inverse distance: a texel that has an exact counterpart is copied, not blurred.
    share = 1.0 / np.maximum(distance, 1e-3) ** 2
    share = share / share.sum(1, keepdims=True) * (distance[:, :1] <= MIRROR_LIMIT_MM)
    return MirrorMap(
        sources=torch.from_numpy(sources.astype(np.int64)).to(chart.texels.device),
        weights=torch.from_numpy(share).float().to(chart.texels.device),
    )
