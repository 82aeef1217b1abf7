"""Photos of one person to one face: fused identity, its uncertainty, and the files about the person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.reconstruction.aggregate import Aggregate, aggregate
from models.reconstruction.ensemble import Ensemble, posterior_spread
from models.reconstruction.photos import PhotoFace, join_batches
from models.reconstruction.reconstructor import Reconstructor
from models.types import FaceCoefficients, map_tensors
from tasks.photo_files import photo_paths


@dataclass(frozen=True)
class PersonFace:
    """What several photos say together about one person."""

    names: tuple[str, ...]
    """Of the photos."""
    method: str
    identity: Tensor
    """(I,) in standard deviations."""
    albedo: Tensor
    """(T,)"""
    weight: Tensor
    """(N,): share of each photo; they add up to 1."""
    kept: Tensor
    """(N,): whether the photo counted."""
    shrinkage: float
    """Norm of the photos' mean identity over the mean of their norms."""
    norm_ratio: float
    """The same of the identity that was found."""
    spread_mm: Tensor
    """(V,): standard deviation of each vertex of the neutral face, by what the photos leave open."""
    ensemble_mm: Tensor | None = None
    """(V,): the same by how far the members of an ensemble are apart; None for a single network."""

    @property
    def uncertainty_mm(self) -> Tensor:
        """(V,): both together."""
        if self.ensemble_mm is None:
            return self.spread_mm
        return (self.spread_mm.square() + self.ensemble_mm.square()).sqrt()

    def document(self) -> dict[str, Any]:
        """Everything but the vertices as plain data."""
        uncertainty = self.uncertainty_mm
        return {
            "photos": [
                {"photo": name, "weight": round(float(weight), 4), "kept": bool(kept)}
                for name, weight, kept in zip(self.names, self.weight, self.kept, strict=True)
            ],
            "aggregate": self.method,
            "identity": _numbers(self.identity),
            "albedo": _numbers(self.albedo),
            "shrinkage_of_the_mean": round(self.shrinkage, 4),
            "norm_ratio": round(self.norm_ratio, 4),
            "uncertainty_mm": {
                "mean": round(float(uncertainty.mean()), 3),
                "least": round(float(uncertainty.min()), 3),
                "most": round(float(uncertainty.max()), 3),
            },
        }


def fuse_faces(
    reconstructor: Reconstructor, faces: Sequence[PhotoFace], *, method: str
) -> tuple[list[PhotoFace], PersonFace]:
    """The same faces with one identity and albedo for all, and what is known of the person.

    Raises: ValueError if the method is unknown, or if it is `learned` and the network has not learned it.
    """
    batch = join_batches([face.batch for face in faces])
    person = torch.zeros(len(faces), dtype=torch.int64)
    before = join_faces(faces)
    confidence = None
    if method == "learned":
        confidence = reconstructor.set_confidence(batch.landmarks, batch.confidence)
    found = aggregate(
        reconstructor.model,
        batch,
        before,
        method=method,
        person=person,
        confidence=confidence,
        identity_map=reconstructor.identity_map(),
    )
    return with_coefficients(reconstructor, faces, found.coefficients), _person(
        reconstructor, faces, found, method=method
    )


def join_faces(faces: Sequence[PhotoFace]) -> FaceCoefficients:
    """The coefficients of several faces as one batch."""
    return FaceCoefficients(
        **{
            field.name: torch.cat([getattr(face.coefficients, field.name) for face in faces])
            for field in fields(FaceCoefficients)
        }
    )


@torch.no_grad()
def with_coefficients(
    reconstructor: Reconstructor, faces: Sequence[PhotoFace], coefficients: FaceCoefficients
) -> list[PhotoFace]:
    """The same faces with other coefficients, a row for each."""
    changed = []
    for place, face in enumerate(faces):
        own = map_tensors(coefficients, lambda values, place=place: values[place : place + 1])
        changed.append(replace(face, reconstruction=reconstructor.reconstruct(own, face.batch.camera)))
    return changed


@torch.no_grad()
def _person(reconstructor: Reconstructor, faces: Sequence[PhotoFace], found: Aggregate, *, method: str) -> PersonFace:
    apart = None
    if isinstance(reconstructor, Ensemble):
        batch = join_batches([face.batch for face in faces])
        answers = reconstructor.answers(batch.image, batch.landmarks, batch.confidence)
        # Each member's own mean over the photos, under the weights that were found.
        means = [replace_identity(answer, found.weight) for answer in answers]
        apart = reconstructor.shapes(means).spread[0]
    return PersonFace(
        names=tuple(face.name for face in faces),
        method=method,
        identity=found.coefficients.identity[0],
        albedo=found.coefficients.albedo[0],
        weight=found.weight,
        kept=found.kept,
        shrinkage=float(found.shrinkage[0]),
        norm_ratio=float(found.norm_ratio[0]),
        spread_mm=posterior_spread(reconstructor.model, found.covariance[:1])[0],
        ensemble_mm=apart,
    )


def replace_identity(answer: FaceCoefficients, weight: Tensor) -> FaceCoefficients:
    """The first photo's answer with the weighted mean of all identities."""
    first = map_tensors(answer, lambda values: values[:1])
    return replace(first, identity=(weight[:, None] * answer.identity).sum(0, keepdim=True))


def photos_by_person(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The photos of each person where every person has a folder: those named, or the folders inside one.

    Raises: ValueError or FileNotFoundError if something is not a folder, holds no photo, or two are called alike.
    """
    persons: dict[str, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: not a folder, expected one per person with --folder-per-person")
        inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        for own in inside or [folder]:
            name = own.resolve().name
            if name in persons:
                raise ValueError(f"{own}: a second folder called {name}; rename one, each person needs a name")
            persons[name] = list(photo_paths([own]))
    return persons


def _numbers(values: Tensor | np.ndarray) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), 6).tolist()
