"""Several checkpoints as one network, for commands that take `--checkpoint` more than once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.face.morphable import MorphableModel
from models.reconstruction.ensemble import Ensemble
from tasks.artifacts import Workspace, load_checkpoint
from tasks.face_model import load_face_model
from tasks.face_reader import FaceReader, open_champion, open_checkpoint
from tasks.params import Params, load_params


def open_reader(
    params: Params, workspace: Workspace, checkpoint: Path | Sequence[Path] | None, *, device: str = "cpu"
) -> FaceReader:
    """The champion, or what a checkpoint or several say together.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    if checkpoint is None:
        return open_champion(params, workspace, device=device)
    paths = [checkpoint] if isinstance(checkpoint, Path) else list(checkpoint)
    return open_ensemble(paths, params, workspace, device=device)


def open_ensemble(
    paths: Sequence[Path],
    params: Params,
    workspace: Workspace,
    *,
    device: str = "cpu",
    model: MorphableModel | None = None,
) -> FaceReader:
    """The networks of several checkpoints with the detector of the workspace; a single one is that network itself.

    A checkpoint of another face model lies in a workspace that names it.
    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    own = load_face_model(params, workspace) if model is None else model
    readers = [open_checkpoint(path, params, workspace, device=device, model=_face_model(path, own)) for path in paths]
    if len(readers) == 1:
        return readers[0]
    ensemble = Ensemble([reader.reconstructor for reader in readers]).eval()
    return replace(
        readers[0],
        reconstructor=ensemble,
        origin={"ensemble": [reader.origin["checkpoint"] for reader in readers]},
    )


def _face_model(path: Path, own: MorphableModel) -> MorphableModel:
    """The face model of a checkpoint: the one at hand, or that of the workspace in which the checkpoint lies."""
    file = path / "checkpoint.pt" if path.is_dir() else path
    # A missing file is named by whoever opens it.
    if not file.is_file() or load_checkpoint(file).get("face_model") == own.content_hash():
        return own
    # artifacts/<stage>/checkpoint.pt of a workspace.
    place = Workspace(file.resolve().parent.parent.parent)
    return load_face_model(load_params(place.params), place) if place.params.is_file() else own
