"""What every reader of a face model's files needs: which bytes were read, and whether they hold what they should."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHUNK_BYTES = 2**20

SHOWN_NAMES, SHOWN_LENGTH = 12, 40


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 over the sorted names and contents of the files of one folder that were read."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def require_file(path: Path, *, expected: str) -> None:
    """Refuse a path that is no file; `expected` says what should lie there, such as `a Basel 2009 .mat file`.

    Raises: FileNotFoundError if there is nothing, ValueError if it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected {expected}; set face_model.path to the file itself")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such face model, expected {expected}; set face_model.path to it")


def require_keys(data: Mapping[str, Any], keys: Sequence[str], path: Path) -> None:
    """Refuse a file that lacks some of `keys`.

    Raises: ValueError naming the missing keys and those found.
    """
    missing = [key for key in keys if key not in data]
    if missing:
        found = named_in_short(sorted(data)) or "none"
        raise ValueError(f"{path}: keys {', '.join(missing)} are missing, found {found}; is this the right file?")


def named_in_short(names: Sequence[str]) -> str:
    """Names as a message shows them: few, short and printable, however long those of a damaged file are."""
    cut = [name if len(name) <= SHOWN_LENGTH else f"{name[:SHOWN_LENGTH]}…" for name in names[:SHOWN_NAMES]]
    shown = ", ".join(name if name.isprintable() else repr(name) for name in cut)
    return shown if len(names) <= SHOWN_NAMES else f"{shown} and {len(names) - SHOWN_NAMES} more"
