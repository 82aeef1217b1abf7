"""Aligned crops, and batches drawn from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from models.face.camera import crop_camera
from models.face.crop import inside_photo
from models.face.morphable import MorphableModel
from models.rendering.shade import vertex_normals
from models.types import MIRRORED_LANDMARKS, Batch, Scan

JITTER = 0.15
"""Range of random brightness and contrast on labelled crops, of which there are few."""


@dataclass(frozen=True)
class CropSet:
    """All aligned crops of a split."""

    sample_ids: tuple[str, ...]
    source: tuple[str, ...]
    images: UInt8[Tensor, "N 3 S S"]
    landmarks: Float[Tensor, "N 68 2"]
    """Detected points in pixels of the crop."""
    confidence: Float[Tensor, "N 68"]
    annotation: Float[Tensor, "N 68 2"]
    """True or annotated points in pixels of the crop; NaN where there are none."""
    person: Int[Tensor, "N"]
    affine: Float[Tensor, "N 3 3"]
    """Crop pixels to photo pixels."""
    photo_size: Float[Tensor, "N 2"]
    """Width and height of the photo."""
    rotation: Float[Tensor, "N 3"]
    """True axis-angle; NaN where unknown."""
    yaw_deg: Float[Tensor, "N"]
    quality: Float[Tensor, "N"]
    """Label quality in [0, 1]; NaN without a mesh."""
    mesh_index: Int[Tensor, "N"]
    """Row of `vertices`, -1 without a mesh."""
    vertices: Float[Tensor, "M V 3"]
    """Label meshes in model space, mm, with expression."""
    neutral: Float[Tensor, "M V 3"]
    """The same persons without expression; NaN where unknown."""
    person_names: tuple[str, ...] = ()
    """Of the persons that `person` numbers."""

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.sample_ids)

    def of_source(self, name: str) -> Int[Tensor, "K"]:
        """Indices of the crops of one source."""
        return torch.tensor([place for place, source in enumerate(self.source) if source == name], dtype=torch.int64)


def make_batch(
    crops: CropSet,
    indices: Int[Tensor, "B"],
    *,
    model: MorphableModel,
    source: str,
    labelled: bool,
    chance: Float[Tensor, "2 B"] | None = None,
    device: torch.device | None = None,
) -> Batch:
    """Gather crops, with their label meshes if `labelled`; with `chance`, see `draw_chance`, also augment them.

    Augmentation: unlabelled crops are mirrored by chance; labelled ones change brightness and contrast, because a
    mirrored face has another mesh. Crops stay in main memory; with a `device` the batch is made there from their bytes.
    Raises: ValueError if a mesh is asked for that a crop lacks.
    """
    size_px, device = crops.images.shape[-1], device or crops.landmarks.device
    if chance is not None:
        chance = chance.to(device)
    image = crops.images[indices].to(device).float() / 255.0
    landmarks, confidence = crops.landmarks[indices].to(device), crops.confidence[indices].to(device)
    affine, photo_size = crops.affine[indices].to(device), crops.photo_size[indices].to(device)
    mask = inside_photo(affine, photo_size=photo_size, size_px=size_px)
    if chance is not None and labelled:
        gain, offset = 2.0 * JITTER * (chance[:, :, None, None, None] - 0.5)
        image = ((image - 0.5) * (1.0 + gain) + 0.5 + offset).clamp(0.0, 1.0)
    elif chance is not None:
        mirrored = chance[0] < 0.5
        image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
        mask = torch.where(mirrored[:, None, None], mask.flip(2), mask)
        order = list(MIRRORED_LANDMARKS)
        flipped = landmarks[:, order] * landmarks.new_tensor([-1.0, 1.0]) + landmarks.new_tensor([size_px, 0.0])
        landmarks = torch.where(mirrored[:, None, None], flipped, landmarks)
        confidence = torch.where(mirrored[:, None], confidence[:, order], confidence)
    scan = None
    if labelled:
        meshes = crops.mesh_index[indices]
        if bool((meshes < 0).any()):
            bare = crops.sample_ids[int(indices[meshes < 0][0])]
            raise ValueError(f"sample {bare} of source {source} has no mesh, expected one; run ingest again")
        vertices = crops.vertices[meshes].to(device)
        triangles = model.triangles.to(device)
        scan = Scan(vertices=vertices, normals=vertex_normals(vertices, triangles), landmarks=model.landmarks(vertices))
    return Batch(
        source=source,
        sample_ids=tuple(crops.sample_ids[place] for place in indices.tolist()),
        camera=crop_camera(len(indices), size_px, device=device),
        image=image,
        mask=mask,
        landmarks=landmarks,
        confidence=confidence,
        person=crops.person[indices].to(device),
        scan=scan,
    )


def draw_chance(count: int, *, labelled: bool, generator: Generator) -> Float[Tensor, "2 B"]:
    """Random numbers in [0, 1) that `make_batch` augments crops by; a part of a batch takes its part of them."""
    # A mirror image needs one number; the other is not drawn, so that seeds mean what they always meant.
    drawn = torch.rand(2 if labelled else 1, count, generator=generator)
    return drawn.expand(2, count)


def draw_indices(
    pool: Int[Tensor, "K"], count: int, *, weights: Float[Tensor, "K"] | None, generator: Generator
) -> Int[Tensor, "B"]:
    """Random members of a pool with replacement, in proportion to `weights` where given.

    Degenerate: a weight of zero or NaN counts as a thousandth, so that no member is never drawn.
    """
    if weights is None:
        return pool[torch.randint(len(pool), (count,), generator=generator)]
    return pool[
        torch.multinomial(weights.nan_to_num(0.0).clamp_min(1e-3), count, replacement=True, generator=generator)
    ]


@dataclass(frozen=True)
class PersonGroups:
    """The crops of a source, person by person."""

    crops: Int[Tensor, "K"]
    start: Int[Tensor, "P"]
    """Where each person's crops begin."""
    size: Int[Tensor, "P"]

    @staticmethod
    def build(pool: Int[Tensor, "K"], person: Int[Tensor, "N"]) -> PersonGroups:
        """Group the crops of a pool by their persons, who are given for all crops."""
        order = torch.argsort(person[pool], stable=True)
        _, size = torch.unique_consecutive(person[pool][order], return_counts=True)
        return PersonGroups(crops=pool[order], start=size.cumsum(0) - size, size=size)


def draw_persons(
    groups: PersonGroups,
    count: int,
    *,
    photos_per_person: int,
    weights: Float[Tensor, "K"] | None,
    generator: Generator,
) -> Int[Tensor, "B"]:
    """Photos of random persons, `photos_per_person` of each as far as there are so many; the last may have fewer.

    Nobody is drawn twice, and no photo, before all are. A person is drawn in proportion to the photos that it adds, so
    that photos of persons with one alone are seen as often as others; `weights`, in the order of `groups.crops`, are
    those of `draw_indices`: they choose persons by their mean, and photos among those of a person.
    """
    if weights is None:
        weights = torch.ones(len(groups.crops))
    weights = weights.nan_to_num(0.0).clamp_min(1e-3)
    owner = torch.repeat_interleave(torch.arange(len(groups.size)), groups.size)
    added = groups.size.clamp_max(photos_per_person)
    chance = torch.zeros(len(groups.size)).index_add(0, owner, weights) / groups.size * added
    found: list[Tensor] = []
    missing = count
    while missing > 0:
        # The smallest of exponential waiting times: a draw without replacement in proportion to the chances.
        waiting = -torch.rand(len(chance), generator=generator).clamp_min(1e-12).log() / chance
        order = torch.argsort(waiting, stable=True)
        needed = int((added[order].cumsum(0) < missing).sum()) + 1
        for place in order[:needed].tolist():
            own = slice(int(groups.start[place]), int(groups.start[place] + groups.size[place]))
            delay = -torch.rand(own.stop - own.start, generator=generator).clamp_min(1e-12).log() / weights[own]
            chosen = torch.argsort(delay, stable=True)[: min(photos_per_person, missing)]
            found.append(groups.crops[own][chosen])
            missing -= len(chosen)
    return torch.cat(found)


def split_counts(shares: dict[str, float], batch_size: int) -> dict[str, int]:
    """Whole numbers that add up to the batch size, each at least one, nearest to the shares (largest remainder).

    Raises: ValueError if the batch has fewer places than there are sources.
    """
    if batch_size < len(shares):
        raise ValueError(f"batch_size is {batch_size}, expected at least one place for each of {len(shares)} sources")
    exact = {name: share * batch_size for name, share in shares.items()}
    counts = {name: max(1, int(value)) for name, value in exact.items()}
    while sum(counts.values()) < batch_size:
        name = max(counts, key=lambda key: exact[key] - counts[key])
        counts[name] += 1
    while sum(counts.values()) > batch_size:
        name = max((key for key in counts if counts[key] > 1), key=lambda key: counts[key] - exact[key])
        counts[name] -= 1
    return counts
