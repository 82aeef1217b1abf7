"""Pairs of photos that show one person or two, as lists of LFW and of other sets give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from models.verification import deal

SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG")
"""Tried in this order for photos that a list names by person and number."""


class PairsError(ValueError):
    """A list of pairs that cannot be used; the message names line, what was found and what was expected."""


@dataclass(frozen=True)
class FacePairs:
    """What a list says."""

    first: tuple[Path, ...]
    second: tuple[Path, ...]
    same: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.first)

    def photos(self) -> list[Path]:
        """Every photo once, in the order of the list."""
        return list(dict.fromkeys(path for pair in zip(self.first, self.second, strict=True) for path in pair))


def read_pairs(file: Path, folder: Path) -> FacePairs:
    """Read a list of pairs of photos in a folder; columns stand apart by tabs, commas or blanks.

    LFW's: `name 1 2` for two photos of a person and `name 1 other 3` for photos of two, which are
    `name/name_0001.jpg`; its first line says how many folds there are, and how many pairs of either kind in each.
    Others: `first.jpg second.jpg 1`, or the 1 in front; 0 for two persons. These are dealt to ten folds.
    Raises: PairsError naming the line; paths that leave the folder are refused.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PairsError(f"{file}: cannot be read as text ({error}); expected a list of pairs") from None
    header: tuple[int, ...] = ()
    rows: list[tuple[Path, Path, bool]] = []
    for number, line in enumerate(lines, start=1):
        fields = _fields(line)
        if not fields or line.startswith("#"):
            continue
        if not rows and not header and len(fields) <= 2 and all(field.isdigit() for field in fields):
            header = tuple(int(field) for field in fields)
            continue
        found = _pair(fields, folder)
        if found is None:
            raise PairsError(
                f"{file}, line {number}: {line[:80]!r}, expected `name 1 2`, `name 1 other 3`, or two photos and 1 or 0"
            )
        rows.append(found)
    if not rows:
        raise PairsError(f"{file}: no pairs, expected one a line")
    same = np.array([row[2] for row in rows])
    return FacePairs(tuple(row[0] for row in rows), tuple(row[1] for row in rows), same, _folds(file, header, same))


def _fields(line: str) -> list[str]:
    for separator in ("\t", ","):
        if separator in line:
            return [field.strip() for field in line.split(separator)]
    return line.split()


def _pair(fields: list[str], folder: Path) -> tuple[Path, Path, bool] | None:
    if len(fields) == 4 and fields[1].isdigit() and fields[3].isdigit():
        return _numbered(folder, fields[0], fields[1]), _numbered(folder, fields[2], fields[3]), False
    if len(fields) != 3:
        return None
    if fields[1].isdigit() and fields[2].isdigit():
        return _numbered(folder, fields[0], fields[1]), _numbered(folder, fields[0], fields[2]), True
    for flag, first, second in ((fields[2], fields[0], fields[1]), (fields[0], fields[1], fields[2])):
        if flag in ("0", "1", "-1"):
            return _inside(folder, first), _inside(folder, second), flag == "1"
    return None


def _numbered(folder: Path, name: str, number: str) -> Path:
    stem = f"{name}/{name}_{int(number):04d}"
    paths = [_inside(folder, f"{stem}{suffix}") for suffix in SUFFIXES]
    return next((path for path in paths if path.exists()), paths[0])


def _inside(folder: Path, name: str) -> Path:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise PairsError(f"photo {name!r} of a pair lies outside the folder of photos; give paths from there")
    return folder / path


def _folds(file: Path, header: tuple[int, ...], same: np.ndarray) -> np.ndarray:
    """LFW's folds stand one after the other, each with its pairs of one person first."""
    if len(header) == 2 and header[0] > 1:
        folds, each = header
        if len(same) != 2 * folds * each:
            raise PairsError(
                f"{file}: {len(same)} pairs, but its first line says {folds} folds of {each} pairs of either kind, "
                f"expected {2 * folds * each}"
            )
        return np.arange(len(same)) // (2 * each)
    return deal(same)
