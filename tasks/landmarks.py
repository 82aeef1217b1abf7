"""Photos to landmarks: every face drawn over its photo, as `.pts` files, and as one table."""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from models.landmarks.cascade import Convention
from models.landmarks.detector import Detection, LandmarkDetector, build_detector, detect_faces
from models.landmarks.portable import LANDMARK_FILE, load_portable
from tasks.artifacts import Workspace, load_checkpoint, replace_file
from tasks.images import ImageError, Pixels, decode, read_file
from tasks.photo_files import UNREADABLE_REMEDY, photo_paths

TABLE = "landmarks.csv"
COLUMNS = ("file", "face", *(f"{axis}{point}" for point in range(68) for axis in "xy"), "confidence", "score")
BATCH = 16
MAX_PHOTO_BYTES = 64 * 2**20

CONTOURS = (
    (range(17), False),
    (range(17, 22), False),
    (range(22, 27), False),
    (range(27, 31), False),
    (range(31, 36), False),
    (range(36, 42), True),
    (range(42, 48), True),
    (range(48, 60), True),
    (range(60, 68), True),
)
"""Points that a line joins, and whether it closes."""

MIN_PICTURE_PX = 480
"""Smaller photos are enlarged, so that single points can be told apart."""

SURE, UNSURE, LINE = np.array([60.0, 220.0, 90.0]), np.array([235.0, 50.0, 40.0]), (225, 225, 225)

SHIFT = 4
"""Bits after the point in the coordinates that OpenCV draws at."""


class LandmarkError(ValueError):
    """Some photos could not be used; each was reported when its turn came."""


def find_landmarks(
    photos: Sequence[Path],
    out: Path,
    *,
    workspace: Workspace,
    detector: str = "hierarchical",
    weights: Path | None = None,
    convention: Convention = "annotated",
    min_score: float = 0.5,
) -> list[Path]:
    """Write `<photo>_landmarks.png` and a `.pts` file per face of each photo, and `landmarks.csv`; return their paths.

    The largest face of a photo is `<photo>.pts`, the next `<photo>-2.pts` and so on. Convention: the table counts the
    centre of the first pixel as 0.5, `.pts` files as 1. A folder stands for the photos in it. Faults of photos and
    photos without a face go to stderr, one line each, and the others go on.
    Raises: LandmarkError at the end if there were faults; ValueError or FileNotFoundError if nothing can be done.
    """
    found = list(photo_paths(photos))
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder; name another one with --out")
    finder = open_landmark_detector(
        detector, workspace=workspace, weights=weights, convention=convention, min_score=min_score
    )
    written: list[Path] = []
    rows: list[dict[str, Any]] = []
    taken: dict[str, Path] = {}
    failed = 0
    for start in range(0, len(found), BATCH):
        pixels: dict[Path, Pixels] = {}
        for photo in found[start : start + BATCH]:
            try:
                content = read_file(photo, max_bytes=MAX_PHOTO_BYTES)
                pixels[photo] = decode(content, max_bytes=MAX_PHOTO_BYTES)
            except ImageError as error:
                failed += 1
                sys.stderr.write(f"{photo}: {error}; {UNREADABLE_REMEDY}\n")
        for (photo, image), faces in zip(pixels.items(), detect_faces(finder, list(pixels.values())), strict=True):
            names = result_names(photo, len(faces))
            first = next((taken[name] for name in names if name in taken), None)
            if first is not None:
                failed += 1
                sys.stderr.write(f"{photo}: its results would replace those of {first}; rename it\n")
                continue
            taken |= dict.fromkeys(names, photo)
            if not faces:
                sys.stderr.write(f"{photo}: no face was found\n")
            written += write_faces(image, faces, out, names)
            rows += [table_row(photo, number, face) for number, face in enumerate(faces, 1)]
    if failed < len(found):
        written.append(write_landmark_table(rows, out / TABLE))
    if failed:
        raise LandmarkError(f"{failed} of {len(found)} photos could not be used, see above")
    return written


def open_landmark_detector(
    detector: str,
    *,
    workspace: Workspace,
    weights: Path | None = None,
    convention: Convention = "annotated",
    min_score: float = 0.5,
) -> LandmarkDetector:
    """The detector of that name; ours with the weights of a checkpoint, or of a folder that holds one or its export.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    if detector != "hierarchical":
        if weights is not None:
            raise ValueError(f"--weights {weights}: detector {detector} has weights of its own; leave one of them out")
        if detector == "provided":
            raise ValueError("detector provided: it finds no faces, it takes points that are known; name another one")
        return build_detector(detector, min_face_score=min_score)
    place = weights or workspace.folder("train_detector")
    if not place.exists():
        raise FileNotFoundError(f"{place}: no trained detector; run `mien run` first or name one with --weights")
    options: dict[str, Any] = {"convention": convention, "min_face_score": min_score}
    checkpoint = place / "checkpoint.pt" if place.is_dir() else place
    if place.suffix == ".onnx" or (place.is_dir() and not checkpoint.exists() and (place / LANDMARK_FILE).exists()):
        return load_portable(place, **options)
    # Files beside a checkpoint of another name may be those of another network.
    exported = checkpoint.parent if checkpoint.name == "checkpoint.pt" else None
    content = load_checkpoint(checkpoint)
    try:
        return build_detector("hierarchical", content=content, exported=exported, **options)
    except (RuntimeError, KeyError, TypeError):  # what torch and dataclasses say of weights and settings that differ
        raise ValueError(
            f"{checkpoint}: made by another version of Mien; train again, or check out the code of its run"
        ) from None


def result_names(photo: Path, faces: int) -> list[str]:
    """Names of the files about a photo: the picture, then one per face."""
    return [
        f"{photo.stem}_landmarks.png",
        *(f"{photo.stem}.pts" if number == 1 else f"{photo.stem}-{number}.pts" for number in range(1, faces + 1)),
    ]


def write_faces(photo: Pixels, faces: Sequence[Detection], out: Path, names: Sequence[str]) -> list[Path]:
    """Write the picture of a photo and the points of its faces under those names, all of them or none."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".landmarks-", dir=out))
    try:
        Image.fromarray(draw_landmarks(photo, faces)).save(scratch / names[0])
        for name, face in zip(names[1:], faces, strict=True):
            (scratch / name).write_text(pts_text(face.landmarks), encoding="utf-8")
        for name in names:
            (scratch / name).replace(out / name)
    finally:
        shutil.rmtree(scratch)
    return [out / name for name in names]


def pts_text(points: np.ndarray) -> str:
    """Points (68, 2) as a `.pts` file, which counts the first pixel's centre as 1."""
    lines = [f"{x:.3f} {y:.3f}" for x, y in (points + 0.5).tolist()]
    return "\n".join(["version: 1", f"n_points: {len(points)}", "{", *lines, "}"]) + "\n"


def table_row(photo: Path, number: int, face: Detection) -> dict[str, Any]:
    """A face as a row of the table."""
    numbers = [f"{value:.3f}" for value in face.landmarks.ravel().tolist()]
    mean = f"{float(face.confidence.mean()):.4f}"
    return dict(zip(COLUMNS, [photo.name, number, *numbers, mean, f"{face.face_score:.4f}"], strict=True))


def write_landmark_table(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write the table of all faces; returns its path."""
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def draw_landmarks(photo: Pixels, faces: Sequence[Detection]) -> Pixels:
    """The photo with lines along the features, points from red (unsure) to green (sure), and each face's numbers."""
    factor = max(1, -(-MIN_PICTURE_PX // max(photo.shape[:2])))
    size = (photo.shape[1] * factor, photo.shape[0] * factor)
    drawn = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC) if factor > 1 else photo.copy()
    for number, face in enumerate(faces, 1):
        points = face.landmarks.astype(np.float64) * factor
        side = float(np.ptp(points, axis=0).max())
        thickness = max(1, round(side / 300.0))
        for indices, closed in CONTOURS:
            loop = [*indices, indices[0]] if closed else list(indices)
            for start, end in pairwise(loop):
                cv2.line(drawn, _fixed(points[start]), _fixed(points[end]), LINE, thickness, cv2.LINE_AA, SHIFT)
        radius = max(1.5, side / 100.0)
        for point, confidence in zip(points, face.confidence.tolist(), strict=True):
            colour = tuple(int(value) for value in UNSURE + confidence * (SURE - UNSURE))
            cv2.circle(drawn, _fixed(point), round(radius * 2**SHIFT), colour, cv2.FILLED, cv2.LINE_AA, SHIFT)
        text = f"{number}: {float(face.confidence.mean()):.2f}"
        place = (max(0, int(points[:, 0].min())), max(14, int(points[:, 1].min()) - 6))
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, width, cv2.LINE_AA)
    return drawn


def _fixed(point: np.ndarray) -> tuple[int, int]:
    x, y = np.rint((np.clip(point, -1e5, 1e5) - 0.5) * 2**SHIFT).astype(int).tolist()
    return x, y
