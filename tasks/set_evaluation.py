"""Sets of photos of persons whom no training saw, rendered and detected like others, and how good their faces are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from models.face.alignment import rigid_alignment, transform
from models.face.camera import angles_from_rotation, crop_camera
from models.face.morphable import MorphableModel
from models.face.surface import SurfaceTopology, now_crop, now_distance
from models.landmarks.detector import LandmarkDetector
from models.metrics import vertex_error
from models.reconstruction.photos import crop_photo, join_batches
from models.reconstruction.reconstructor import Reconstructor
from models.rendering.shade import vertex_normals
from models.statistics import bootstrap_interval, paired_difference, pooled_median_interval
from models.types import Batch, FaceCoefficients, map_tensors
from tasks.images import decode
from tasks.measure import SCAN_POINTS, join_coefficients
from tasks.params import Params
from tasks.source_params import SyntheticSource
from tasks.synthesize import synthesize

SOURCE = "photo_sets"
"""Name of the rendered source; its persons have random streams of their own, so that no training can have seen them."""

AT_ONCE = 64


@dataclass(frozen=True)
class PhotoSets:
    """Several photos of each of some persons, with the persons' true neutral shapes."""

    batch: Batch
    """All photos in which a face was found; `person` is a row of `neutral`."""
    neutral: Tensor
    """(P, V, 3) mm."""
    yaw_deg: np.ndarray
    """(N,), true."""
    missed: int
    """Photos in which no face was found."""


@dataclass(frozen=True)
class ShapeErrors:
    """How far estimated neutral shapes are from the truth, one row per estimate."""

    person: np.ndarray
    scan: tuple[np.ndarray, ...]
    """Distances of the scan's points to the surface in mm, by the NoW protocol without scale."""
    vertex_mm: np.ndarray
    """Mean distance of corresponding vertices after rigid alignment."""

    @property
    def scan_mm(self) -> np.ndarray:
        """(K,): the median of each estimate."""
        return np.array([np.median(one) for one in self.scan])


def render_sets(
    params: Params, model: MorphableModel, detector: LandmarkDetector, *, persons: int, photos: int, seed: int
) -> PhotoSets:
    """Render, detect and crop; every seed has other persons."""
    source = SyntheticSource(kind="synthetic", name=SOURCE, persons=persons, photos_per_person=photos)
    rendered = list(synthesize(source, model, seed=seed))
    limits = {"max_bytes": params.ingest.max_image_bytes, "max_pixels": params.ingest.max_image_pixels}
    crops, person, yaw = [], [], []
    neutral: dict[int, Tensor] = {}
    for start in range(0, len(rendered), AT_ONCE):
        some = rendered[start : start + AT_ONCE]
        pixels = [decode(photo.content, **limits) for photo in some]
        for photo, image, found in zip(some, pixels, detector.detect(pixels), strict=True):
            assert photo.neutral is not None
            neutral.setdefault(int(photo.person), torch.from_numpy(photo.neutral))
            if found is None:
                continue
            size, scale = params.project.crop_size_px, params.validate_labels.crop_scale
            crops.append(crop_photo(image, found, size_px=size, scale=scale, name=photo.name)[0])
            person.append(int(photo.person))
            yaw.append(float(angles_from_rotation(torch.from_numpy(photo.rotation)[None])[0, 0].rad2deg()))
    joined = join_batches(crops)
    return PhotoSets(
        batch=Batch(**{**vars(joined), "person": torch.tensor(person)}),
        neutral=torch.stack([neutral[place] for place in range(persons)]),
        yaw_deg=np.array(yaw),
        missed=len(rendered) - len(crops),
    )


@torch.no_grad()
def encode_sets(reconstructor: Reconstructor, batch: Batch) -> FaceCoefficients:
    """What the network says of every photo by itself."""
    parts = [
        reconstructor(part.image.contiguous(memory_format=torch.channels_last), part.landmarks, part.confidence)
        for part in batches(batch)
    ]
    return join_coefficients(parts)


def batches(batch: Batch) -> Iterator[Batch]:
    """A long batch in pieces."""
    for start in range(0, len(batch.person), AT_ONCE):
        yield select(batch, torch.arange(start, min(start + AT_ONCE, len(batch.person))))


def select(batch: Batch, places: Tensor) -> Batch:
    """Some photos of a batch."""
    return Batch(
        source=batch.source,
        sample_ids=tuple(batch.sample_ids[place] for place in places.tolist()),
        camera=crop_camera(len(places), batch.camera.size[0]),
        image=batch.image[places],
        mask=batch.mask[places],
        landmarks=batch.landmarks[places],
        confidence=batch.confidence[places],
        person=batch.person[places],
    )


def draw_sets(person: Tensor, size: int, *, most: int, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Disjoint sets (K, size) of photos of one person each, at most `most` of a person, and their persons (K,).

    Persons with fewer photos are left out. Sets of a seed are nested: a smaller one begins a larger one.
    """
    sets, owners = [], []
    for number in sorted(set(person.tolist())):
        places = torch.nonzero(person == number)[:, 0]
        order = places[torch.randperm(len(places), generator=Generator().manual_seed(seed * 100_003 + number))]
        for place in range(min(most, len(order) // size)):
            sets.append(order[place * size : (place + 1) * size])
            owners.append(number)
    return torch.stack(sets) if sets else torch.zeros(0, size, dtype=torch.int64), np.array(owners, np.int64)


class SetBench:
    """The true shapes of the persons, prepared once for all that is measured against them."""

    def __init__(self, model: MorphableModel, neutral: Tensor) -> None:
        self.model, self.neutral = model, neutral
        self.outer = (model.part("skin") | model.part("lips") | model.part("brows")).cpu()
        self.landmarks = model.landmark_vertices.cpu().numpy()
        self.topology = SurfaceTopology.build(model.triangles.cpu().numpy(), model.vertex_count)
        order = np.random.default_rng(0).permutation(np.nonzero(self.outer.numpy())[0])
        self.points = []
        for vertices in neutral.double().numpy():
            self.points.append(order[now_crop(vertices[order], vertices[self.landmarks])][:SCAN_POINTS])

    def errors(self, shapes: Tensor, person: np.ndarray) -> ShapeErrors:
        """Errors of neutral shapes (K, V, 3) of the persons (K,)."""
        truth = self.neutral[torch.from_numpy(person)]
        normals = vertex_normals(shapes, self.model.triangles).double().numpy()
        found, target = shapes.double().numpy(), truth.double().numpy()

        def distance(row: int) -> np.ndarray:
            points = self.points[int(person[row])]
            rigid, _ = now_distance(
                target[row][points],
                target[row][self.landmarks],
                found[row],
                normals[row],
                found[row][self.landmarks],
                self.topology,
            )
            return rigid.astype(np.float32)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            scan = tuple(pool.map(distance, range(len(person))))
        return ShapeErrors(person=person, scan=scan, vertex_mm=self.vertex_errors(shapes, truth).numpy())

    def vertex_errors(self, shapes: Tensor, truth: Tensor) -> Tensor:
        """(K,): mean distance in mm of corresponding outer vertices after rigid alignment."""
        rotation, translation, _ = rigid_alignment(shapes[:, self.outer], truth[:, self.outer])
        return vertex_error(transform(shapes, rotation, translation), truth, self.outer)

    def distances(self, shapes: Tensor, person: np.ndarray) -> Tensor:
        """(K, O): distance of every outer vertex after rigid alignment."""
        truth = self.neutral[torch.from_numpy(person)][:, self.outer]
        rotation, translation, _ = rigid_alignment(shapes[:, self.outer], truth)
        moved = transform(shapes[:, self.outer], rotation, translation)
        found: Tensor = torch.linalg.vector_norm(moved - truth, dim=2)
        return found


def summarize(errors: ShapeErrors) -> dict[str, Any]:
    """Pooled numbers with their 95 % intervals over persons."""
    low, high = pooled_median_interval(list(errors.scan), errors.person)
    vertex_low, vertex_high = bootstrap_interval(errors.vertex_mm, errors.person)
    return {
        "sets": len(errors.person),
        "persons": len(np.unique(errors.person)),
        "scan_error_mm_median": round(float(np.median(np.concatenate(errors.scan))), 4),
        "scan_error_mm_median_low": round(low, 4),
        "scan_error_mm_median_high": round(high, 4),
        "vertex_error_mm": round(float(errors.vertex_mm.mean()), 4),
        "vertex_error_mm_low": round(vertex_low, 4),
        "vertex_error_mm_high": round(vertex_high, 4),
    }


def person_means(errors: ShapeErrors, values: np.ndarray, persons: int) -> np.ndarray:
    """(P,): mean of a value over the sets of each person; NaN for persons without any."""
    count = np.bincount(errors.person, minlength=persons)
    total = np.bincount(errors.person, weights=values, minlength=persons)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def compare(first: ShapeErrors, second: ShapeErrors, persons: int) -> dict[str, float]:
    """First minus second, person by person, with the 95 % interval over persons."""
    numbers: dict[str, float] = {}
    for name, one, other in (
        ("scan_error_mm", first.scan_mm, second.scan_mm),
        ("vertex_error_mm", first.vertex_mm, second.vertex_mm),
    ):
        found = paired_difference(person_means(first, one, persons), person_means(second, other, persons))
        for ending, value in zip(("", "_low", "_high"), found, strict=True):
            numbers[f"{name}{ending}"] = round(value, 4)
    return numbers


def joined_sets(batch: Batch, coefficients: FaceCoefficients, sets: Tensor) -> tuple[Batch, FaceCoefficients, Tensor]:
    """The photos of some sets one after the other, with their coefficients, and the number of each photo's set."""
    places = sets.flatten()
    numbers = torch.arange(len(sets)).repeat_interleave(sets.shape[1])
    return select(batch, places), map_tensors(coefficients, lambda values: values[places]), numbers
