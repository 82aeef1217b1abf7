"""Losses against labelled meshes in the model's topology."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.face.alignment import NOW_LANDMARKS, rigid_alignment, transform
from models.types import Scan


@torch.no_grad()
def align_scan(scan: Scan, landmarks: Float[Tensor, "B 68 3"]) -> Scan:
    """Move the labels rigidly onto the present reconstruction by the seven NoW points; no gradient, no scale.

    Done anew at every step from the stored label, so that errors cannot accumulate. Scale is left alone, because
    the network could cheat with it. Source: method A.3.
    """
    points = list(NOW_LANDMARKS)
    rotation, translation, _ = rigid_alignment(scan.landmarks[:, points], landmarks[:, points])
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
