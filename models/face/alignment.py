"""Rigid and similarity alignment: of corresponding points in closed form, of surfaces by iterated closest points."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch import Tensor

CHUNK_DISTANCES = 2**22
"""So many distances of a face are held at once while nearest points are looked for."""


def rigid_alignment(
    source: Float[Tensor, "B K 3"],
    target: Float[Tensor, "B K 3"],
    *,
    weights: Float[Tensor, "B K"] | None = None,
    scale: bool = False,
) -> tuple[Float[Tensor, "B 3 3"], Float[Tensor, "B 3"], Float[Tensor, "B"]]:
    """Rotation, translation and scale that bring `source` closest to `target`: s R x + t, in least squares.

    Degenerate: points on a line leave the turn about it free; the result is still a proper rotation.
    Source: Kabsch 1976; the scale after Umeyama 1991.
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    share = (weights / weights.sum(1, keepdim=True))[..., None]
    source_mean, target_mean = (source * share).sum(1, keepdim=True), (target * share).sum(1, keepdim=True)
    centred_source, centred_target = source - source_mean, target - target_mean
    left, singular, right = torch.linalg.svd((centred_target * share).transpose(1, 2) @ centred_source)
    signs = torch.ones_like(singular)
    signs[:, 2] = torch.det(left @ right)
    rotation = left @ (signs[..., None] * right)
    factor = torch.ones_like(singular[:, 0])
    if scale:
        factor = (singular * signs).sum(1) / (centred_source.square() * share).sum((1, 2))
    translation = target_mean[:, 0] - factor[:, None] * (source_mean @ rotation.transpose(1, 2))[:, 0]
    return rotation, translation, factor


def transform(
    points: Float[Tensor, "B N 3"],
    rotation: Float[Tensor, "B 3 3"],
    translation: Float[Tensor, "B 3"],
    scale: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B N 3"]:
    """Apply what `rigid_alignment` found."""
    turned = points @ rotation.transpose(1, 2)
    if scale is not None:
        turned = turned * scale[:, None, None]
    return turned + translation[:, None]


@torch.no_grad()
def rigid_icp(
    source: Float[Tensor, "B N 3"],
    target: Float[Tensor, "B M 3"],
    target_normals: Float[Tensor, "B M 3"],
    *,
    trim: float = 0.8,
    steps: int = 5,
    scale: bool = False,
) -> tuple[Float[Tensor, "B 3 3"], Float[Tensor, "B 3"], Float[Tensor, "B"]]:
    """Rotation, translation and scale that bring points onto a surface from a rough alignment: s R x + t, no gradient.

    Every step pairs each point with the nearest target point, keeps the share `trim` with the least distance, and
    solves the linearised motion towards the planes there; rotation and scale are its exponential.
    Degenerate: motions that the planes leave free, as along a plane, do not happen.
    Raises: ValueError if `trim` is not in (0, 1].
    Source: Chen and Medioni 1992; trimmed as by Chetverikov et al. 2002.
    """
    if not 0.0 < trim <= 1.0:
        raise ValueError(f"rigid_icp: trim is {trim}, expected a share above 0, at most 1")
    rotation = torch.eye(3, dtype=source.dtype, device=source.device).repeat(len(source), 1, 1)
    translation = torch.zeros_like(source[:, 0])
    factor = torch.ones_like(source[:, 0, 0])
    kept = max(1, round(trim * source.shape[1]))
    for _ in range(steps):
        moved = transform(source, rotation, translation, factor)
        nearest = _nearest(moved, target)[..., None].expand(-1, -1, 3)
        gap, normal = target.gather(1, nearest) - moved, target_normals.gather(1, nearest)
        chosen = gap.square().sum(2).argsort(dim=1)[:, :kept, None].expand(-1, -1, 3)
        gap, normal, moved = gap.gather(1, chosen), normal.gather(1, chosen), moved.gather(1, chosen)
        centre = moved.mean(1, keepdim=True)
        centred = moved - centre
        # A turn is counted at the points' typical distance, so that it weighs like a shift in the ridge.
        size = centred.square().sum(2).mean(1).sqrt().clamp_min(1e-9)[:, None, None]
        columns = [torch.linalg.cross(centred, normal) / size, normal]
        if scale:
            columns.append((centred * normal).sum(2, keepdim=True) / size)
        system = torch.cat(columns, 2)
        square = system.transpose(1, 2) @ system
        ridge = 1e-6 * kept * torch.eye(square.shape[1], dtype=square.dtype, device=square.device)
        motion = torch.linalg.solve(square + ridge, system.transpose(1, 2) @ (gap * normal).sum(2, keepdim=True))[
            ..., 0
        ]
        turn = axis_angle_to_rotation_matrix(motion[:, :3] / size[:, 0])
        growth = torch.exp(motion[:, 6] / size[:, 0, 0]) if scale else torch.ones_like(factor)
        carried = translation - centre[:, 0]
        translation = growth[:, None] * (turn @ carried[..., None])[..., 0] + centre[:, 0] + motion[:, 3:6]
        rotation, factor = turn @ rotation, growth * factor
    return rotation, translation, factor


def _nearest(points: Float[Tensor, "B N 3"], target: Float[Tensor, "B M 3"]) -> Int[Tensor, "B N"]:
    """Index of the target point that is nearest to each point."""
    rows = max(1, CHUNK_DISTANCES // target.shape[1])
    # Differences rather than products: in single precision these lose what lies close together.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cat(
        [torch.cdist(part, target, compute_mode=mode).argmin(2) for part in points.split(rows, dim=1)], dim=1
    )


NOW_LANDMARKS = (36, 39, 42, 45, 33, 48, 54)
"""Eye corners, base of the nose, mouth corners: the seven points of the NoW protocol, as iBUG indices."""
