"""Meshes of a face as files: GLB with morph targets, OBJ with material and picture, PLY with vertex colours."""

from __future__ import annotations

from pathlib import Path

from models.export import write_mesh
from models.reconstruction.face_meshes import write_face_glb, write_face_obj
from tasks.face_record import FaceRecord
from tasks.output_pictures import write_texture

GLB_AXES = "metres, x to the subject's left, y up, z out of the face; the photo's expression by its weights"


def write_glb(record: FaceRecord, path: Path) -> None:
    """The neutral face with its morph targets, wearing the photo and the photo's expression."""
    write_face_glb(
        path,
        record.face.coefficients,
        record.model,
        painter=record.palette.painter,
        texture=record.texture,
        extras={"comment": f"{record.title}; {GLB_AXES}", "model": record.origin},
        openings=record.palette.openings,
        iris=record.iris.colour,
    )


def write_obj(record: FaceRecord, path: Path) -> None:
    """The mesh with expression, `.obj`, `.mtl` and `_texture.png`."""
    picture = path.with_name(f"{path.stem}_texture.png")
    write_face_obj(
        path,
        record.face.coefficients,
        record.model,
        painter=record.palette.painter,
        picture=picture.name,
        header=[record.comment],
        openings=record.palette.openings,
        iris=record.iris.colour,
    )
    write_texture(record, picture)


def write_ply(record: FaceRecord, path: Path) -> None:
    """The mesh with expression, coloured by the photo; the vertices and triangles of the face model."""
    write_mesh(
        path,
        record.vertices.numpy(),
        record.model.triangles.numpy(),
        colours=record.vertex_colours.numpy(),
        comment=record.comment,
        stamp=record.model.stamp(),
    )
