"""One run of a stage at a time in a workspace; the lock ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.failures import StageError


@contextmanager
def alone(workspace: Path, stage: str) -> Iterator[None]:
    """Hold the lock of a stage.

    Raises: StageError naming the process that holds it.
    """
    path = workspace / ".mien" / "locks" / stage
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            raise StageError(
                f"{stage}: runs already in {workspace} as process {holder}; wait until it has ended, or end it"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
