"""The face model that the params name, and its stamp in pictures."""

from __future__ import annotations

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


def png_stamp(model: MorphableModel) -> PngInfo:
    """Name, licence and hashes of the face model as text chunks `face_model_…` of a PNG."""
    chunks = PngInfo()
    for key, value in model.stamp().items():
        chunks.add_itxt(f"face_model_{key}", value)
    return chunks
