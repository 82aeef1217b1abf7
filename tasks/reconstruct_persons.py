"""Photos of several persons, a folder each, to one face per person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts import Workspace
from tasks.ensembles import open_reader
from tasks.face_reader import chosen_device
from tasks.params import load_params
from tasks.reconstruct import ReconstructionError, Report, reconstruct_photos

Progress = Callable[[int, int, int], None]


def reconstruct_persons(
    persons: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    workspace: Workspace,
    checkpoint: Path | Sequence[Path] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Put the photos of each person together into `<out>/<person>`; `options` are those of `reconstruct_photos`.

    Raises: ReconstructionError at the end if photos failed; what could be done is done for every person.
    """
    reader = open_reader(load_params(workspace.params), workspace, checkpoint, device=chosen_device(device))
    whole, seen = Report(), 0
    total = sum(map(len, persons.values()))
    for name, photos in persons.items():
        try:
            found = reconstruct_photos(list(photos), out / name, workspace=workspace, reader=reader, **options)
        except ReconstructionError as error:
            found = error.report or Report()
        whole.files += found.files
        whole.faces += [{"person": name, **face} for face in found.faces]
        whole.failed |= found.failed
        seen += len(photos)
        if progress is not None:
            progress(seen, total, len(whole.faces))
    if whole.failed:
        raise ReconstructionError(
            f"{len(whole.failed)} of {total} photos could not be reconstructed, see above; the others are in {out}",
            whole,
        )
    return whole
