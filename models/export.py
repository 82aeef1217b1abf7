"""What leaves the program: meshes with vertex colours, the camera in words and numbers, and a drawing over the photo.

Convention: meshes are written in model space, +x the subject's left, +y up, +z out of the face, millimetres. Vertex
colours are the albedo as the renderer multiplies it with light, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from models.face.camera import NEAR_MM
from models.rendering.render import render
from models.types import Camera

if TYPE_CHECKING:
    import trimesh

MAX_OVERLAY_SIDE_PX = 1536
"""A larger face is drawn at this size and enlarged, so that memory does not grow with the photo."""

SMOOTHING = 2
"""Pixels are drawn this many times finer on each side, so that the outline of the face is smooth."""

Vertices = Float[np.ndarray, "V 3"]
Triangles = Int[np.ndarray, "F 3"]
Origin = dict[str, str]
"""Name, licence and hashes of the face model, a line each."""


def write_mesh(
    path: Path,
    vertices: Vertices,
    triangles: Triangles,
    *,
    colours: Vertices,
    comment: str = "",
    stamp: Mapping[str, str] | None = None,
) -> None:
    """Write a coloured mesh in the format that the suffix names.

    `stamp` says which face model the mesh comes from (`MorphableModel.stamp`): with the comment it stands in the first
    lines of `.obj`, in the header of `.ply`, and in `asset.extras` of `.glb`, whose `asset.copyright` is the licence.
    Raises: ValueError if the suffix is unknown or the arrays do not fit together.
    """
    if path.suffix not in MESH_WRITERS:
        raise ValueError(f"{path.name}: unknown kind of mesh file, expected one of {', '.join(MESH_WRITERS)}")
    if vertices.shape != colours.shape:
        raise ValueError(f"{path.name}: colours of shape {colours.shape} for vertices of shape {vertices.shape}")
    if len(triangles) and (int(triangles.min()) < 0 or int(triangles.max()) >= len(vertices)):
        raise ValueError(
            f"{path.name}: triangles name vertices {int(triangles.min())} to {int(triangles.max())} of {len(vertices)}"
        )
    comments = comment.splitlines()
    # A licence of several lines must not break the header of the file.
    origin = {key: " ".join(value.split()) for key, value in (stamp or {}).items() if value.strip()}
    MESH_WRITERS[path.suffix](path, vertices, triangles, np.clip(colours, 0.0, 1.0), comments, origin)


def _write_obj(
    path: Path, vertices: Vertices, triangles: Triangles, colours: Vertices, comments: list[str], origin: Origin
) -> None:
    # Colours after the coordinates are an extension that MeshLab, Blender and trimesh read.
    lines = [f"# {line}" for line in _header(comments, origin)]
    lines += [
        f"v {x:.4f} {y:.4f} {z:.4f} {red:.4f} {green:.4f} {blue:.4f}"
        for (x, y, z), (red, green, blue) in zip(vertices.tolist(), colours.tolist(), strict=True)
    ]
    lines += [f"f {a} {b} {c}" for a, b, c in (triangles + 1).tolist()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_ply(
    path: Path, vertices: Vertices, triangles: Triangles, colours: Vertices, comments: list[str], origin: Origin
) -> None:
    from trimesh.exchange.ply import export_ply

    magic, form, rest = export_ply(_mesh(vertices, triangles, colours)).split(b"\n", 2)
    # Many readers of this format take the header for ASCII.
    lines = [f"comment {line}".encode("ascii", "replace") for line in _header(comments, origin)]
    path.write_bytes(b"\n".join([magic, form, *lines, rest]))


def _write_glb(
    path: Path, vertices: Vertices, triangles: Triangles, colours: Vertices, comments: list[str], origin: Origin
) -> None:
    from trimesh.exchange.gltf import export_glb

    def describe(tree: dict[str, Any]) -> None:
        extras = {"comment": "\n".join(comments), "face_model": origin}
        tree["asset"]["extras"] = {key: value for key, value in extras.items() if value}
        if "licence" in origin:
            tree["asset"]["copyright"] = f"face model {origin.get('name', '')}: {origin['licence']}"

    scene = _mesh(vertices, triangles, colours).scene()
    path.write_bytes(export_glb(scene, tree_postprocessor=describe))


def _mesh(vertices: Vertices, triangles: Triangles, colours: Vertices) -> trimesh.Trimesh:
    import trimesh

    return trimesh.Trimesh(
        vertices, triangles, vertex_colors=np.rint(colours * 255).astype(np.uint8), process=False, validate=False
    )


def _header(comments: list[str], origin: Origin) -> list[str]:
    return [*comments, *(f"face model {key}: {value}" for key, value in origin.items())]


MESH_WRITERS: dict[str, Callable[[Path, Vertices, Triangles, Vertices, list[str], Origin], None]] = {
    ".obj": _write_obj,
    ".ply": _write_ply,
    ".glb": _write_glb,
}
"""Kinds of mesh file by suffix."""


def camera_document(
    intrinsics: Float[Tensor, "3 3"],
    *,
    size: tuple[int, int],
    rotation: Float[Tensor, "3"],
    translation: Float[Tensor, "3"],
) -> dict[str, Any]:
    """The camera of a photo as plain data, with the formula that leads from the mesh to pixels.

    `intrinsics` map camera space to pixels of the photo of `size` (H, W); `rotation` is axis-angle, see
    models/face/camera.py. The extrinsics contain the half turn between model and camera axes.
    """
    matrix = torch.linalg.matrix_exp(_cross_matrix(rotation.double()))
    half_turn = torch.diag(rotation.new_tensor([1.0, -1.0, -1.0]).double())
    return {
        "convention": "pixel = K (R x + t), divided by its third number; x in mm of the mesh, pixels x right, y down, "
        "centres at +0.5; camera x right, y down, z forward",
        "width_px": size[1],
        "height_px": size[0],
        "K": _numbers(intrinsics),
        "R": _numbers(half_turn @ matrix),
        "t_mm": _numbers(translation),
        "rotation_axis_angle_rad": _numbers(rotation),
    }


def overlay(
    photo: UInt8[np.ndarray, "H W 3"],
    *,
    vertices: Float[Tensor, "V 3"],
    triangles: Int[Tensor, "F 3"],
    albedo: Float[Tensor, "V 3"],
    lighting: Float[Tensor, "9 3"],
    intrinsics: Float[Tensor, "3 3"],
    opacity: float = 1.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a face, given in camera space, over the photo at the photo's own resolution.

    Only the part of the photo around the face is rendered.
    Degenerate: a face outside the photo leaves it as it is.
    """
    height, width = photo.shape[:2]
    depth = vertices[:, 2:].clamp_min(NEAR_MM)
    pixels = (vertices / depth) @ intrinsics.T
    limit = pixels.new_tensor([width, height])
    low = torch.minimum(pixels[:, :2].amin(0).floor().clamp_min(0.0), limit).long()
    high = torch.minimum((pixels[:, :2].amax(0).ceil() + 1.0).clamp_min(0.0), limit).long()
    extent = high - low
    if bool((extent <= 0).any()):
        return photo.copy()
    longest = int(extent.max())
    zoom = min(float(SMOOTHING), MAX_OVERLAY_SIDE_PX / longest)
    drawn_size = (max(1, round(int(extent[1]) * zoom)), max(1, round(int(extent[0]) * zoom)))
    camera = Camera(
        focal_px=intrinsics[0, 0, None] * zoom,
        principal_px=((intrinsics[:2, 2] - low) * zoom)[None],
        size=drawn_size,
    )
    drawing = render(vertices[None], triangles, albedo=albedo[None], lighting=lighting[None], camera=camera)
    # Coverage is averaged with the colour, which is zero outside, so the edge blends without a dark rim.
    layers = torch.cat([drawing.image[0].clamp(0.0, 1.0), drawing.mask.float()]).permute(1, 2, 0).numpy()
    size = (int(extent[0]), int(extent[1]))
    layers = cv2.resize(layers, size, interpolation=cv2.INTER_AREA if zoom >= 1.0 else cv2.INTER_LINEAR)
    colour, coverage = layers[..., :3] * 255.0, layers[..., 3:]
    result = photo.copy()
    piece = result[low[1] : high[1], low[0] : high[0]]
    piece[:] = np.rint(piece * (1.0 - opacity * coverage) + opacity * colour).clip(0, 255).astype(np.uint8)
    return result


def _cross_matrix(axis: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    x, y, z = axis.unbind()
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)


def _numbers(values: Tensor) -> Any:
    return values.double().tolist()
