"""Losses against labelled meshes in the model's topology."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from models.face.alignment import NOW_LANDMARKS, rigid_alignment, rigid_icp, transform
from models.types import Scan


@torch.no_grad()
def align_scan(
    scan: Scan,
    landmarks: Float[Tensor, "B 68 3"],
    *,
    icp_steps: int = 0,
    surface: tuple[Float[Tensor, "B V 3"], Float[Tensor, "B V 3"]] | None = None,
    region: Int[Tensor, "R"] | None = None,
) -> Scan:
    """Move the labels rigidly onto the present reconstruction by the seven NoW points; no gradient, no scale.

    With `icp_steps`, so many trimmed point-to-plane steps of the label's vertices in `region` (all, if none is given)
    onto `surface`, the vertices and normals of the reconstruction, follow.
    Done anew at every step from the stored label, so that errors cannot accumulate. Scale is left alone, because
    the network could cheat with it. Source: method A.3.
    Raises: ValueError if steps are wanted without a surface.
    """
    if icp_steps and surface is None:
        raise ValueError(f"align_scan: {icp_steps} ICP steps without the surface to align to, expected one")
    points = list(NOW_LANDMARKS)
    rotation, translation, _ = rigid_alignment(scan.landmarks[:, points], landmarks[:, points])
    if icp_steps and surface is not None:
        rigid = scan.vertices if region is None else scan.vertices[:, region]
        vertices, normals = surface
        turn, shift, _ = rigid_icp(transform(rigid, rotation, translation), vertices, normals, steps=icp_steps)
        rotation, translation = turn @ rotation, (turn @ translation[..., None])[..., 0] + shift
    return Scan(
        vertices=transform(scan.vertices, rotation, translation),
        normals=scan.normals @ rotation.transpose(1, 2),
        landmarks=transform(scan.landmarks, rotation, translation),
    )


def vertex_distance(
    vertices: Float[Tensor, "B V 3"], target: Float[Tensor, "B V 3"], *, weights: Float[Tensor, "V"]
) -> Float[Tensor, "B"]:
    """Weighted mean distance of corresponding vertices in mm. Source: method A, L3."""
    distance = ((vertices - target).square().sum(2) + 1e-8).sqrt()
    return (distance * weights).sum(1) / weights.sum()


def normal_distance(
    normals: Float[Tensor, "B V 3"], target: Float[Tensor, "B V 3"], *, weights: Float[Tensor, "V"]
) -> Float[Tensor, "B"]:
    """Weighted mean of 1 - cosine between corresponding normals. Source: method A, L4."""
    distance = 1.0 - functional.cosine_similarity(normals, target, dim=2)
    return (distance * weights).sum(1) / weights.sum()
