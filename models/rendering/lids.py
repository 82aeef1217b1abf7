"""Skin of the lids: a photo of open eyes hardly shows it, and shows lashes, brows and eyes where it lies.

What closes over an eye is folded away in the photo or seen edge-on. There the texture keeps what looks like the skin
around, and the rest becomes that skin, continued smoothly, with a line of lashes at the edge of the upper lid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from models.animation.morphs import morph_targets
from models.face.inner_parts import Openings, find_openings
from models.face.morphable import MorphableModel
from models.rendering.falloff import densely, ramp
from models.rendering.texture import DARKEST, FILLED, MIRRORED, OUTSIDE, SEEN, Texture, continue_smoothly
from models.rendering.texture_chart import TextureChart

BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
STILL, FOLDED = 0.08, 0.3
"""What a blink moves by less, or more, of its largest motion is no lid, or all lid."""
AT_EDGE_MM, OFF_EDGE_MM = 2.0, 4.5
"""So near to an opening the skin is lid too, and so far from it no more."""
CORNERS_MM, BROW_MM = 8.0, 2.0
"""Lashes and paint go so far beyond the lids, and brows begin so far above an opening."""
AROUND_MM = 11.0
"""Skin so near to the lids is like theirs."""

DIMMEST, BRIGHTEST = 0.92, 1.3
"""Brightness of that skin by its median: darker is a brow, glasses or a deep fold, brighter a glint."""
MOST_TINT = 0.09
"""Difference of the logarithms of two channels' ratios, beyond which it is no skin."""
LIKE_SKIN = 0.13
"""Difference of logarithms at which a texel is believed by 1/e."""
MUCH_DARKER = 0.3
"""The same at the corners, where wrinkles stay and lashes go."""
SQUARE_WEIGHT = 0.5
"""Weight of a texel, by the angle, that is believed for its own sake."""
SPECKLE_SHARE = 1 / 128
"""Of the texture's size: believed places that are smaller are none."""

RINGS = 6
"""A lid is thick: its rim lies some rings of vertices before the opening's edge."""
BEYOND_SHARE = 1 / 48
"""Of the texture's size: so much around an eye is looked at with it."""

THICK_MM, LASHES_MM, SHADOW_MM, SHADOW = 0.7, 2.0, 5.0, 0.15
LASHES = (0.42, 0.36, 0.34)
"""Of the skin's colour, at the rim of the upper lid; a share of that is the shadow above, in which lids are round."""


@dataclass(frozen=True)
class EyeLids:
    """The lids of one eye in a texture."""

    share: Float[Tensor, "1 1 H W"]
    """1 on the lids, 0 elsewhere, smooth between."""
    around: Bool[Tensor, "1 1 H W"]
    """Skin near the lids."""
    lashes: Float[Tensor, "1 1 H W"]
    """1 at the rim of the upper lid, 0 off it."""
    corners: Float[Tensor, "1 1 H W"]
    """1 beside the lids, 0 farther off and at the brow."""

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the texture outside which there is nothing of this eye."""
        rows, columns = torch.where((self.share > 0.0)[0, 0] | self.around[0, 0] | (self.lashes > 0.0)[0, 0])
        beyond = round(BEYOND_SHARE * self.share.shape[-1])
        top, left = (max(0, int(one.min()) - beyond) for one in (rows, columns))
        return slice(top, int(rows.max()) + 1 + beyond), slice(left, int(columns.max()) + 1 + beyond)

    def cut(self, rows: slice, columns: slice) -> EyeLids:
        """The same in a part of the texture."""
        whole = (self.share, self.around, self.lashes, self.corners)
        share, around, lashes, corners = (one[..., rows, columns] for one in whole)
        return EyeLids(share, around, lashes, corners)


def find_lids(model: MorphableModel, chart: TextureChart, openings: Openings | None = None) -> tuple[EyeLids, ...]:
    """The lids of both eyes, by what ARKit's blinks move; none where a face model lacks these.

    `openings`: what `find_openings` says of the model, where it is known.
    """
    names, targets = morph_targets(model)
    openings = find_openings(model) if openings is None else openings
    points = chart.interpolate(model.mean[None])[0].double().numpy()
    skin = chart.interpolate(model.part("skin").float()[None, :, None])[0, :, 0].numpy() > 0.5
    mean, found = model.mean.double().numpy(), []
    for name, loop in zip(BLINKS, (openings.left_eye, openings.right_eye), strict=True):
        if name not in names:
            continue
        motion = np.linalg.norm(targets[list(names).index(name)], axis=1)
        if motion.max() <= 0.0:
            continue
        moved = chart.interpolate(torch.from_numpy(motion / motion.max()).float()[None, :, None])[0, :, 0].numpy()
        share, lashes = ramp(moved, STILL, FOLDED), np.zeros(len(points))
        if len(loop):
            share = np.maximum(share, ramp(-_distance(points, mean[loop]), -OFF_EDGE_MM, -AT_EDGE_MM))
            rim = _distance(points, upper_rim(mean, model.triangles.numpy(), loop))
            lashes = np.maximum(ramp(-rim, -LASHES_MM, -THICK_MM), SHADOW * share * ramp(-rim, -SHADOW_MM, 0.0))
            lashes = lashes * ramp(points[:, 1] - np.interp(points[:, 0], *_corners(mean[loop])), -1.0, 1.0)
        share = share * skin
        lids = points[share > 0.5]
        if not len(lids):
            continue
        away = cKDTree(lids).query(points)[0]
        near = (away < AROUND_MM) & (share <= 0.0) & skin
        corners = np.zeros(len(points))
        if len(loop):
            top = mean[loop, 1].max()
            corners = ramp(-away, -CORNERS_MM, 0.0) * ramp(top - points[:, 1], -BROW_MM, BROW_MM) * skin
        stacked = torch.from_numpy(np.stack([share, near, lashes * skin, corners], 1)).float()
        shares, around, line, beside = chart.image(stacked[None]).split(1, 1)
        found.append(EyeLids(share=shares, around=around > 0.5, lashes=line, corners=beside))
    return tuple(found)


@torch.no_grad()
def mend_lids(texture: Texture, lids: tuple[EyeLids, ...]) -> Texture:
    """A whole texture with skin on the lids; see the head of this file."""
    whole, origins = texture.colour.clone(), texture.origin.clone()
    reach = max(1, round(SPECKLE_SHARE * whole.shape[-1]))
    for one in lids:
        rows, columns = one.box
        eye = one.cut(rows, columns)
        colour, origin, weight = (values[..., rows, columns] for values in (whole, origins, texture.weight))
        skin = skin_around(colour, eye.around, origin, brightness=(DIMMEST, BRIGHTEST), tint=MOST_TINT)
        if skin is None:
            continue
        like = (-((_apart(colour, skin) / LIKE_SKIN) ** 2)).exp()
        seen, mirrored = ((origin == kind)[:, None] for kind in (SEEN, MIRRORED))
        believed = seen * like * (weight / SQUARE_WEIGHT).clamp(0.0, 1.0)[:, None]
        believed = torch.minimum(believed, functional.avg_pool2d(believed, 2 * reach + 1, 1, reach))
        line = torch.tensor(LASHES, dtype=colour.dtype).view(1, 3, 1, 1)
        lashed = skin * (1.0 - eye.lashes * (1.0 - line))
        # What the photo did not show beside a lid was guessed from brows and lashes.
        hidden = eye.around * torch.where(mirrored, 1.0 - like, (~seen).to(like))
        hidden = functional.avg_pool2d(hidden, reach // 2 * 2 + 1, 1, reach // 2)
        darker = ((skin + DARKEST) / (colour + DARKEST)).log().mean(1, keepdim=True).clamp_min(0.0)
        painted = eye.corners * (1.0 - (-((darker / MUCH_DARKER) ** 2)).exp())
        replaced = torch.stack([eye.share * (1.0 - believed), eye.lashes, hidden, painted]).amax(0)
        whole[..., rows, columns] = (1.0 - replaced) * colour + replaced * lashed
        origins[..., rows, columns] = torch.where((replaced[:, 0] > 0.5) & (origin != OUTSIDE), FILLED, origin)
    return Texture(colour=whole, weight=texture.weight, origin=origins)


def skin_around(
    colour: Float[Tensor, "B 3 H W"],
    around: Bool[Tensor, "1 1 H W"],
    origin: Int[Tensor, "B H W"],
    *,
    brightness: tuple[float, float],
    tint: float,
) -> Float[Tensor, "B 3 H W"] | None:
    """The skin around a place continued over it; None if no skin is known there.

    Skin is what is about as bright as the most, by the limits of `brightness`, and whose channels have about the ratios
    of the most, their logarithms within `tint`.
    """
    shown = around & (origin == SEEN)[:, None]
    if not shown.flatten(1).any(1).all():
        shown = around.expand(len(colour), -1, -1, -1)
    logs = (colour + DARKEST).log()
    bright = logs.mean(1, keepdim=True)
    ratios = logs - bright
    usual = _median(bright, shown)
    known = shown & (bright > usual + np.log(brightness[0])) & (bright < usual + np.log(brightness[1]))
    known &= (ratios - _median(ratios, shown)).abs().amax(1, keepdim=True) < tint
    if not known.flatten(1).any(1).all():
        return None
    return (continue_smoothly(logs, known.to(colour)).exp() - DARKEST).clamp(0.0, 1.0)


def _median(values: Float[Tensor, "B C H W"], where: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B C 1 1"]:
    return values.masked_fill(~where, torch.nan).flatten(2).nanmedian(2).values[..., None, None]


def _apart(colour: Float[Tensor, "B 3 H W"], skin: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    return ((colour + DARKEST) / (skin + DARKEST)).log().abs().amax(1, keepdim=True)


def upper_rim(
    mean: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"], loop: Int[np.ndarray, "L"]
) -> Float[np.ndarray, "N 3"]:
    """Points along the rim of the upper lid, from corner to corner: the lowest of the rings about an opening."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    inner, outer = mean[loop, 0].min(), mean[loop, 0].max()
    ring, taken, rings = loop, set(loop.tolist()), []
    for _ in range(RINGS):
        points = mean[ring]
        above = points[points[:, 1] > np.interp(points[:, 0], *_corners(mean[loop]))]
        rings.append(above[above[:, 0].argsort()])
        touching = np.unique(edges[np.isin(edges, ring).any(1)])
        ring = np.array([one for one in touching.tolist() if one not in taken], np.int64)
        taken.update(ring.tolist())
    across = np.linspace(0.75 * inner + 0.25 * outer, 0.25 * inner + 0.75 * outer, 9)
    heights = [np.interp(across, one[:, 0], one[:, 1]).mean() if len(one) else np.inf for one in rings]
    return rings[int(np.argmin(heights))]


def _distance(points: Float[np.ndarray, "N 3"], line: Float[np.ndarray, "L 3"]) -> Float[np.ndarray, "N"]:
    """Distance of points to a chain of others."""
    return np.asarray(cKDTree(densely(line)).query(points)[0])


def _corners(loop: Float[np.ndarray, "L 3"]) -> tuple[list[float], list[float]]:
    """The corners of an eye: x of both, and y."""
    corners = loop[[loop[:, 0].argmin(), loop[:, 0].argmax()]]
    return corners[:, 0].tolist(), corners[:, 1].tolist()
