"""Pictures of a face: over its photo, its depth, its normals, its skin, and a sheet of all faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.export import overlay
from models.face.camera import rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from models.reconstruction.face_meshes import texture_pixels
from models.rendering.photo_maps import photo_depth, photo_normals
from models.rendering.render import render
from models.rendering.texture import draw_texture
from models.types import Camera
from tasks.face_model import png_stamp
from tasks.face_record import FaceRecord
from tasks.images import Pixels

DEPTH_UNIT_MM = 0.1
"""Of a step of the 16-bit picture: 6.5 metres at most."""

CELL_PX, GAP_PX = 192, 4
FACES_PER_SHEET = 24
SHEET_TURN_DEG = 35.0
DISTANCE_MM = 1000.0
VIEW_MARGIN = 1.08


def face_stamp(record: FaceRecord, **chunks: str) -> PngInfo:
    """Text chunks of a PNG: the face model with its licence, whose face it is, and whatever else."""
    stamp = png_stamp(record.model)
    stamp.add_itxt("photo", record.face.name)
    stamp.add_text("face", record.how)
    for key, value in chunks.items():
        stamp.add_itxt(key, value)
    return stamp


def write_texture(record: FaceRecord, path: Path) -> None:
    """The skin's picture."""
    about = "colours of the photo, its light included; u right, v up"
    Image.fromarray(texture_pixels(record.texture)).save(path, pnginfo=face_stamp(record, about=about))


def face_over_photo(record: FaceRecord) -> Pixels:
    """The face drawn over the whole photo."""
    found = record.face.reconstruction
    return overlay(
        record.face.photo,
        vertices=found.mesh.vertices[0],
        triangles=record.model.triangles,
        albedo=record.albedo,
        lighting=found.coefficients.lighting[0],
        intrinsics=record.face.intrinsics,
    )


def write_overlay(record: FaceRecord, path: Path) -> None:
    """The face drawn over the whole photo."""
    Image.fromarray(face_over_photo(record)).save(path, pnginfo=face_stamp(record))


def write_depth(record: FaceRecord, path: Path) -> None:
    """Distance of every pixel of the photo along the camera's axis, 16 bits; 0 where the face is not."""
    face = record.face
    depth = photo_depth(
        face.reconstruction.mesh.vertices[0],
        record.model.triangles,
        intrinsics=face.intrinsics,
        size=(face.photo.shape[0], face.photo.shape[1]),
    )
    steps = np.rint(depth / DEPTH_UNIT_MM).clip(0, 65535).astype(np.uint16)
    about = f"depth along the camera's axis in {DEPTH_UNIT_MM:g} mm; 0: no face"
    Image.fromarray(steps).save(path, pnginfo=face_stamp(record, about=about))


def write_normals(record: FaceRecord, path: Path) -> None:
    """Normals of the photo's pixels: red x right, green y up, blue z to the camera, from -1 to 1; black outside."""
    face = record.face
    normals = photo_normals(
        face.reconstruction.mesh.vertices[0],
        record.model.triangles,
        intrinsics=face.intrinsics,
        size=(face.photo.shape[0], face.photo.shape[1]),
    )
    there = (normals != 0.0).any(2, keepdims=True)
    coded = np.where(there, np.rint((normals + 1.0) * 127.5), 0.0).astype(np.uint8)
    about = "unit normals: red x right, green y up, blue z to the camera, -1 to 1 as 0 to 255; black: no face"
    Image.fromarray(coded).save(path, pnginfo=face_stamp(record, about=about))


def sheet_row(record: FaceRecord) -> list[Pixels]:
    """Photo, face over it, bare shape, the face with its skin from the front and turned, and the neutral face."""
    left, top, side = _square_around(record)
    drawn = face_over_photo(record)
    photo, over = (_cut(picture, left, top, side) for picture in (record.face.photo, drawn))
    front, turned = (draw_skin(record, yaw_deg=yaw) for yaw in (0.0, SHEET_TURN_DEG))
    bare, neutral = (draw_shape(record, expression=expression) for expression in (True, False))
    return [photo, over, bare, front, turned, neutral]


def write_sheets(rows: Sequence[Sequence[Pixels]], folder: Path, *, model: MorphableModel) -> list[Path]:
    """Write `contact_sheet.png`, with further ones where there are many faces; a row per face."""
    paths = []
    for number, start in enumerate(range(0, len(rows), FACES_PER_SHEET), 1):
        some = rows[start : start + FACES_PER_SHEET]
        step = CELL_PX + GAP_PX
        sheet = np.full((len(some) * step - GAP_PX, len(some[0]) * step - GAP_PX, 3), 255, np.uint8)
        for row, cells in enumerate(some):
            for column, cell in enumerate(cells):
                sheet[row * step : row * step + CELL_PX, column * step : column * step + CELL_PX] = cell
        paths.append(folder / ("contact_sheet.png" if number == 1 else f"contact_sheet-{number}.png"))
        Image.fromarray(sheet).save(paths[-1], pnginfo=png_stamp(model))
    return paths


@torch.no_grad()
def draw_skin(record: FaceRecord, *, yaw_deg: float) -> Pixels:
    """The face with expression and skin, on white, as an icon."""
    vertices, chart = _with_inner(record, record.vertices, expression=True), record.palette.painter.chart
    triangles = _all_triangles(record)
    more = len(vertices) - len(chart.uv), len(triangles) - len(chart.triangles)
    chart = replace(
        chart,
        uv=torch.cat([chart.uv, chart.uv.new_zeros(more[0], 2)]),
        triangles=triangles,
        uncharted=torch.cat([chart.uncharted, chart.uncharted.new_ones(more[1])]),
    )
    colours = record.albedo
    if record.inner is not None:
        colours = torch.cat([colours, torch.from_numpy(record.inner.colours)])
    seen, camera = _view(vertices, yaw_deg)
    drawn = draw_texture(
        torch.cat([record.texture.colour, torch.ones_like(record.texture.colour[:, :1])], 1),
        seen,
        chart=chart,
        camera=camera,
        uncharted_colours=torch.cat([colours, torch.ones_like(colours[:, :1])], 1)[None],
    )
    return _on_white(drawn[0])


@torch.no_grad()
def draw_shape(record: FaceRecord, *, expression: bool) -> Pixels:
    """The mesh in grey, on white, as an icon."""
    shape = record.vertices if expression else record.neutral
    seen, camera = _view(_with_inner(record, shape, expression=expression), 0.0)
    light = torch.zeros(1, 9, 3)
    light[:, 0], light[:, 1], light[:, 2], light[:, 3] = 0.5, -0.22, -0.47, -0.2
    found = render(seen, _all_triangles(record), albedo=torch.full_like(seen, 0.72), lighting=light, camera=camera)
    return _on_white(torch.cat([found.image[0], found.mask.float()]))


def _with_inner(record: FaceRecord, vertices: torch.Tensor, *, expression: bool) -> torch.Tensor:
    """The vertices of the face and then those of its eyes and mouth."""
    return torch.cat([vertices, record.inner_vertices(expression=expression)])


def _all_triangles(record: FaceRecord) -> torch.Tensor:
    triangles = record.model.triangles
    if record.inner is None:
        return triangles
    return torch.cat([triangles, torch.from_numpy(record.inner.triangles + record.model.vertex_count).to(triangles)])


def _view(vertices: torch.Tensor, yaw_deg: float) -> tuple[torch.Tensor, Camera]:
    """A mesh turned before a camera that sees the whole of it, twice as fine as the icon."""
    low, high = vertices.amin(0), vertices.amax(0)
    yaw, none = torch.tensor([yaw_deg]).deg2rad(), torch.zeros(1)
    seen = to_camera_space(
        (vertices - (low + high) / 2.0)[None],
        rotation=rotation_from_angles(yaw, none, none),
        translation=torch.tensor([[0.0, 0.0, DISTANCE_MM]]),
    )
    side = 2 * CELL_PX
    focal = side * DISTANCE_MM / (VIEW_MARGIN * float((high - low)[:2].max()))
    camera = Camera(
        focal_px=torch.tensor([focal]), principal_px=torch.full((1, 2), side / 2.0), size=(side, side)
    )  # fmt: skip
    return seen, camera


def _on_white(layers: torch.Tensor) -> Pixels:
    """Colour and coverage (4, 2S, 2S) as a picture (S, S, 3)."""
    layers = torch.nn.functional.avg_pool2d(layers, 2)
    shown = (layers[:3].clamp(0.0, 1.0) + 1.0 - layers[3:]).clamp(0.0, 1.0)
    return np.asarray((shown * 255.0).round().byte().permute(1, 2, 0).numpy())


def _square_around(record: FaceRecord) -> tuple[int, int, int]:
    """Left, top and side of the crop that the network saw, in pixels of the photo."""
    affine, size = record.face.affine, record.face.batch.image.shape[-1]
    return round(float(affine[0, 2])), round(float(affine[1, 2])), max(1, round(float(affine[0, 0]) * size))


def _cut(picture: Pixels, left: int, top: int, side: int) -> Pixels:
    """A square of a photo as an icon; white beyond the photo."""
    height, width = picture.shape[:2]
    square = np.full((side, side, 3), 255, np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x1 > x0 and y1 > y0:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = picture[y0:y1, x0:x1]
    small = Image.fromarray(square).resize((CELL_PX, CELL_PX), Image.Resampling.BOX if side > CELL_PX else None)
    return np.asarray(small, np.uint8)
