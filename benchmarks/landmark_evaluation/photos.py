"""Annotated photos to measure a detector on: a folder of a user, or the output of the stage `ingest`.

Convention: pixels of the upright photo, centres at +0.5; `.pts` files count from 1 and are shifted when read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from models.face.camera import angles_from_rotation
from models.face.procedural import procedural_face
from models.landmarks.framing import box_side, landmark_box
from models.landmarks.head_pose import head_angles
from tasks.annotations import AnnotationError, Annotations, read_landmark_table, read_pts
from tasks.artifacts import SAMPLES, read_table
from tasks.hold_out import held_out
from tasks.images import Pixels, decode, folder_batches, read_file

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
MAX_BYTES = 64 * 2**20
TABLE = "landmarks.csv"
CROP_MARGIN = 1.6
"""Side of the square around an annotated face that the detector sees where boxes come from the truth."""
MIN_FACE_PX = 1.0
REMEDY = f"expected photos with {TABLE} (file,x0,y0 … x67,y67) or a .pts file beside each, or an ingest folder"


@dataclass(frozen=True)
class AnnotatedSet:
    """Photos by number; pixels are read when they are asked for."""

    names: list[str]
    points: np.ndarray
    """(N, 68, 2)."""
    yaw_deg: np.ndarray
    """True where the source knows it, else fitted to the annotated points."""
    read: Callable[[int], Pixels] = field(repr=False)
    """Raises ImageError if the photo cannot be read."""
    refused: list[tuple[str, str]]
    """Names and reasons of photos whose annotation cannot be used."""
    rendered: bool = False
    """Whether photos are among them whose points lie at a face model's vertices."""
    by_hand: frozenset[int] = frozenset()
    """Photos whose points came in a .pts file, which people make with the jaw on the visible outline."""


def open_photos(
    folder: Path,
    *,
    split: str = "all",
    every: int = 4,
    labels: str = "any",
    source: str | None = None,
    handmade: bool = False,
) -> AnnotatedSet:
    """The annotated photos of a folder; splits of a user's folder are by hash, those of `ingest` as it drew them.

    `handmade`: rendered photos have their jaw on the visible outline; without one they are left out.
    Raises: FileNotFoundError or ValueError in one line if there is nothing to measure.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; {REMEDY}")
    if (folder / "samples.parquet").is_file():
        found = _open_store(folder, split=split, source=source, handmade=handmade)
    else:
        found = _open_folder(folder, split=split, every=every, labels=labels)
    if not found.names:
        reasons = "; ".join(sorted({reason for _, reason in found.refused})[:3])
        raise ValueError(f"{folder}: no annotated photo (split {split}){': ' + reasons if reasons else ''}; {REMEDY}")
    return found


def crop_around(image: Pixels, points: np.ndarray) -> tuple[Pixels, np.ndarray]:
    """The square around annotated points, as far as the photo reaches, and where its corner lies."""
    box, side = landmark_box(points[None])[0], CROP_MARGIN * float(box_side(points[None])[0])
    centre = (box[:2] + box[2:]) / 2.0
    size = np.array(image.shape[1::-1])
    low = np.clip(np.floor(centre - side / 2.0), 0, size - 1).astype(int)
    high = np.clip(np.ceil(centre + side / 2.0), low + 1, size).astype(int)
    return np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]]), low.astype(np.float32)


def fitted_yaw(points: np.ndarray) -> np.ndarray:
    """Yaw in degrees of the mean procedural face under the pose that fits each annotation best."""
    tensor = torch.from_numpy(np.asarray(points, np.float32))
    angles = head_angles(tensor, confidence=torch.ones(tensor.shape[:2]), mean_points=_mean_points())
    return np.asarray(angles[:, 0].numpy(), np.float64)


@lru_cache(maxsize=1)
def _mean_points() -> torch.Tensor:
    return procedural_face().landmark_mean.float()


def _open_folder(folder: Path, *, split: str, every: int, labels: str) -> AnnotatedSet:
    if split not in ("all", "train", "test"):
        raise ValueError(f"--split {split}: expected all, train or test; validation exists in an ingest folder only")
    annotations, refused = Annotations(), []
    if labels != "pts" and (folder / TABLE).is_file():
        read_landmark_table(folder / TABLE, annotations)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pts = {path.with_suffix(""): path for path in files if labels != "csv" and path.suffix.lower() == ".pts"}
    photos = {path.relative_to(folder).as_posix(): path for path in files if path.suffix.lower() in SUFFIXES}
    names, points, by_hand = [], [], set()
    for name, path in photos.items():
        beside = pts.get(path.with_suffix(""))
        if (beside is None and name not in annotations.landmarks) or not _chosen(name, split, every):
            continue
        try:
            # As in the stage `ingest`, a .pts file goes before the table.
            one = read_pts(beside) if beside is not None else annotations.landmarks[name]
            if isinstance(one, AnnotationError):
                raise one
            points.append(_checked(one))
            if beside is not None:
                by_hand.add(len(names))
            names.append(name)
        except AnnotationError as error:
            refused.append((name, str(error)))
    taken = {path.with_suffix("") for path in photos.values()}
    alone = [path.relative_to(folder).as_posix() for stem, path in pts.items() if stem not in taken]
    lost = alone + [name for name in annotations.landmarks if name not in photos]
    refused += [(name, "missing_file: an annotation without a photo") for name in lost if _chosen(name, split, every)]
    refused += [(name, f"unsafe_path: in {table}") for name, table in annotations.unsafe]
    truth = np.array(points, np.float32).reshape(-1, 68, 2)

    def read(row: int) -> Pixels:
        return decode(read_file(folder / names[row], max_bytes=MAX_BYTES), max_bytes=MAX_BYTES)

    return AnnotatedSet(names, truth, fitted_yaw(truth), read, refused, by_hand=frozenset(by_hand))


def _open_store(folder: Path, *, split: str, source: str | None, handmade: bool) -> AnnotatedSet:
    rows = read_table(folder / "samples.parquet", SAMPLES).to_pylist()
    sources = sorted({row["source"] for row in rows})
    if source is not None and source not in sources:
        raise ValueError(f"--source {source}: unknown in {folder}, expected one of {', '.join(sources)}")
    rows = [row for row in rows if row["landmarks"] is not None and source in (None, row["source"])]
    rows = [row for row in rows if split in ("all", row["split"])]
    if handmade:
        # What is annotated on a photo is made by hand already.
        rows = [row for row in rows if row["outline"] is not None or row["rotation"] is None]
        rows = [row | {"landmarks": (jaw := row["outline"] or []) + row["landmarks"][len(jaw) :]} for row in rows]
    ids = [row["sample_id"] for row in rows]
    points = np.array([row["landmarks"] for row in rows], np.float32).reshape(-1, 68, 2)
    known = np.array([row["rotation"] is not None for row in rows], bool)
    yaw = np.zeros(len(rows))
    if known.any():
        rotation = torch.tensor([row["rotation"] for row in rows if row["rotation"] is not None])
        yaw[known] = torch.rad2deg(angles_from_rotation(rotation)[:, 0]).numpy()
    yaw[~known] = fitted_yaw(points[~known])
    # Shards are compressed tables: reading them once in whole is quicker than photo by photo, and they are small.
    pixels: dict[str, Pixels] = {}
    for batch, images in folder_batches(folder, batch_size=64, sample_ids=ids):
        pixels |= dict(zip(batch, images, strict=True))
    return AnnotatedSet(ids, points, yaw, lambda row: pixels[ids[row]], [], rendered=bool(known.any()))


def _chosen(name: str, split: str, every: int) -> bool:
    return split == "all" or held_out(name, every=every) == (split == "test")


def _checked(points: np.ndarray) -> np.ndarray:
    if float(np.ptp(points, axis=0).min()) < MIN_FACE_PX:
        raise AnnotationError("landmarks_degenerate", "points within a pixel of a line, expected a face")
    return points
