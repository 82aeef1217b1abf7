"""What users write beside their photos: tables of landmarks and persons, and `.pts` files."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from models.types import LANDMARK_COUNT

MAX_PTS_BYTES = 2**20


class AnnotationError(ValueError):
    """A label that cannot be used; `reason` is a short code for the quarantine, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[AnnotationError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


@dataclass
class Annotations:
    """Tables by file name; a faulty entry stands in for its value and is raised when the photo's turn comes."""

    landmarks: dict[str, NDArray[np.float32] | AnnotationError] = field(default_factory=dict)
    persons: dict[str, str | AnnotationError] = field(default_factory=dict)
    unsafe: list[tuple[str, str]] = field(default_factory=list)
    """Names that lead out of the folder, with the table that holds them."""

    def names(self) -> list[str]:
        """Every file that a table names, once."""
        return list(dict.fromkeys([*self.landmarks, *self.persons]))

    def of(self, files: Collection[str]) -> Annotations:
        """What the tables say of some files."""
        names = []
        for file in files:
            with suppress(AnnotationError):
                names.append(safe_name(file))
        return Annotations(
            landmarks={name: self.landmarks[name] for name in names if name in self.landmarks},
            persons={name: self.persons[name] for name in names if name in self.persons},
        )


def safe_name(text: str) -> str:
    """A relative path in the spelling of this machine.

    Raises: AnnotationError if it is absolute, leads upwards or is empty.
    """
    windows = PureWindowsPath(text)
    path = PurePosixPath(windows.as_posix())
    if path.is_absolute() or windows.is_absolute() or windows.drive or ".." in path.parts:
        raise AnnotationError("unsafe_path", f"{text!r}, expected a path inside the folder")
    if str(path) == "." or "\0" in text:
        raise AnnotationError("unsafe_path", f"{text!r}, expected the name of a file")
    return str(path)


def read_rows(path: Path, columns: tuple[str, ...], *, remedy: str) -> list[dict[str, str]]:
    """Rows of a CSV file as text.

    Raises: FileNotFoundError or ValueError naming the file and the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; {remedy}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error}); {remedy}") from None
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(map(_in_short, header[:8])) or "an empty file"
        raise ValueError(f"{path}: column {', '.join(missing)} is missing, found {found}; {remedy}")
    # Cells beyond the header come as a list under the key None.
    return [{key: value.strip() for key, value in row.items() if isinstance(value, str)} for row in rows]


def _in_short(name: str) -> str:
    # A damaged table has names as long as itself, with line ends and bytes that no terminal shows.
    short = name if len(name) <= 40 else f"{name[:40]}…"
    return short if short.isprintable() else repr(short)


def read_landmark_table(path: Path, annotations: Annotations) -> None:
    """Add the 68 points of each file of a table with columns file, x0, y0 … x67, y67.

    Convention: pixels of the upright photo, centres at +0.5; other columns are ignored.
    Raises: FileNotFoundError or ValueError if the table as a whole cannot be used.
    """
    for row in read_rows(path, ("file",), remedy="expected columns file, x0, y0 … x67, y67"):
        try:
            name = safe_name(row["file"])
        except AnnotationError:
            annotations.unsafe.append((row["file"], path.name))
            continue
        if name in annotations.landmarks:
            annotations.landmarks[name] = AnnotationError("landmarks_ambiguous", f"{path.name} lists the photo twice")
            continue
        try:
            annotations.landmarks[name] = _points_of(row)
        except AnnotationError as error:
            annotations.landmarks[name] = error


def read_person_table(path: Path, annotations: Annotations) -> None:
    """Add the persons of a table with columns file and person.

    Raises: FileNotFoundError or ValueError if the table as a whole cannot be used.
    """
    for row in read_rows(path, ("file", "person"), remedy="expected columns file, person"):
        try:
            name = safe_name(row["file"])
        except AnnotationError:
            annotations.unsafe.append((row["file"], path.name))
            continue
        person = row["person"]
        known = annotations.persons.get(name)
        if known is not None and known != person:
            annotations.persons[name] = AnnotationError("person_ambiguous", f"{path.name} names two persons")
        elif person:
            annotations.persons[name] = person


def read_pts(path: Path) -> NDArray[np.float32]:
    """The points (68, 2) of a `.pts` file.

    Convention: the format comes from a world that counts the first pixel's centre as 1; here it is 0.5.
    Raises: AnnotationError.
    """
    try:
        if path.stat().st_size > MAX_PTS_BYTES:
            raise AnnotationError("landmarks_unreadable", f"{path.name} has more than {MAX_PTS_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError("landmarks_unreadable", f"{path.name}: {type(error).__name__}") from None
    body = re.search(r"\{([^{}]*)\}", text)
    if body is None:
        raise AnnotationError("landmarks_unreadable", f"{path.name}: no points in braces")
    try:
        numbers = [float(word) for word in body[1].split()]
    except ValueError:
        raise AnnotationError("landmarks_unreadable", f"{path.name}: holds words that are not numbers") from None
    return check_points(numbers, path.name) - np.float32(0.5)


def check_points(numbers: list[float], name: str) -> NDArray[np.float32]:
    """Numbers x0, y0 … as points (68, 2).

    Raises: AnnotationError.
    """
    if len(numbers) != 2 * LANDMARK_COUNT:
        raise AnnotationError(
            "landmarks_wrong_count", f"{name}: {len(numbers) / 2:g} points, expected {LANDMARK_COUNT}"
        )
    points = np.array(numbers, np.float32).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise AnnotationError("landmarks_not_finite", f"{name}: coordinates that are not finite, expected numbers")
    return points


def _points_of(row: dict[str, str]) -> NDArray[np.float32]:
    columns = [key for key in row if re.fullmatch(r"[xy]\d+", key)]
    count = len(columns) / 2
    expected = [f"{axis}{point}" for point in range(LANDMARK_COUNT) for axis in "xy"]
    if set(columns) != set(expected):
        raise AnnotationError("landmarks_wrong_count", f"{count:g} points, expected {LANDMARK_COUNT}")
    try:
        numbers = [float(row[key] or "nan") for key in expected]
    except ValueError:
        raise AnnotationError("landmarks_unreadable", "coordinates that are not numbers") from None
    return check_points(numbers, "landmarks")
