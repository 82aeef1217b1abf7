"""Reading `.npz` archives of arrays from users: nothing in them is executed, and what is broken is said in one line."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from models.face.adapters.source import require_file

MAX_BYTES = 2**32
"""Of what an archive unpacks to; the largest face models have half a gigabyte."""

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

READ_ERRORS = (
    # A plain array has no members, hence the TypeError.
    *(zipfile.BadZipFile, zlib.error, ValueError, TypeError, OSError, EOFError, MemoryError, OverflowError),
    *(NotImplementedError, RuntimeError, LookupError, SyntaxError, struct.error),
)
"""What numpy and zipfile raise over a damaged or encrypted archive."""


def read_npz(path: Path, *, expected: str = "an .npz face model") -> dict[str, np.ndarray]:
    """Every array of an `.npz` file, without pickles.

    Raises: ValueError or FileNotFoundError in one line.
    """
    require_file(path, expected=expected)
    try:
        _check_sizes(path)
        # Opened here, because numpy leaves a file that is no archive open.
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except READ_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: not an .npz file without pickles ({reason}); convert the model again") from None


def _check_sizes(path: Path) -> None:
    """Refuse archives that unpack to more than a face model can be, and arrays that claim more than is stored."""
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > MAX_BYTES:
            raise ValueError(f"unpacks to {total} bytes, expected at most {MAX_BYTES}")
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as stored:
                version = np.lib.format.read_magic(stored)
                read_header = HEADERS.get(version)
                if read_header is None:
                    raise ValueError(f"{member.filename}: array format {version}, expected 1.0 or 2.0")
                shape, _, kind = read_header(stored)
            if math.prod(shape) * kind.itemsize > member.file_size:
                raise ValueError(f"{member.filename}: claims {shape} values of {kind.itemsize} bytes, holds fewer")


def npz_names(path: Path) -> set[str]:
    """Names of the arrays of an `.npz` file, without reading them; empty if it is none."""
    try:
        with zipfile.ZipFile(path) as file:
            return {name.removesuffix(".npy") for name in file.namelist()}
    except (zipfile.BadZipFile, OSError):
        return set()
