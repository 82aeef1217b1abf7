"""A reconstructed face as a mesh file: GLB with morph targets and skin, OBJ with material and picture, PLY.

Convention: GLB in metres, the neutral face wearing the photo's expression by its weights; OBJ and PLY in millimetres,
with the expression in their vertices. All in model space: the camera of the photo leads from there to its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from models.animation.gltf import Animation, MorphFace, Skin, write_animated_glb
from models.animation.morphs import morph_targets, morph_weights, morphs_note
from models.export import write_mesh
from models.face.morphable import MorphableModel
from models.reconstruction.photos import PhotoFace
from models.rendering.photo_texture import TexturePainter
from models.rendering.texture import Texture
from models.textured_obj import licence_lines, write_textured_obj
from models.types import FaceCoefficients

TEXTURE_PX = 512
"""Four times as many texels take four times as long, and few photos show a face finer."""
JPEG_QUALITY = 95
"""Of the picture within a GLB."""


def paint_face(face: PhotoFace, model: MorphableModel, painter: TexturePainter) -> Texture:
    """The skin of a face, from its photo."""
    found = face.coefficients
    return painter.paint(
        face.photo,
        face.reconstruction.mesh.vertices[0],
        intrinsics=face.intrinsics,
        albedo=model.albedo(found.albedo)[0],
        lighting=found.lighting[0],
    )


def texture_pixels(texture: Texture) -> UInt8[np.ndarray, "T T 3"]:
    """A texture as a picture."""
    shown = texture.colour[0].clamp(0.0, 1.0).permute(1, 2, 0).numpy()
    return np.asarray(np.rint(shown * 255.0), np.uint8)


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
) -> None:
    """Write the neutral face of a person (a batch of one) with its morph targets and skin.

    It wears the expression of the coefficients, or else moves by the animation.
    """
    names, targets = morph_targets(model)
    buffer = BytesIO()
    Image.fromarray(texture_pixels(texture)).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    chart = painter.chart
    face = MorphFace(
        vertices=model.vertices(coefficients.identity)[0].numpy(),
        triangles=model.triangles.numpy(),
        colours=model.albedo(coefficients.albedo)[0].numpy(),
        target_names=tuple(names),
        targets=targets,
        skin=Skin(uv=chart.uv.numpy(), picture=buffer.getvalue(), plain=chart.uncharted.numpy()),
    )
    licence = " ".join(model.licence.split())
    write_animated_glb(
        path,
        face,
        animation,
        name=path.stem,
        weights=morph_weights(model, coefficients.expression[0].numpy()).tolist() if animation is None else None,
        extras={**(extras or {}), **morphs_note(model), "face_model": model.stamp()},
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
) -> None:
    """Write `.obj` and `.mtl` of a face with expression; `picture` names the file with its skin."""
    write_textured_obj(
        path,
        model.vertices(coefficients.identity, coefficients.expression)[0].numpy(),
        model.triangles.numpy(),
        colours=model.albedo(coefficients.albedo)[0].numpy(),
        uv=painter.chart.uv.numpy(),
        plain=painter.chart.uncharted.numpy(),
        picture=picture,
        header=[*header, *licence_lines(model.stamp())],
    )


def save_face(
    face: PhotoFace, path: Path | str, model: MorphableModel, *, painter: TexturePainter | None = None
) -> None:  # fmt: skip
    """Write a face as the suffix says: `.glb`, `.obj` (with `.mtl` and `_texture.png` beside it) or `.ply`.

    `painter`: for many faces of one model, `TexturePainter.build` once; it takes a second.
    Raises: ValueError if the suffix is another.
    """
    path, comment = Path(path), f"face of {face.name}"
    if path.suffix == ".ply":
        write_mesh(
            path,
            model.vertices(face.coefficients.identity, face.coefficients.expression)[0].numpy(),
            model.triangles.numpy(),
            colours=model.albedo(face.coefficients.albedo)[0].numpy(),
            comment=comment,
            stamp=model.stamp(),
        )
        return
    if path.suffix not in (".glb", ".obj"):
        raise ValueError(f"{path.name}: unknown kind of mesh file, expected .glb, .obj or .ply")
    painter = painter or TexturePainter.build(model, TEXTURE_PX)
    texture = paint_face(face, model, painter)
    if path.suffix == ".glb":
        extras = {"comment": comment}
        write_face_glb(path, face.coefficients, model, painter=painter, texture=texture, extras=extras)
        return
    picture = path.with_name(f"{path.stem}_texture.png")
    write_face_obj(path, face.coefficients, model, painter=painter, picture=picture.name, header=[comment])
    Image.fromarray(texture_pixels(texture)).save(picture)
