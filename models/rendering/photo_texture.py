"""The texture of one face from its photo: what the photo shows, then its mirror image, then the face model.

Convention: textures as in models/rendering/texture.py, in the colours of the photo, its light included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from models.face.camera import NEAR_MM
from models.face.inner_parts import Openings
from models.face.lighting import irradiance
from models.face.morphable import MorphableModel
from models.rendering.lids import EyeLids, find_lids, mend_lids
from models.rendering.shade import vertex_normals
from models.rendering.texture import SEEN, Texture, attribute_texture, continue_smoothly, extract_texture, mirror_fill
from models.rendering.texture_chart import MirrorMap, TextureChart, mirror_map, texture_chart
from models.rendering.underside import Underside, find_underside, mend_underside
from models.types import Camera

PIXELS_PER_TEXEL = 2.0
"""A face shown finer than this is reduced first: sampling takes four pixels and would skip the others."""

MARGIN_SHARE = 0.07
"""Of the width of an outline: so much around it is left out too, since outlines are not exact."""

OTHERS = 0.1
"""Weight of further photos of a face beside the first."""


@dataclass(frozen=True)
class TexturePainter:
    """What is computed once for a face model and a texture size."""

    chart: TextureChart
    mirror: MirrorMap
    lids: tuple[EyeLids, ...] = ()
    underside: Underside | None = None

    @staticmethod
    def build(model: MorphableModel, size_px: int, *, openings: Openings | None = None) -> TexturePainter:
        """`openings`: what `find_openings` says of the model, where it is known.

        Raises: ValueError if the size is not positive, or the model has no usable uv.
        """
        chart = texture_chart(model, size_px)
        return TexturePainter(
            chart=chart,
            mirror=mirror_map(model, chart),
            lids=find_lids(model, chart, openings),
            underside=find_underside(model, chart),
        )

    @torch.no_grad()
    def paint(
        self,
        photo: UInt8[np.ndarray, "H W 3"],
        vertices: Float[Tensor, "V 3"],
        *,
        intrinsics: Float[Tensor, "3 3"],
        albedo: Float[Tensor, "V 3"],
        lighting: Float[Tensor, "9 3"],
        without: Sequence[Float[np.ndarray, "_ 2"]] = (),
    ) -> Texture:
        """The texture of a mesh (camera space) that was fitted to the photo, a batch of one.

        `without`: outlines in pixels of the photo of what is no part of the surface. What neither the photo nor its
        mirror image shows is the albedo under the light of the photo.
        """
        seen = self.look(photo, vertices, intrinsics=intrinsics, without=without)
        return self.fill(seen, vertices, albedo=albedo, lighting=lighting)

    @torch.no_grad()
    def look(
        self,
        photo: UInt8[np.ndarray, "H W 3"],
        vertices: Float[Tensor, "V 3"],
        *,
        intrinsics: Float[Tensor, "3 3"],
        without: Sequence[Float[np.ndarray, "_ 2"]] = (),
    ) -> Texture:
        """What the photo itself shows of the mesh."""
        piece, camera = piece_around(photo, vertices, intrinsics=intrinsics, texels=self.chart.size_px)
        mask = None
        if without:
            # From pixels of the photo to those of the piece.
            scale = float(camera.focal_px[0] / intrinsics[0, 0])
            shift = camera.principal_px[0].numpy() - scale * intrinsics[:2, 2].numpy()
            mask = torch.from_numpy(_outside(piece.shape[:2], [scale * one + shift for one in without]))[None]
        image = torch.from_numpy(piece).permute(2, 0, 1)[None].float() / 255.0
        return extract_texture(image, vertices[None], chart=self.chart, camera=camera, photo_mask=mask)

    @torch.no_grad()
    def fill(
        self,
        seen: Texture,
        vertices: Float[Tensor, "V 3"],
        *,
        albedo: Float[Tensor, "V 3"],
        lighting: Float[Tensor, "9 3"],
    ) -> Texture:
        """The whole texture from what was seen, under the light in which the mesh (camera space) stands."""
        normals = vertex_normals(vertices[None], self.chart.triangles)
        shaded = (albedo[None] * irradiance(normals, lighting[None])).clamp(0.0, 1.0)
        fallback = attribute_texture(shaded, self.chart)
        whole = mirror_fill(seen, chart=self.chart, mirror=self.mirror, fallback=fallback)
        whole = mend_underside(mend_lids(whole, self.lids), self.underside)
        # What was mended goes on beyond the surface, so that no old colour shows between texels.
        inside = self.chart.inside[None, None].to(whole.colour).expand(len(whole.colour), -1, -1, -1)
        return replace(whole, colour=continue_smoothly(whole.colour, inside))


def _outside(size: tuple[int, int], outlines: Sequence[np.ndarray]) -> Bool[np.ndarray, "H W"]:
    """True beyond the outlines and a margin around each."""
    inside = np.zeros(size, np.uint8)
    for outline in outlines:
        filled = np.zeros(size, np.uint8)
        cv2.fillPoly(filled, [np.rint(outline - 0.5).astype(np.int32)], 1)
        margin = max(1, round(MARGIN_SHARE * float(np.ptp(outline[:, 0]))))
        inside |= cv2.dilate(filled, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    return inside == 0


def blend_looks(looks: Sequence[Texture]) -> Texture:
    """What several photos show of one face: every texel from those that saw it, by how squarely they did.

    The first counts ten times, so that what it shows stays sharp: faces of several photos never fit each other exactly.
    Colours are first brought to the brightness of the first photo where both saw the face.
    """
    first = looks[0]
    if len(looks) == 1:
        return first
    total = torch.zeros_like(first.weight)
    colour = torch.zeros_like(first.colour)
    for one in looks:
        both = (first.mask & one.mask).float()[:, None]
        count = both.sum((2, 3), keepdim=True)
        gain = ((first.colour * both).sum((2, 3), keepdim=True) + 0.01 * count) / (
            (one.colour * both).sum((2, 3), keepdim=True) + 0.01 * count
        ).clamp_min(1e-6)
        gain = torch.where(count > 0, gain, 1.0)
        # Square to the camera counts most; whoever saw a texel at all still counts a little.
        weight = (one.weight.square() + 1e-4) * one.mask * (1.0 if one is first else OTHERS)
        colour = colour + weight[:, None] * one.colour * gain
        total = total + weight
    seen = total > 0
    return Texture(
        colour=(colour / total.clamp_min(1e-9)[:, None]).clamp(0.0, 1.0),
        weight=torch.stack([one.weight for one in looks]).amax(0),
        origin=torch.where(seen, SEEN, first.origin),
    )


def piece_around(
    photo: UInt8[np.ndarray, "H W 3"],
    vertices: Float[Tensor, "V 3"],
    *,
    intrinsics: Float[Tensor, "3 3"],
    texels: int,
) -> tuple[UInt8[np.ndarray, "h w 3"], Camera]:
    """The part of a photo that shows a mesh (camera space), and the camera that sees it.

    Reduced where it would be more than `PIXELS_PER_TEXEL` times as fine as a texture of that many texels.
    """
    low, high = photo_box(vertices, intrinsics, size=(photo.shape[0], photo.shape[1]))
    piece = photo[low[1] : high[1], low[0] : high[0]]
    scale = min(1.0, PIXELS_PER_TEXEL * texels / max(piece.shape[:2]))
    if scale < 1.0:
        size = (max(1, round(piece.shape[1] * scale)), max(1, round(piece.shape[0] * scale)))
        piece = cv2.resize(piece, size, interpolation=cv2.INTER_AREA)
    factor = intrinsics.new_tensor([piece.shape[1] / int(high[0] - low[0]), piece.shape[0] / int(high[1] - low[1])])
    camera = Camera(
        focal_px=intrinsics[0, 0, None] * factor.mean(),
        principal_px=((intrinsics[:2, 2] - low) * factor)[None],
        size=(piece.shape[0], piece.shape[1]),
    )
    return np.ascontiguousarray(piece), camera


def photo_box(
    vertices: Float[Tensor, "V 3"], intrinsics: Float[Tensor, "3 3"], *, size: tuple[int, int]
) -> tuple[Int[Tensor, "2"], Int[Tensor, "2"]]:
    """First pixel (x, y), and the one after the last, of a mesh in a photo of that size (H, W); one pixel at least."""
    pixels = (vertices / vertices[:, 2:].clamp_min(NEAR_MM)) @ intrinsics.T
    limit = pixels.new_tensor([size[1], size[0]])
    low = torch.minimum((pixels[:, :2].amin(0).floor() - 1.0).clamp_min(0.0), limit - 1.0).long()
    high = torch.minimum((pixels[:, :2].amax(0).ceil() + 2.0).clamp_min(1.0), limit).long()
    return low, torch.maximum(high, low + 1)
