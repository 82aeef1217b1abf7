"""A reconstructed face with all that its files say about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from models.face.inner_parts import InnerParts, Openings, find_openings
from models.face.morphable import MorphableModel
from models.reconstruction.face_meshes import TEXTURE_PX, inner_parts, paint_face, vertex_colours, worn_weights
from models.reconstruction.iris_colour import IrisColour, iris_colour
from models.reconstruction.photos import PhotoFace
from models.rendering.photo_texture import TexturePainter
from models.rendering.texture import Texture

MESH_AXES = "x to the subject's left, y up, z out of the face, millimetres; with expression, facing the viewer"


class Palette:
    """What is computed once per face model, when the first output needs it."""

    def __init__(self, model: MorphableModel, *, texture_px: int = TEXTURE_PX) -> None:
        self.model = model
        self.texture_px = texture_px

    @cached_property
    def painter(self) -> TexturePainter:
        """Of textures."""
        return TexturePainter.build(self.model, self.texture_px, openings=self.openings)

    @cached_property
    def openings(self) -> Openings:
        """Of eyes and mouth, into which parts are put."""
        return find_openings(self.model)


@dataclass(frozen=True)
class FaceRecord:
    """A face and all that its files say about it."""

    face: PhotoFace
    stem: str
    """Of the names of its files."""
    palette: Palette
    origin: dict[str, Any]
    """Where the network's weights come from."""
    number: int = 1
    """Among the faces of its photo, the largest first."""
    refinement: dict[str, Any] | None = None
    """How the network's coefficients were refined; None if they were not."""
    person_iris: IrisColour | None = None
    """What several photos of the person say together, where there are some."""

    @property
    def model(self) -> MorphableModel:
        """The face model."""
        return self.palette.model

    @property
    def how(self) -> str:
        """In a word, for the headers of files."""
        return "not refined" if self.refinement is None else "refined"

    @property
    def title(self) -> str:
        """Whose face it is."""
        which = f", face {self.number}" if self.number > 1 else ""
        return f"face of {self.face.name}{which}, {self.how}"

    @property
    def comment(self) -> str:
        """First line of mesh files in millimetres."""
        return f"{self.title}; {MESH_AXES}"

    @property
    def vertices(self) -> torch.Tensor:
        """(V, 3) in model space, with expression."""
        found = self.face.coefficients
        return self.model.vertices(found.identity, found.expression)[0]

    @property
    def neutral(self) -> torch.Tensor:
        """(V, 3) in model space, without expression."""
        return self.model.vertices(self.face.coefficients.identity)[0]

    @property
    def albedo(self) -> torch.Tensor:
        """(V, 3) RGB."""
        return self.model.albedo(self.face.coefficients.albedo)[0]

    @cached_property
    def texture(self) -> Texture:
        """In the colours of the photo."""
        return paint_face(self.face, self.model, self.palette.painter, self.palette.openings)

    @cached_property
    def iris(self) -> IrisColour:
        """Of the person, as the photos show it."""
        return self.person_iris or iris_colour([self.face])

    @property
    def iris_document(self) -> dict[str, Any]:
        """The same for documents."""
        found = self.iris
        return {"rgb": [round(value, 4) for value in found.colour], "confidence": round(found.confidence, 4)}

    @cached_property
    def inner(self) -> InnerParts | None:
        """Eyes and mouth, where the face model has openings for them."""
        return inner_parts(self.face.coefficients, self.model, self.palette.openings, iris=self.iris.colour)

    def inner_vertices(self, *, expression: bool) -> torch.Tensor:
        """(P, 3) in model space, none where the face model has its own."""
        if self.inner is None:
            return torch.zeros(0, 3)
        weights = worn_weights(self.face.coefficients, self.model, self.inner)
        return torch.from_numpy(self.inner.moved(weights) if expression else self.inner.vertices)

    @property
    def vertex_colours(self) -> torch.Tensor:
        """(V, 3) as the photo shows them."""
        return torch.from_numpy(vertex_colours(self.texture, self.albedo, painter=self.palette.painter))
