"""Which photos a command is about: files, those in folders, those that match a pattern."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""What is taken from a folder; a photo that is named by itself may be called as it likes."""

UNREADABLE_REMEDY = "give a photo as JPEG or PNG"


def photo_paths(photos: Sequence[Path], *, suffixes: Sequence[str] = PHOTO_SUFFIXES) -> Iterator[Path]:
    """The photos; a folder stands for those in it, a pattern such as `trip/**/*.jpg` for those it matches.

    Raises: FileNotFoundError if a folder or a pattern has none.
    """
    for path in photos:
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in suffixes and entry.is_file())
            if not inside:
                raise FileNotFoundError(f"{path}: no photos in this folder, expected {', '.join(suffixes)}")
            yield from inside
        elif not path.exists() and glob.has_magic(str(path)):
            matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
            matched = [entry for entry in matched if entry.suffix.lower() in suffixes and entry.is_file()]
            if not matched:
                raise FileNotFoundError(f"{path}: matches no photo, expected {', '.join(suffixes)}")
            yield from matched
        else:
            yield path
