"""The face model that the params name."""

from __future__ import annotations

from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from tasks.artifacts import Workspace
from tasks.params import Params


def load_face_model(params: Params, workspace: Workspace) -> MorphableModel:
    """Build the model of the section `face_model`; a relative path counts from the workspace.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    section = params.face_model
    path = workspace.resolve(section.path) if section.path else None
    return build_face_model(section.kind, path=path, identity_modes=section.identity_modes)
