"""Which photos are held out from training by their names, so that several programs leave out the same ones."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath


def held_out(name: str, *, every: int = 4) -> bool:
    """Whether a photo belongs to the held-out ones: SHA-256 of its file name, as a number, divides by `every`.

    Folders do not count, so that a photo stays held out wherever it is copied. Example: `a.jpg` is not, `c.jpg` is.
    """
    digest = hashlib.sha256(PurePosixPath(name).name.encode()).hexdigest()
    return int(digest, 16) % every == 0
