"""Whether photos show one person, told from reconstructed shapes, on a list of pairs such as LFW's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.losses.coefficients import geometry_embedding
from models.verification import Pairs, cosine_distance, verify
from tasks.artifacts import Workspace
from tasks.ensembles import open_reader
from tasks.face_pairs import FacePairs, PairsError, read_pairs
from tasks.images import ImageError
from tasks.params import load_params
from tasks.reconstruct import PhotoError, read_face

Progress = Callable[[int, int, int], None]
"""Called with the photos done, all photos, and the faces found so far."""


def verify_photos(
    folder: Path,
    pairs_file: Path,
    *,
    workspace: Workspace,
    checkpoint: Path | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Reconstruct every photo of the list and compare shapes: accuracy over the folds, AUC and TAR by three distances.

    A pair of which a photo cannot be read, or shows no face, counts as `pairs_failed` and is left out of the numbers.
    Raises: PairsError if the list cannot be used, or nothing of it.
    """
    listed = read_pairs(pairs_file, folder)
    params = load_params(workspace.params)
    reader = open_reader(params, workspace, checkpoint)
    model = reader.reconstructor.model
    embedding = geometry_embedding(model.identity_basis, model.mean)
    identities: dict[Path, np.ndarray] = {}
    failed: dict[str, str] = {}
    photos = listed.photos()
    for number, path in enumerate(photos, start=1):
        try:
            face = read_face(reader, path)
            identities[path] = face.coefficients.identity[0].double().numpy()
        except (ImageError, PhotoError, OSError) as error:
            failed[str(path.relative_to(folder))] = str(error)
        progress(number, len(photos), len(identities))
    known = np.array([a in identities and b in identities for a, b in zip(listed.first, listed.second, strict=True)])
    if not known.any():
        reason = next(iter(failed.values()), "")
        raise PairsError(f"{pairs_file}: no pair has two faces; the first photo that failed: {reason}")
    return {**judge_pairs(listed, known, identities, embedding.double().numpy()), "photos_failed": failed}


def judge_pairs(
    listed: FacePairs, known: np.ndarray, identities: dict[Path, np.ndarray], embedding: np.ndarray
) -> dict[str, Any]:
    """Numbers over the pairs of which both photos are known."""
    places = np.nonzero(known)[0]
    first, second = (np.stack([identities[side[place]] for place in places]) for side in (listed.first, listed.second))
    pairs = Pairs(places, places, listed.same[known], listed.fold[known])
    distances = {
        "geometry": np.linalg.norm((first - second) @ embedding, axis=1),
        "euclidean": np.linalg.norm(first - second, axis=1),
        "cosine": cosine_distance(first, second),
    }
    numbers: dict[str, Any] = {}
    for name, distance in distances.items():
        found = verify(distance, pairs)
        numbers |= {
            f"{name}_accuracy": found.accuracy,
            f"{name}_accuracy_deviation": found.accuracy_deviation,
            f"{name}_auc": found.auc,
            f"{name}_tar": found.tar,
            f"{name}_threshold": found.threshold,
        }
    rounded = {name: round(value, 5) if math.isfinite(value) else None for name, value in numbers.items()}
    return {
        **rounded,
        "pairs_same": int(pairs.same.sum()),
        "pairs_different": int((~pairs.same).sum()),
        "pairs_failed": int((~known).sum()),
    }
