"""Nose, mouth, forehead and cheeks of any face model, and the error of each after an alignment of its own.

Convention: regions are found on the mean shape from its 68 landmarks, in model space (x left, y up, z out of the face,
millimetres), so that they mean the same on every model and no list of vertices is kept. They do not overlap.
Source: the four regions and the regional alignment of REALY (Chai et al. 2022); its outlines are drawn by hand on one
topology, so the numbers are comparable among our models, not with its table.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.face.alignment import rigid_alignment, transform
from models.face.morphable import MorphableModel
from models.face.surface import SurfaceTopology, refine_to_surface
from models.rendering.shade import vertex_normals

REGIONS = ("nose", "mouth", "forehead", "cheeks")

FORWARD = 0.2
"""Least z of the normals of a region: what faces the camera of a frontal photo by less is side or back of the head."""

MIN_VERTICES = 8
"""A region of fewer, on a coarse mesh, is not measured: its alignment would explain everything."""


def face_regions(model: MorphableModel) -> dict[str, Bool[Tensor, "V"]]:
    """Vertices of each region; those of eyes and the inside of the mouth belong to none.

    Nose: from the bridge (27) to its bottom (33), as wide as the inner eyes above and the wings below. Mouth: around
    the lips, from under the nose to halfway down the chin. Forehead: above the brows, for half of the eyes' distance.
    Cheeks: beside nose and mouth, from the lower lids to the lower lip.
    """
    mean, points = model.mean.detach().cpu().double(), model.landmarks(model.mean[None])[0].detach().cpu().double()
    outer = (model.part("skin") | model.part("lips") | model.part("brows")).cpu()
    forward = vertex_normals(mean[None].float(), model.triangles.cpu())[0, :, 2] > FORWARD
    x, y = mean[:, 0] - points[[27, 33, 36, 45], 0].mean(), mean[:, 1]
    beside = x.abs()
    eyes = float((points[45, 0] - points[36, 0]).abs())
    bridge, bottom = float(points[27, 1]), float(points[33, 1])
    lip_top, lip_bottom, chin = float(points[51, 1]), float(points[57, 1]), float(points[8, 1])
    inner, wings = float((points[42, 0] - points[39, 0]).abs()), float((points[35, 0] - points[31, 0]).abs())
    down = ((bridge - y) / max(bridge - bottom, 1e-6)).clamp(0.0, 1.0)
    # The sills of the nostrils (31, 35) are annotated, the wings stand out beyond them.
    nose_half = (1.0 - down) * 0.4 * inner + down * 0.85 * wings
    nose = (beside < nose_half) & (y < bridge) & (y > bottom - 0.03 * eyes)
    mouth_half = 0.65 * float((points[54, 0] - points[48, 0]).abs())
    mouth_top, mouth_bottom = lip_top + 0.7 * (bottom - lip_top), lip_bottom + 0.5 * (chin - lip_bottom)
    mouth = (beside < mouth_half) & (y < mouth_top) & (y > mouth_bottom) & ~nose
    brow_x, brow_y = (points[17:27, 0] - points[[27, 33, 36, 45], 0].mean()).numpy(), points[17:27, 1].numpy()
    order = np.argsort(brow_x)
    brow = torch.from_numpy(np.interp(x.numpy(), brow_x[order], brow_y[order]))
    forehead = (y > brow + 0.03 * eyes) & (y < brow + 0.55 * eyes) & (beside < np.abs(brow_x).max())
    lids = float(points[[41, 46], 1].mean())
    cheeks = (y < lids - 0.05 * eyes) & (y > lip_bottom) & ~nose & ~mouth & (beside > nose_half)
    found = {"nose": nose, "mouth": mouth, "forehead": forehead, "cheeks": cheeks}
    return {name: found[name] & outer & forward for name in REGIONS}


def region_errors(
    predicted: Float[Tensor, "B V 3"], target: Float[Tensor, "B V 3"], regions: Mapping[str, Bool[Tensor, "V"]]
) -> dict[str, Float[Tensor, "B"]]:
    """Mean distance in mm of corresponding vertices per region, each after a rigid alignment of that region alone.

    What is left is the wrong shape of the part: where it sits on the face, and how it is turned, does not count.
    Degenerate: NaN for a region of too few vertices.
    """
    errors = {}
    for name, chosen in regions.items():
        if int(chosen.sum()) < MIN_VERTICES:
            errors[name] = predicted.new_full((len(predicted),), torch.nan)
            continue
        part, truth = predicted[:, chosen], target[:, chosen]
        rotation, translation, _ = rigid_alignment(part, truth)
        errors[name] = torch.linalg.vector_norm(transform(part, rotation, translation) - truth, dim=2).mean(1)
    return errors


def region_scan_errors(
    predicted: Float[np.ndarray, "V 3"],
    regions: Mapping[str, Bool[np.ndarray, "V"]],
    *,
    scan: Float[np.ndarray, "S 3"],
    scan_normals: Float[np.ndarray, "S 3"],
    scan_topology: SurfaceTopology,
) -> dict[str, float]:
    """The same against a scan of another topology: mean distance of a region's vertices to the scan's surface.

    Convention: the prediction is already aligned to the scan by landmarks, in the scan's millimetres. Each region is
    then moved rigidly by point-to-plane ICP, and its nearest surface points stand for the correspondence.
    Degenerate: NaN for a region of too few vertices.
    """
    tree = scan_topology.tree(scan)
    errors = {}
    for name, chosen in regions.items():
        if int(chosen.sum()) < MIN_VERTICES:
            errors[name] = float("nan")
            continue
        moved, _ = refine_to_surface(predicted[chosen], scan, scan_normals, scan_topology, tree=tree)
        errors[name] = float(tree.nearest(moved).distance.mean())
    return errors
