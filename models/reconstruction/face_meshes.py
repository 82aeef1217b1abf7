"""A reconstructed face as a mesh file: GLB with morph targets and skin, OBJ with material and picture, PLY.

Convention: GLB in metres, the neutral face wearing the photo's expression by its weights; OBJ and PLY in millimetres,
with the expression in their vertices. All in model space: the camera of the photo leads from there to its pixels.
GLB and OBJ of a face with holes get eyes and a mouth (models/face/inner_parts.py); PLY is the face model's mesh alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from models.animation.gltf import Animation, MorphFace, Skin, write_animated_glb
from models.animation.morphs import morph_targets, morph_weights, morphs_note
from models.export import write_mesh
from models.face.inner_parts import (
    INNER_LIPS,
    LEFT_EYE,
    RIGHT_EYE,
    InnerParts,
    Openings,
    find_openings,
    make_inner_parts,
    steady_gaze,
)
from models.face.inner_shapes import IRIS, RGB
from models.face.morphable import MorphableModel
from models.reconstruction.iris_colour import frontal_light, iris_colour
from models.reconstruction.photos import PhotoFace
from models.rendering.photo_texture import TexturePainter
from models.rendering.texture import Texture, texture_at_vertices
from models.textured_obj import licence_lines, write_textured_obj
from models.types import FaceCoefficients

TEXTURE_PX = 512
"""Four times as many texels take four times as long, and few photos show a face finer."""
JPEG_QUALITY = 95
"""Of the picture within a GLB."""
MADE_UP = "eyes, teeth and mouth are no reconstruction, they fill the openings of the face model"


def paint_face(
    face: PhotoFace, model: MorphableModel, painter: TexturePainter, openings: Openings | None = None
) -> Texture:
    """The skin of a face, from its photo. `openings`: what `find_openings` says of the model, where it is known."""
    found = face.coefficients
    return painter.paint(
        face.photo,
        face.reconstruction.mesh.vertices[0],
        intrinsics=face.intrinsics,
        albedo=model.albedo(found.albedo)[0],
        lighting=found.lighting[0],
        without=behind_openings(face, find_openings(model) if openings is None else openings),
    )


def behind_openings(face: PhotoFace, openings: Openings) -> list[Float[np.ndarray, "_ 2"]]:
    """Outlines in the photo of eyes and of what the lips show, where these are holes of the face model.

    Teeth and eyes that a photo shows beside a hole would be painted on lips and lids, and stretch when they move.
    """
    points = face.detection.landmarks
    parts = ((openings.left_eye, LEFT_EYE), (openings.right_eye, RIGHT_EYE), (openings.mouth, INNER_LIPS))
    return [points[list(landmarks)] for opening, landmarks in parts if len(opening)]


def texture_pixels(texture: Texture) -> UInt8[np.ndarray, "T T 3"]:
    """A texture as a picture."""
    shown = texture.colour[0].clamp(0.0, 1.0).permute(1, 2, 0).numpy()
    return np.asarray(np.rint(shown * 255.0), np.uint8)


@torch.no_grad()
def inner_parts(
    coefficients: FaceCoefficients, model: MorphableModel, openings: Openings | None = None, *, iris: RGB = IRIS
) -> InnerParts | None:
    """Eyes and mouth of a person (a batch of one) in the light of the photo; None if the face model has its own.

    `openings`: what `find_openings` says of the model, where it is known. `iris`: what `iris_colour` says.
    """
    names, targets = morph_targets(model)
    return make_inner_parts(
        find_openings(model) if openings is None else openings,
        model.vertices(coefficients.identity)[0].numpy(),
        names=names,
        targets=targets,
        light=frontal_light(coefficients),
        iris=iris,
    )


@torch.no_grad()
def worn_weights(
    coefficients: FaceCoefficients, model: MorphableModel, inner: InnerParts | None
) -> Float[np.ndarray, "N"]:
    """Weights of the morph targets for the photo's expression; eyes that can be seen look straight."""
    weights = morph_weights(model, coefficients.expression[0].numpy())
    return weights if inner is None else steady_gaze(morph_targets(model)[0], weights)


@torch.no_grad()
def write_face_glb(
    path: Path,
    coefficients: FaceCoefficients,
    model: MorphableModel,
    *,
    painter: TexturePainter,
    texture: Texture,
    animation: Animation | None = None,
    extras: Mapping[str, Any] | None = None,
    openings: Openings | None = None,
    iris: RGB = IRIS,
) -> None:
    """Write the neutral face of a person (a batch of one) with its morph targets and skin.

    It wears the expression of the coefficients, or else moves by the animation.
    """
    names, targets = morph_targets(model)
    buffer = BytesIO()
    Image.fromarray(texture_pixels(texture)).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    chart = painter.chart
    inner = inner_parts(coefficients, model, openings, iris=iris)
    if inner is not None and animation is not None:
        animation = replace(animation, weights=steady_gaze(names, animation.weights))
    face = MorphFace(
        vertices=model.vertices(coefficients.identity)[0].numpy(),
        triangles=model.triangles.numpy(),
        colours=model.albedo(coefficients.albedo)[0].numpy(),
        target_names=tuple(names),
        targets=targets,
        skin=Skin(uv=chart.uv.numpy(), picture=buffer.getvalue(), plain=chart.uncharted.numpy()),
        inner=inner,
    )
    licence = " ".join(model.licence.split())
    write_animated_glb(
        path,
        face,
        animation,
        name=path.stem,
        weights=worn_weights(coefficients, model, inner).tolist() if animation is None else None,
        extras={
            **(extras or {}),
            **morphs_note(model),
            **({} if inner is None else {"made_up": MADE_UP, "iris": [round(value, 4) for value in iris]}),
            "face_model": model.stamp(),
        },
        copyright_line=f"face model {model.name}: {licence}" if licence else "",
    )


@torch.no_grad()
def write_face_obj(
    path: Path,
    coefficients: FaceCoefficients,
    model: MorphableModel,
    *,
    painter: TexturePainter,
    picture: str,
    header: Sequence[str] = (),
    openings: Openings | None = None,
    iris: RGB = IRIS,
) -> None:
    """Write `.obj` and `.mtl` of a face with expression; `picture` names the file with its skin."""
    inner = inner_parts(coefficients, model, openings, iris=iris)
    write_textured_obj(
        path,
        model.vertices(coefficients.identity, coefficients.expression)[0].numpy(),
        model.triangles.numpy(),
        colours=model.albedo(coefficients.albedo)[0].numpy(),
        uv=painter.chart.uv.numpy(),
        plain=painter.chart.uncharted.numpy(),
        picture=picture,
        header=[*header, *licence_lines(model.stamp())],
        inner=None if inner is None else inner.moved(worn_weights(coefficients, model, inner)),
        pieces=() if inner is None else inner.pieces,
    )


@torch.no_grad()
def vertex_colours(
    texture: Texture, albedo: Float[Tensor, "V 3"], *, painter: TexturePainter
) -> Float[np.ndarray, "V 3"]:
    """Colours of the vertices, as the photo shows them; the albedo where the skin's picture has no place for one."""
    return texture_at_vertices(texture.colour, painter.chart, uncharted_colours=albedo[None])[0].numpy()


def save_face(
    face: PhotoFace, path: Path | str, model: MorphableModel, *, painter: TexturePainter | None = None
) -> None:  # fmt: skip
    """Write a face as the suffix says: `.glb`, `.obj` (with `.mtl` and `_texture.png` beside it) or `.ply`.

    `painter`: for many faces of one model, `TexturePainter.build` once; it takes a second.
    Raises: ValueError if the suffix is another.
    """
    path, comment = Path(path), f"face of {face.name}"
    if path.suffix not in (".glb", ".obj", ".ply"):
        raise ValueError(f"{path.name}: unknown kind of mesh file, expected .glb, .obj or .ply")
    painter = painter or TexturePainter.build(model, TEXTURE_PX)
    texture, iris = paint_face(face, model, painter), iris_colour([face]).colour
    if path.suffix == ".ply":
        write_mesh(
            path,
            model.vertices(face.coefficients.identity, face.coefficients.expression)[0].numpy(),
            model.triangles.numpy(),
            colours=vertex_colours(texture, model.albedo(face.coefficients.albedo)[0], painter=painter),
            comment=comment,
            stamp=model.stamp(),
        )
        return
    if path.suffix == ".glb":
        extras = {"comment": comment}
        write_face_glb(path, face.coefficients, model, painter=painter, texture=texture, extras=extras, iris=iris)
        return
    picture = path.with_name(f"{path.stem}_texture.png")
    header = [comment]
    write_face_obj(path, face.coefficients, model, painter=painter, picture=picture.name, header=header, iris=iris)
    Image.fromarray(texture_pixels(texture)).save(picture)
