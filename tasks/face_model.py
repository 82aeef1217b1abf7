"""The face model that the params name, and its stamp in pictures."""

from __future__ import annotations

from functools import lru_cache

from PIL.PngImagePlugin import PngInfo

from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from tasks.artifacts import Workspace
from tasks.params import Params
from tasks.source_params import FaceModelParams


def load_face_model(params: Params, workspace: Workspace) -> MorphableModel:
    """Build the model of the section `face_model`; relative paths count from the workspace.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    return open_face_model(params.face_model, workspace)


def open_face_model(section: FaceModelParams, workspace: Workspace) -> MorphableModel:
    """Build the model that a section names, that of the workspace or of one source.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    return build_face_model(
        section.kind,
        path=workspace.resolve(section.path) if section.path else None,
        landmarks=workspace.resolve(section.landmarks) if section.landmarks else None,
        identity_modes=section.identity_modes,
        region=section.region,
    )


def shared_face_model(section: FaceModelParams, workspace: Workspace) -> MorphableModel:
    """The same for pieces of work that need it again and again; it is read once by a process, and not to be changed."""
    dates = []
    for path in (section.path, section.landmarks):
        status = workspace.resolve(path).stat() if path and workspace.resolve(path).exists() else None
        dates.append(None if status is None else (status.st_size, status.st_mtime_ns, status.st_ino))
    return _shared(section, workspace, tuple(dates))


@lru_cache(maxsize=2)
def _shared(section: FaceModelParams, workspace: Workspace, dates: tuple[object, ...]) -> MorphableModel:  # noqa: ARG001
    return open_face_model(section, workspace)


def png_stamp(model: MorphableModel) -> PngInfo:
    """Name, licence and hashes of the face model as text chunks `face_model_…` of a PNG."""
    chunks = PngInfo()
    for key, value in model.stamp().items():
        chunks.add_itxt(f"face_model_{key}", value)
    return chunks
