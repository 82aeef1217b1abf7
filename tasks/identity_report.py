"""Whether reconstructed faces can be told apart: verification, distinctness and a picture, for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from models.face.alignment import rigid_alignment, transform
from models.face.morphable import MorphableModel
from models.losses.coefficients import geometry_embedding
from models.metrics import distinctness
from models.reconstruction.confidence import ConfidenceNetwork
from models.training.data import CropSet
from models.verification import (
    Pairs,
    all_pairs,
    cosine_distance,
    distinctness_interval,
    nearest_other_photo,
    nearest_person,
    verification_intervals,
    verify,
    yaw_pairs,
)
from tasks.artifacts import Workspace
from tasks.images import read_images
from tasks.measure import Measured, Truth
from tasks.params import Params
from tasks.pictures import (
    PROFILE_DEG,
    Pixels,
    draw_mesh,
    error_colours,
    face_over_photo,
    grid,
    png,
    select_faces,
)
from tasks.report_tables import FINAL, TITLES, interval, number, yaw_title

DISTANCES = ("geometry", "euclidean", "cosine")
"""RMS vertex distance in mm; distance and angle of coefficients in standard deviations."""

COLUMNS: tuple[tuple[str, str, str, float, int], ...] = (
    # key, heading, unit, factor, decimals
    ("geometry_accuracy", "same or not, by shape", "%", 100, 1),
    ("geometry_auc", "AUC, by shape", "", 1, 3),
    ("geometry_tar", "accepted at 1 % false", "%", 100, 1),
    ("euclidean_accuracy", "by coefficients", "%", 100, 1),
    ("cosine_accuracy", "by their angle", "%", 100, 1),
    ("distinctness", "distinctness", "", 1, 3),
    ("rank1_neutral", "nearest true face is the own", "%", 100, 1),
    ("rank1_photo", "nearest photo is the own", "%", 100, 1),
)
YAW_KEYS = ("geometry_accuracy", "geometry_auc", "geometry_tar", "cosine_accuracy")

PICTURE_PX = 150
DIFFERENCE_LIMIT_MM = 4.0
PERSONS_SHOWN = 4
PHOTOS_SHOWN = 3
FACES_SHOWN = 6
SIGMA_LIMIT = 0.3
"""Expected error of a pixel in [0, 1] that is drawn in the last colour."""


def identity_metrics(
    identity: Float[Tensor, "N I"],
    *,
    embedding: Float[Tensor, "I I"],
    person: np.ndarray,
    yaw_deg: np.ndarray | None = None,
    edges_deg: Sequence[float] = (0.0, 30.0, 60.0, 90.0),
    gallery: tuple[np.ndarray, np.ndarray] | None = None,
    intervals: bool = True,
) -> dict[str, Any]:
    """Verification by three distances, distinctness and nearest faces of reconstructed identities; None where unknown.

    `gallery`: the true shapes of persons as coordinates of the embedding, see `true_shapes`, and the persons.
    """
    coordinates = (identity @ embedding).double().cpu().numpy()
    coefficients = identity.double().cpu().numpy()
    pairs = all_pairs(person)
    numbers: dict[str, float] = {}
    for name, distance in _distances(coordinates, coefficients, pairs).items():
        found = verify(distance, pairs)
        numbers |= {f"{name}_accuracy": found.accuracy, f"{name}_auc": found.auc, f"{name}_tar": found.tar}
        if name == "geometry":
            numbers |= {
                "geometry_threshold_mm": found.threshold,
                "geometry_accuracy_deviation": found.accuracy_deviation,
            }
            if intervals and math.isfinite(found.accuracy):
                for key, ends in verification_intervals(distance, pairs, found.right, person).items():
                    numbers |= {f"geometry_{key}_low": ends[0], f"geometry_{key}_high": ends[1]}
    numbers["distinctness"] = distinctness(torch.from_numpy(coordinates), torch.from_numpy(person))
    if intervals and math.isfinite(numbers["distinctness"]):
        numbers["distinctness_low"], numbers["distinctness_high"] = distinctness_interval(coordinates, person)
    several = np.isin(person, _repeated(person))
    if several.any():
        numbers["rank1_photo"] = float(nearest_other_photo(coordinates, person)[several].mean())
    if gallery is not None and len(gallery[1]):
        shown = np.isin(person, gallery[1])
        found_own = nearest_person(coordinates[shown], person[shown], *gallery)
        numbers["rank1_neutral"] = float(found_own.mean()) if shown.any() else math.nan
    result: dict[str, Any] = _rounded(numbers)
    result |= {"pairs_same": int(pairs.same.sum()), "pairs_different": int((~pairs.same).sum())}
    if yaw_deg is not None:
        result["by_yaw"] = {
            name: _yaw_numbers(part, coordinates, coefficients)
            for name, part in yaw_pairs(pairs, yaw_deg, edges_deg).items()
        }
    return result


def _yaw_numbers(pairs: Pairs, coordinates: np.ndarray, coefficients: np.ndarray) -> dict[str, Any]:
    numbers: dict[str, float] = {}
    for name, distance in _distances(coordinates, coefficients, pairs).items():
        found = verify(distance, pairs)
        numbers |= {f"{name}_accuracy": found.accuracy, f"{name}_auc": found.auc, f"{name}_tar": found.tar}
    return {**_rounded(numbers), "pairs_same": int(pairs.same.sum()), "pairs_different": int((~pairs.same).sum())}


def _distances(coordinates: np.ndarray, coefficients: np.ndarray, pairs: Pairs) -> dict[str, np.ndarray]:
    first, second = pairs.first, pairs.second
    return {
        "geometry": np.linalg.norm(coordinates[first] - coordinates[second], axis=1),
        "euclidean": np.linalg.norm(coefficients[first] - coefficients[second], axis=1),
        "cosine": cosine_distance(coefficients[first], coefficients[second]),
    }


def true_shapes(model: MorphableModel, truth: Truth, crops: CropSet) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (G, I) of the test persons' true neutral shapes in the embedding, and the persons (G,).

    Coordinates are those of the nearest shape of the face model, up to rigid motion; a mesh known with its expression
    alone is left out.
    """
    basis = model.identity_basis.detach().cpu()
    mean = model.mean.detach().cpu()
    embedding = geometry_embedding(basis, mean).double()
    meshes, persons = [], []
    for person in sorted(set(crops.person.tolist())):
        of_person = crops.mesh_index[(crops.person == person) & (crops.mesh_index >= 0)]
        of_person = of_person[truth.neutral[of_person]]
        if len(of_person):
            meshes.append(int(of_person.min()))
            persons.append(person)
    if not meshes:
        return np.zeros((0, len(basis))), np.zeros(0, np.int64)
    shapes = truth.shape[torch.tensor(meshes)]
    outer = truth.outer
    rotation, translation, _ = rigid_alignment(shapes[:, outer], mean[outer].expand(len(shapes), -1, 3))
    offsets = (transform(shapes, rotation, translation) - mean).flatten(1).double()
    # Shape and motion are found together: what a motion explains is no shape.
    axes = torch.eye(3, dtype=torch.float64)
    centred = (mean - mean.mean(0)).double()
    turns = torch.linalg.cross(axes[:, None].expand(-1, len(mean), -1), centred.expand(3, -1, -1)).flatten(1)
    shifts = axes[:, None].expand(-1, len(mean), -1).flatten(1)
    columns = torch.cat([basis.flatten(1).double(), turns, shifts]).T
    identity = torch.linalg.lstsq(columns, offsets.T).solution[: len(basis)].T
    return (identity @ embedding).numpy(), np.array(persons)


def identity_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Headings and a row for each stage's model; no rows where nobody was photographed twice."""
    known = {
        block: values["identity"]
        for block, values in metrics.items()
        if (values.get("identity") or {}).get("distinctness") is not None
    }
    best = {}
    for key, *_ in COLUMNS:
        values = [found[key] for found in known.values() if found.get(key) is not None]
        best[key] = max(values) if values else None
    rows = []
    for block, found in known.items():
        cells = [
            {
                "text": number(found.get(key), factor, decimals),
                "interval": interval(found, key, factor, decimals),
                "best": best[key] is not None and found.get(key) == best[key],
            }
            for key, _, _, factor, decimals in COLUMNS
        ]
        rows.append({"title": TITLES.get(block, block), "final": block == FINAL, "cells": cells})
    return {"headings": [{"title": title, "unit": unit} for _, title, unit, _, _ in COLUMNS], "rows": rows}


def identity_yaw_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The final model's verification by the larger |yaw| of the two photos."""
    columns = [column for column in COLUMNS if column[0] in YAW_KEYS]
    rows = [
        {
            "title": yaw_title(name),
            "pairs": f"{values['pairs_same']} / {values['pairs_different']}",
            "cells": [number(values.get(key), factor, decimals) for key, _, _, factor, decimals in columns],
        }
        for name, values in ((metrics[FINAL].get("identity") or {}).get("by_yaw") or {}).items()
    ]
    return {"headings": [{"title": title, "unit": unit} for _, title, unit, _, _ in columns], "rows": rows}


def draw_identities(
    params: Params, workspace: Workspace, model: MorphableModel, crops: CropSet, measured: Measured
) -> bytes | None:
    """A row for each of some persons: of every photo the face, its neutral shape from front and side; last, how far
    the shapes of the first and the second photo are apart. None where nobody was photographed twice.
    """
    person = crops.person.numpy()
    repeated = _repeated(person)
    if not len(repeated):
        return None
    shown = repeated[np.linspace(0, len(repeated) - 1, min(PERSONS_SHOWN, len(repeated))).round().astype(int)]
    photos_of = {number: np.nonzero(person == number)[0][:PHOTOS_SHOWN] for number in shown}
    photos = read_images(workspace, {crops.sample_ids[place] for places in photos_of.values() for place in places})
    widest = max(len(places) for places in photos_of.values())
    blank = np.full((PICTURE_PX, PICTURE_PX, 3), 255, np.uint8)
    rows = []
    for places in photos_of.values():
        row: list[Pixels] = []
        shapes = []
        for place in places.tolist():
            face = select_faces(measured.coefficients, torch.tensor([place]))
            crop, _ = face_over_photo(
                model,
                face,
                photos[crops.sample_ids[place]],
                crops.affine[place],
                crop_px=params.project.crop_size_px,
                size_px=PICTURE_PX,
            )
            shape = model.vertices(face.identity)
            shapes.append(shape)
            row += [crop, *(_drawn(model, shape, yaw_deg=yaw) for yaw in (0.0, -PROFILE_DEG))]
        row += [blank] * (3 * (widest - len(places)))
        row.append(_difference(model, shapes[0], shapes[1]))
        rows.append(row)
    return png(grid(rows))


def draw_confidence(
    content: Mapping[str, Any], model: MorphableModel, crops: CropSet, measured: Measured
) -> bytes | None:
    """Photos, faces over them, and where the network of confidence expects them to differ, with the face's own skin
    and with its mirror image; None if the checkpoint holds no such network.
    """
    if "confidence" not in content:
        return None
    network = ConfidenceNetwork.load(content["confidence"])
    places = np.linspace(0, len(crops) - 1, min(FACES_SHOWN, len(crops))).round().astype(int)
    images = crops.images[torch.from_numpy(places)]
    with torch.no_grad():
        sigma = network(images.float() / 255.0)
    columns = []
    size_px = images.shape[-1]
    for place, image, spread in zip(places.tolist(), images, sigma, strict=True):
        face = select_faces(measured.coefficients, torch.tensor([place]))
        photo = image.permute(1, 2, 0).numpy()
        crop, overlay = face_over_photo(model, face, photo, torch.eye(3), crop_px=size_px, size_px=size_px)
        maps = [
            (colormaps["magma"]((values / SIGMA_LIMIT).clamp(0, 1).numpy())[..., :3] * 255).astype(np.uint8)
            for values in spread
        ]
        columns.append([_enlarged(picture) for picture in (crop, overlay, *maps)])
    return png(grid([list(row) for row in zip(*columns, strict=True)]))


def _repeated(person: np.ndarray) -> np.ndarray:
    """Persons of whom there are several photos."""
    numbers, counts = np.unique(person, return_counts=True)
    return np.asarray(numbers[counts > 1])


def _drawn(model: MorphableModel, shape: Tensor, *, yaw_deg: float = 0.0, colours: Tensor | None = None) -> Pixels:
    return draw_mesh(shape[0], model.triangles, size_px=PICTURE_PX, yaw_deg=yaw_deg, colours=colours)


def _difference(model: MorphableModel, first: Tensor, second: Tensor) -> Pixels:
    rotation, translation, _ = rigid_alignment(second, first)
    apart = torch.linalg.vector_norm(transform(second, rotation, translation) - first, dim=2)[0]
    return _drawn(model, first, colours=error_colours(apart.numpy(), limit_mm=DIFFERENCE_LIMIT_MM))


def _enlarged(picture: Pixels) -> Pixels:
    resized = Image.fromarray(picture).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def _rounded(numbers: Mapping[str, float]) -> dict[str, Any]:
    return {name: round(value, 5) if math.isfinite(value) else None for name, value in numbers.items()}
