"""Annotated photos of a split in memory, as the landmark network learns from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.face.camera import angles_from_rotation
from models.landmarks.framing import box_side, landmark_box
from models.landmarks.head_pose import head_angles
from tasks.artifacts import SAMPLES, Workspace, read_table
from tasks.face_model import load_face_model, open_face_model
from tasks.images import read_images
from tasks.params import Params
from tasks.source_params import SyntheticSource

NEIGHBOURHOOD = 3.6
"""Side of what is kept around a face relative to its box; the widest training crop reaches this far."""


ANNOTATED = 1
"""The convention of photos that came with their points; see `AnnotatedPhotos.convention`."""

SAME_PLACE = 0.005
"""RMS distance of the points of two face models, as a fraction of the face's radius, below which they are the same."""


@dataclass(frozen=True)
class AnnotatedPhotos:
    """Photos of one split with their points, in memory."""

    images: list[np.ndarray]
    points: np.ndarray
    """(N, 68, 2) pixels of the photos."""
    yaw_deg: np.ndarray
    convention: np.ndarray
    """(N,) whose points: 0 the workspace's face model's, 1 annotated on the photo, 2 and up other face models'."""
    dense: np.ndarray | None = None
    """(N, D, 2) further vertices of the workspace's face model, pixels, NaN where unknown; None if unknown of all."""
    outline: np.ndarray | None = None
    """(N, 17, 2) the jaw points where people put them, pixels, NaN where unknown; None if unknown of all."""

    def take(self, rows: np.ndarray) -> AnnotatedPhotos:
        """The photos of those rows."""
        images = [self.images[row] for row in rows]
        dense, outline = (None if points is None else points[rows] for points in (self.dense, self.outline))
        return AnnotatedPhotos(images, self.points[rows], self.yaw_deg[rows], self.convention[rows], dense, outline)

    def some(self, count: int, *, seed: int) -> AnnotatedPhotos:
        """At most so many of them, drawn at random."""
        return self.take(np.random.default_rng(seed).permutation(len(self.images))[:count])

    def of_face_model(self) -> AnnotatedPhotos:
        """Those whose points follow the workspace's face model; all, where none do."""
        rows = np.flatnonzero(self.convention == 0)
        return self.take(rows) if len(rows) else self


def load_annotated(
    params: Params, workspace: Workspace, split: str, *, size_px: int | None, without: Collection[str] = ()
) -> AnnotatedPhotos:
    """Photos of a split that have landmarks, with their yaw: true where the rotation is known, else fitted.

    Photos of the sources in `without` are left out.
    `size_px`: keep only the neighbourhood of each face, reduced so that its box is no larger than this.
    """
    table = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES)
    every = table.drop_columns(["dense", "outline"]).to_pylist()
    chosen = [
        place
        for place, row in enumerate(every)
        if row["split"] == split and row["landmarks"] is not None and row["source"] not in without
    ]
    rows = [every[place] for place in chosen]
    further = [_further_points(table[name].take(pa.array(chosen, pa.int64())), name) for name in ("dense", "outline")]
    points = np.array([row["landmarks"] for row in rows], np.float32).reshape(-1, 68, 2)
    pixels = read_images(workspace, [row["sample_id"] for row in rows])
    images = [pixels.pop(row["sample_id"]) for row in rows]
    yaw = np.full(len(rows), np.nan)
    known = np.array([row["rotation"] is not None for row in rows], bool)
    if known.any():
        rotation = torch.tensor([row["rotation"] for row in rows if row["rotation"] is not None])
        yaw[known] = torch.rad2deg(angles_from_rotation(rotation)[:, 0]).numpy()
    if not known.all():
        model = load_face_model(params, workspace)
        annotated = torch.from_numpy(points[~known])
        angles = head_angles(annotated, confidence=torch.ones(annotated.shape[:2]), mean_points=model.landmark_mean)
        yaw[~known] = angles[:, 0].numpy()
    if size_px is not None:
        carried = np.concatenate([points, *(one for one in further if one is not None)], 1)
        reduced = [neighbourhood(image, face, size_px=size_px) for image, face in zip(images, carried, strict=True)]
        images = [image for image, _ in reduced]
        moved = np.array([face for _, face in reduced], np.float32).reshape(carried.shape)
        sizes = [0 if one is None else one.shape[1] for one in further]
        points, *parts = np.split(moved, np.cumsum([68, *sizes[:-1]]), axis=1)
        further = [part if part.shape[1] else None for part in parts]
    of_source = _conventions(params, workspace, without)
    convention = np.array(
        [of_source.get(row["source"], 0) if one else ANNOTATED for row, one in zip(rows, known, strict=True)]
    )
    return AnnotatedPhotos(images, points, yaw, convention.astype(np.int64), *further)


def _further_points(column: pa.ChunkedArray, name: str) -> np.ndarray | None:
    """Points (N, D, 2) of rows of a column of samples, NaN where a row has none; None where no row has any."""
    known = np.flatnonzero(column.is_valid().to_numpy())
    if not len(known):
        return None
    lengths = pc.unique(pc.list_value_length(column.drop_null())).to_pylist()
    if len(lengths) > 1 or lengths[0] % 2:
        raise ValueError(
            f"samples.parquet: {name} points of {lengths} numbers, expected as many each; run ingest again"
        )
    points = np.full((len(column), lengths[0] // 2, 2), np.nan, np.float32)
    points[known] = pc.list_flatten(column).to_numpy().reshape(-1, lengths[0] // 2, 2)
    return points


def _conventions(params: Params, workspace: Workspace, without: Collection[str]) -> dict[str, int]:
    """Number of the convention of every source that shows another face model than the workspace's."""
    others = {
        source.name: source.face_model
        for source in params.ingest.sources
        if isinstance(source, SyntheticSource) and source.face_model is not None and source.name not in without
    }
    if not others:
        return {}
    known = [unit_shape(load_face_model(params, workspace).landmark_mean.numpy())]
    found = {}
    for name, face_model in others.items():
        shape = unit_shape(open_face_model(face_model, workspace).landmark_mean.numpy())
        distance = [float(np.sqrt(np.square(shape - other).sum(1).mean())) for other in known]
        # Two files of one model, or two parts of it, have their points at the same places.
        if min(distance) > SAME_PLACE:
            known.append(shape)
            distance.append(0.0)
        place = int(np.argmin(distance))
        found[name] = place + 1 if place else 0
    return found


def unit_shape(points: np.ndarray) -> np.ndarray:
    """Points (L, 3) around their centre at unit size."""
    centred = points - points.mean(0)
    return np.asarray(centred / np.sqrt(np.square(centred).sum(1).mean()))


def neighbourhood(image: np.ndarray, points: np.ndarray, *, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of a photo that training crops can reach, reduced so that the face's box is at most `size_px` large.

    `points`: the face's 68, and after them any others that go with the photo.
    """
    face = float(box_side(points[None, :68])[0])
    box = landmark_box(points[None, :68])[0]
    centre, reach = (box[:2] + box[2:]) / 2.0, face * NEIGHBOURHOOD / 2.0
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach), image.shape[1::-1]).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    factor = min(1.0, size_px / face)
    if factor == 1.0:
        return np.ascontiguousarray(part), points - low
    size = np.maximum(1, np.rint(np.array(part.shape[1::-1]) * factor)).astype(int)
    scale = size / np.array(part.shape[1::-1])
    return cv2.resize(part, size.tolist(), interpolation=cv2.INTER_AREA), (points - low) * scale
