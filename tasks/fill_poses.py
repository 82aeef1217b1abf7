"""What annotated photos lack for training: heads that are turned away, and a word on how good their points are."""

from __future__ import annotations

import numpy as np
import torch

from models.face.morphable import MorphableModel
from tasks.annotated_photos import ANNOTATED, AnnotatedPhotos
from tasks.params import TrainDetectorParams
from tasks.turn import fit_errors, fit_photos, reachable_yaw, turn_photos

TYPICAL_FACES = 8
"""Fewer annotated photos than this do not say what a usual misfit is."""

DOUBTFUL = 2.0
"""A face that fits its points so many times worse than the usual one counts less, by the square of what lies beyond."""

LARGEST_YAW_DEG = 85.0

SURPLUS = 0.02
"""Heads that turn out closer to the limit of a bin than this share of it would count in the neighbouring one."""


def annotation_trust(photos: AnnotatedPhotos, face_model: MorphableModel) -> np.ndarray:
    """How far the points of each photo can be believed, (N,) in (0, 1]; those of rendered photos fully.

    A face of the model is fitted to annotated points. Annotators and detectors put points elsewhere than the model, but
    all in the same way; a face that fits far worse than the usual one has points that are no face's.
    """
    trust = np.ones(len(photos.images))
    rows = np.flatnonzero(photos.convention == ANNOTATED)
    if len(rows) < TYPICAL_FACES:
        return trust
    points = torch.from_numpy(photos.points[rows])
    fitted, camera = fit_photos(face_model, points)
    error = fit_errors(face_model, fitted, points, camera).double().numpy()
    usual = DOUBTFUL * float(np.median(error))
    trust[rows] = np.minimum(1.0, (usual / np.maximum(error, 1e-9)) ** 2)
    return trust


def fill_poses(
    photos: AnnotatedPhotos, face_model: MorphableModel, section: TrainDetectorParams, *, seed: int
) -> AnnotatedPhotos:
    """The photos, and copies of annotated ones with their heads turned further, as many as the rarer poses lack.

    Every bin of large yaw is filled up to the number at which large and small poses are even, with no photo turned more
    than `section.turned_copies` times. Rendered photos have every pose already.
    """
    rows = np.flatnonzero(photos.convention == ANNOTATED)
    if not section.turned_copies or not len(rows):
        return photos
    source, yaw = choose_turns(photos.yaw_deg[rows], section, np.random.default_rng(seed))
    if not len(source):
        return photos
    chosen = rows[source]
    turned = turn_photos(
        [photos.images[row] for row in chosen], photos.points[chosen], face_model=face_model, yaw_deg=yaw, seed=seed
    )
    # What is annotated on a photo has no vertices of the face model, and no outline that was computed from them.
    dense, outline = (_with_unknown(points, len(turned)) for points in (photos.dense, photos.outline))
    return AnnotatedPhotos(
        photos.images + [photo.image for photo in turned],
        np.concatenate([photos.points, np.array([photo.points for photo in turned], np.float32)]),
        np.concatenate([photos.yaw_deg, [photo.yaw_deg for photo in turned]]),
        np.concatenate([photos.convention, np.full(len(turned), ANNOTATED)]),
        dense,
        outline,
    )


def _with_unknown(points: np.ndarray | None, count: int) -> np.ndarray | None:
    """Points and those of so many more photos of which they are not known."""
    if points is None:
        return None
    return np.concatenate([points, np.full((count, *points.shape[1:]), np.nan, points.dtype)])


def choose_turns(
    yaw_deg: np.ndarray, section: TrainDetectorParams, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to turn, and to which yaw: (T,) each.

    Every photo serves as often as another where the poses in its reach allow.
    """
    small = int((np.abs(yaw_deg) <= section.large_pose_deg).sum())
    lows = np.arange(section.large_pose_deg, LARGEST_YAW_DEG, section.yaw_bin_deg)
    used = np.zeros(len(yaw_deg), np.int64)
    source: list[int] = []
    wanted: list[float] = []
    for sign in (-1.0, 1.0):
        for low in lows:
            high = min(low + section.yaw_bin_deg, LARGEST_YAW_DEG)
            there = int(((sign * yaw_deg > low) & (sign * yaw_deg <= high)).sum())
            for _ in range(max(0, round(small / (2 * len(lows))) - there)):
                edge = SURPLUS * (high - low)
                yaw = sign * generator.uniform(low + edge, high - edge)
                free = np.flatnonzero(
                    (np.abs(reachable_yaw(yaw_deg, np.full(len(yaw_deg), yaw)) - yaw) < 1e-6)
                    & (used < section.turned_copies)
                )
                if not len(free):
                    continue
                fewest = free[used[free] == used[free].min()]
                row = int(generator.choice(fewest))
                used[row] += 1
                source.append(row)
                wanted.append(yaw)
    return np.array(source, np.int64), np.array(wanted)
