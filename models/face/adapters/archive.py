"""Reading `.npz` archives of arrays from users: nothing in them is executed, and what is broken is said in one line."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from models.face.adapters.source import require_file


def read_npz(path: Path, *, expected: str = "an .npz face model") -> dict[str, np.ndarray]:
    """Every array of an `.npz` file, without pickles.

    Raises: ValueError or FileNotFoundError in one line.
    """
    require_file(path, expected=expected)
    try:
        # Opened here, because numpy leaves a file that is no archive open.
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    # A plain array has no members, hence the TypeError.
    except (zipfile.BadZipFile, zlib.error, ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not an .npz file without pickles ({error}); convert the model again") from None


def npz_names(path: Path) -> set[str]:
    """Names of the arrays of an `.npz` file, without reading them; empty if it is none."""
    try:
        with zipfile.ZipFile(path) as file:
            return {name.removesuffix(".npy") for name in file.namelist()}
    except (zipfile.BadZipFile, OSError):
        return set()
