"""Faces from photos, in five lines; the folder is made by `mien export FOLDER`.

    from models.reconstruction import load_package, read_photo, save_face

    reader = load_package("FOLDER")
    for face in reader.read([read_photo("photo.jpg")])[0]:
        save_face(face, "face.glb", reader.model)

A face has `coefficients` (identity, expression, albedo, lighting, rotation, translation), its mesh in
`reconstruction.mesh`, `intrinsics` that lead from there to pixels of the photo, and `detection` with its landmarks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.reconstruction.face_meshes import save_face as save_face
    from models.reconstruction.package import load_package as load_package
    from models.reconstruction.package import read_photo as read_photo
    from models.reconstruction.photos import PhotoFace as PhotoFace
    from models.reconstruction.photos import PhotoReader as PhotoReader

HOMES = {
    "PhotoFace": "models.reconstruction.photos",
    "PhotoReader": "models.reconstruction.photos",
    "load_package": "models.reconstruction.package",
    "read_photo": "models.reconstruction.package",
    "save_face": "models.reconstruction.face_meshes",
}
"""Where each name lives. They are imported when they are asked for: training needs none of them."""

__all__ = ["PhotoFace", "PhotoReader", "load_package", "read_photo", "save_face"]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
