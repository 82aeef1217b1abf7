"""The faces of the report: the best, the median and the worst with their errors, and an overview from best to worst."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from models.face.alignment import NOW_LANDMARKS, rigid_alignment, transform
from models.face.morphable import MorphableModel
from models.face.surface import scan_distance
from models.rendering.shade import vertex_normals
from models.training.data import CropSet
from tasks.artifacts import Workspace
from tasks.charts import colour_bar
from tasks.images import read_images
from tasks.measure import Measured, Truth
from tasks.params import Params
from tasks.pictures import (
    ERROR_COLOURS,
    PROFILE_DEG,
    Pixels,
    draw_mesh,
    draw_overlays,
    error_colours,
    face_over_photo,
    grid,
    png,
    select_faces,
)

RANKING = ("scan_error_mm", "landmark_nme", "similarity")
"""Faces are ranked by the first of these that is known."""

PICTURE_PX = 200
ERROR_LIMIT_MM = 4.0


def rank(measured: Measured, chosen: np.ndarray) -> tuple[str, np.ndarray]:
    """By which measure the chosen faces (N,) are ranked, and the places of those that have it, best first."""
    for name in RANKING:
        values = measured.values[name]
        known = np.nonzero(np.isfinite(values) & chosen)[0]
        if len(known):
            sign = -1 if name == "similarity" else 1
            return name, known[np.argsort(sign * values[known], kind="stable")]
    return RANKING[-1], np.zeros(0, dtype=np.int64)


def draw_gallery(
    params: Params,
    workspace: Workspace,
    model: MorphableModel,
    crops: CropSet,
    truth: Truth,
    measured: Measured,
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What the page says of the best, the median and the worst faces, and their pictures by name, with the overview."""
    measure, order = rank(measured, np.ones(len(crops), dtype=bool))
    images: dict[str, bytes] = {}
    if not len(order):
        return [], images
    each = max(1, params.evaluate.pictures // 3)
    middle = max(0, (len(order) - each) // 2)
    groups = {"best": order[:each], "median": order[middle : middle + each], "worst": order[::-1][:each]}
    images["overview"] = draw_overview(params, workspace, model, crops, measured, order)
    photos = read_images(workspace, {crops.sample_ids[place] for group in groups.values() for place in group})
    scale = colormaps[ERROR_COLOURS](np.linspace(0, 1, 128))[:, :3]
    images["error_scale"] = colour_bar(scale.tolist(), limit_mm=ERROR_LIMIT_MM)
    faces = []
    for group, places in groups.items():
        for rank_, place in enumerate(places.tolist()):
            name = f"face_{group}_{rank_ + 1}"
            photo = photos[crops.sample_ids[place]]
            images[name] = png(_face_row(params, model, crops, truth, measured, place, photo))
            faces.append(
                {
                    "group": group,
                    "image": name,
                    "sample_id": crops.sample_ids[place],
                    "source": crops.source[place],
                    "measure": measure,
                    "scan": float(measured.values["scan_error_mm"][place]),
                    "nme": float(measured.values["landmark_nme"][place]),
                    "pose": float(measured.values["pose_error_deg"][place]),
                    "similarity": float(measured.values["similarity"][place]),
                    "mesh": bool(crops.mesh_index[place] >= 0),
                }
            )
    return faces, images


def draw_overviews(
    params: Params, workspace: Workspace, model: MorphableModel, crops: CropSet, measured: Measured
) -> dict[str, bytes]:
    """An overview of each source, where there are several: what holds for rendered faces may not for real ones."""
    sources = sorted(set(crops.source))
    images = {}
    for source in sources if len(sources) > 1 else []:
        _, order = rank(measured, np.array(crops.source) == source)
        if len(order):
            images[f"overview_{source}"] = draw_overview(params, workspace, model, crops, measured, order)
    return images


def draw_overview(
    params: Params, workspace: Workspace, model: MorphableModel, crops: CropSet, measured: Measured, order: np.ndarray
) -> bytes:
    """A picture of faces at even distances in the given order: photo, reconstruction over it, bare shape."""
    spread = order[np.linspace(0, len(order) - 1, min(len(order), params.evaluate.pictures)).round().astype(int)]
    photos = read_images(workspace, {crops.sample_ids[place] for place in spread})
    chosen = torch.from_numpy(spread)
    return png(
        draw_overlays(
            model,
            select_faces(measured.coefficients, chosen),
            [photos[crops.sample_ids[place]] for place in spread],
            crops.affine[chosen],
            crop_px=params.project.crop_size_px,
            size_px=PICTURE_PX,
        )
    )


def _face_row(
    params: Params,
    model: MorphableModel,
    crops: CropSet,
    truth: Truth,
    measured: Measured,
    place: int,
    photo: Pixels,
) -> Pixels:
    """Photo, overlay, predicted shape from two sides, and with a label mesh the true profile and the error map."""
    face = select_faces(measured.coefficients, torch.tensor([place]))
    row = [
        *face_over_photo(
            model, face, photo, crops.affine[place], crop_px=params.project.crop_size_px, size_px=PICTURE_PX
        )
    ]
    mesh = int(crops.mesh_index[place])
    expression = face.expression if mesh < 0 or not bool(truth.neutral[mesh]) else None
    shape = model.vertices(face.identity, expression)

    def draw(vertices: Tensor, *, yaw_deg: float = 0.0, colours: Tensor | None = None) -> Pixels:
        return draw_mesh(vertices[0], model.triangles, size_px=PICTURE_PX, yaw_deg=yaw_deg, colours=colours)

    row.append(draw(shape))
    row.append(draw(shape, yaw_deg=-PROFILE_DEG))
    if mesh < 0:
        return grid([row])
    target = truth.shape[mesh : mesh + 1]
    row.append(draw(target, yaw_deg=-PROFILE_DEG))
    colours = error_colours(_vertex_errors(shape, target, truth), limit_mm=ERROR_LIMIT_MM)
    row.append(draw(target, colours=colours))
    return grid([row])


def _vertex_errors(shape: Tensor, target: Tensor, truth: Truth) -> np.ndarray:
    """(V,): distance of every outer vertex of the truth to the predicted surface; NaN elsewhere."""
    now_vertices = truth.landmark_vertices[list(NOW_LANDMARKS)]
    rotation, translation, _ = rigid_alignment(target[:, now_vertices], shape[:, now_vertices])
    moved = transform(target, rotation, translation)[0][truth.outer].double().numpy()
    normals = vertex_normals(shape, truth.triangles)[0].double().numpy()
    errors = np.full(len(truth.outer), np.nan)
    errors[truth.outer.numpy()] = scan_distance(moved, shape[0].double().numpy(), normals, truth.topology)[0]
    return errors
