"""What a training run needs to go on after a kill at any moment: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

STATE = "state.pt"


def write_progress(folder: Path, fingerprint: str, content: dict[str, Any]) -> None:
    """Replace the state of a run; a kill leaves the old one or the new one.

    Raises: OSError naming the file if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{STATE}.unfinished"
    try:
        with temporary.open("wb") as file:
            torch.save({"fingerprint": fingerprint, **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # Of a full disk torch tells by a RuntimeError; what is half written would keep it full.
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"{folder / STATE}: cannot be written ({' '.join(str(error).split())}); check the free space"
        ) from error
    temporary.replace(folder / STATE)


def read_progress(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state of an unfinished run, or nothing if there is none or it belongs to another run."""
    path = folder / STATE
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state if state.pop("fingerprint") == fingerprint else None


def forget_progress(folder: Path) -> None:
    """Remove the state of a run whose result is safe."""
    (folder / STATE).unlink(missing_ok=True)
    (folder / f"{STATE}.unfinished").unlink(missing_ok=True)
