"""Faces as binary glTF: named morph targets, a picture as skin, an animation; written and read back.

Convention: glTF 2.0, metres, +y up, +z out of the face, which is our model space over a thousand. One mesh; the names
of its morph targets stand in `mesh.extras.targetNames`, where three.js, Blender and Unreal look. Triangles that have no
place in the skin's picture are a second primitive with colours of their vertices; eyes, teeth and mouth are further
primitives.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from models.animation.gltf_container import (
    FLOAT,
    INDEX_DATA,
    MM_PER_M,
    UNSIGNED_INT,
    UNSIGNED_SHORT,
    VERTEX_DATA,
    BufferWriter,
    container,
    displayed_colours,
    linear_colours,
    read_array,
    read_container,
    read_view,
)
from models.animation.gltf_inner import add_inner_parts, read_inner_parts
from models.face.inner_parts import InnerParts

STILL_MM = 1e-3
"""A vertex that a morph target moves by less does not move; so targets of parts of a face stay small files."""

PICTURE_KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
UNKNOWN_COLOUR = 0.7


@dataclass(frozen=True)
class Skin:
    """A picture that a mesh wears."""

    uv: Float[np.ndarray, "V 2"]
    """u right, v up, as in models/rendering/texture_chart.py."""
    picture: bytes
    """Content of a PNG or JPEG file."""
    plain: Bool[np.ndarray, "F"]
    """Triangles that have no place in the picture."""


@dataclass(frozen=True)
class MorphFace:
    """A mesh with named morph targets, in millimetres."""

    vertices: Float[np.ndarray, "V 3"]
    triangles: Int[np.ndarray, "F 3"]
    colours: Float[np.ndarray, "V 3"]
    """RGB in [0, 1] as it is displayed."""
    target_names: tuple[str, ...]
    targets: Float[np.ndarray, "N V 3"]
    """Displacements at weight 1."""
    skin: Skin | None = None
    inner: InnerParts | None = None
    """Eyes, teeth and mouth, where the mesh has openings."""


@dataclass(frozen=True)
class Animation:
    """Weights of all morph targets over time, and the head's motion where it is known."""

    times_s: Float[np.ndarray, "T"]
    weights: Float[np.ndarray, "T N"]
    rotations: Float[np.ndarray, "T 4"] | None = None
    """Unit quaternions x, y, z, w in model space."""
    translations: Float[np.ndarray, "T 3"] | None = None
    """Millimetres in model space."""


def write_animated_glb(
    path: Path,
    face: MorphFace,
    animation: Animation | None = None,
    *,
    name: str = "speech",
    weights: Sequence[float] | None = None,
    extras: Mapping[str, Any] | None = None,
    copyright_line: str = "",
) -> None:
    """Write a face with its morph targets, and an animation of their weights.

    `weights` are those that the face wears when it is opened, by default none.
    Raises: ValueError if names, targets, weights and skin do not fit together.
    """
    _check(path, face, animation, weights)
    count = len(face.target_names)
    buffer = BufferWriter()
    normals = vertex_normals(face.vertices, face.triangles)
    attributes = {
        "POSITION": buffer.add(face.vertices / MM_PER_M, "VEC3", FLOAT, target=VERTEX_DATA, bounds=True),
        "NORMAL": buffer.add(normals, "VEC3", FLOAT, target=VERTEX_DATA),
    }
    targets = []
    for moved in face.targets:
        displaced = np.where(np.linalg.norm(moved, axis=1, keepdims=True) > STILL_MM, moved, 0.0)
        turned = vertex_normals(face.vertices + displaced, face.triangles) - normals
        targets.append(
            {
                "POSITION": buffer.add_displacements(displaced / MM_PER_M, bounds=True),
                "NORMAL": buffer.add_displacements(turned),
            }
        )
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "Mien"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "face", "mesh": 0}],
        "materials": [],
    }
    primitives = _primitives(tree, buffer, face, attributes)
    mesh: dict[str, Any] = {"name": "face", "primitives": primitives}
    if targets:
        for primitive in primitives:
            primitive["targets"] = targets
        shown = [0.0] * count if weights is None else [float(weight) for weight in weights]
        mesh |= {"weights": shown, "extras": {"targetNames": list(face.target_names)}}
    if face.inner is not None:
        around = vertex_normals(face.inner.vertices, face.inner.triangles)
        primitives += add_inner_parts(tree, buffer, face.inner, normals=around)
    tree["meshes"] = [mesh]
    if extras:
        tree["asset"]["extras"] = dict(extras)
    if copyright_line:
        tree["asset"]["copyright"] = copyright_line
    if animation is not None:
        _add_animation(tree, buffer, animation, name=name)
    tree |= {"accessors": buffer.accessors, "bufferViews": buffer.views, "buffers": [{"byteLength": buffer.size}]}
    path.write_bytes(container(tree, b"".join(buffer.parts)))


def _check(path: Path, face: MorphFace, animation: Animation | None, weights: Sequence[float] | None) -> None:
    count = len(face.target_names)
    if face.targets.shape != (count, *face.vertices.shape):
        raise ValueError(f"{path.name}: targets of shape {face.targets.shape} for {count} names")
    if animation is not None and animation.weights.shape != (len(animation.times_s), count):
        raise ValueError(f"{path.name}: weights of shape {animation.weights.shape} for {count} names")
    if weights is not None and len(weights) != count:
        raise ValueError(f"{path.name}: {len(weights)} weights for {count} names")
    if face.inner is not None and len(face.inner.targets) != count:
        raise ValueError(f"{path.name}: {len(face.inner.targets)} targets of inner parts for {count} names")
    skin = face.skin
    if skin is not None and (skin.uv.shape != (len(face.vertices), 2) or skin.plain.shape != (len(face.triangles),)):
        raise ValueError(
            f"{path.name}: skin of {skin.uv.shape} and {skin.plain.shape} for {len(face.vertices)} vertices "
            f"and {len(face.triangles)} triangles"
        )


def _primitives(
    tree: dict[str, Any], buffer: BufferWriter, face: MorphFace, attributes: dict[str, int]
) -> list[dict[str, Any]]:
    """The triangles with the picture, then those without; adds materials and picture to the tree."""
    skin = face.skin
    plain = np.ones(len(face.triangles), bool) if skin is None else skin.plain
    primitives: list[dict[str, Any]] = []

    def add(chosen: np.ndarray, more: dict[str, int], material: dict[str, Any]) -> None:
        indices = buffer.add(face.triangles[chosen].reshape(-1), "SCALAR", UNSIGNED_INT, target=INDEX_DATA)
        primitives.append({"attributes": attributes | more, "indices": indices, "material": len(tree["materials"])})
        surface = {"metallicFactor": 0.0, "roughnessFactor": 0.75, **material}
        named = {"name": "skin" if not primitives[:-1] else "skin_without_picture"}
        tree["materials"].append({**named, "doubleSided": True, "pbrMetallicRoughness": surface})

    if skin is not None and not plain.all():
        kind = next((kind for start, kind in PICTURE_KINDS.items() if skin.picture.startswith(start)), None)
        if kind is None:
            raise ValueError(f"picture of the skin starts with {skin.picture[:4]!r}, expected a PNG or JPEG file")
        down = np.stack([skin.uv[:, 0], 1.0 - skin.uv[:, 1]], 1)
        tree["images"] = [{"name": "skin", "mimeType": kind, "bufferView": buffer.add_bytes(skin.picture)}]
        # Clamped at the edges: what lies beyond one is not what lies at the opposite one.
        tree["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
        tree["textures"] = [{"source": 0, "sampler": 0}]
        place = buffer.add(down, "VEC2", FLOAT, target=VERTEX_DATA)
        add(~plain, {"TEXCOORD_0": place}, {"baseColorTexture": {"index": 0}})
    if plain.any():
        colours = buffer.add(linear_colours(face.colours), "VEC4", UNSIGNED_SHORT, target=VERTEX_DATA, scaled=True)
        add(plain, {"COLOR_0": colours}, {})
    return primitives


def _add_animation(tree: dict[str, Any], buffer: BufferWriter, animation: Animation, *, name: str) -> None:
    moving: dict[str, np.ndarray] = {}
    if animation.weights.shape[1]:
        moving["weights"] = animation.weights.reshape(-1)
    if animation.rotations is not None:
        moving["rotation"] = animation.rotations
    if animation.translations is not None:
        moving["translation"] = animation.translations / MM_PER_M
    if not moving:
        return
    times = buffer.add(animation.times_s, "SCALAR", FLOAT, bounds=True)
    widths = {"weights": "SCALAR", "rotation": "VEC4", "translation": "VEC3"}
    samplers = [
        {"input": times, "output": buffer.add(values, widths[path], FLOAT), "interpolation": "LINEAR"}
        for path, values in moving.items()
    ]
    channels = [{"sampler": place, "target": {"node": 0, "path": path}} for place, path in enumerate(moving)]
    tree["animations"] = [{"name": name, "samplers": samplers, "channels": channels}]


def read_glb(path: Path) -> tuple[MorphFace, Animation | None]:
    """Read the first mesh of a binary glTF file, with its morph targets and the animation of their weights.

    Files in metres become millimetres; a face that is larger than 10 units is taken for millimetres already.
    Raises: ValueError naming the file, what was found and what was expected.
    """
    tree, binary = read_container(path)
    try:
        return _read_face(tree, binary)
    except (KeyError, IndexError, TypeError, struct.error) as error:
        raise ValueError(f"{path}: not a usable glTF mesh ({type(error).__name__}: {error}); export it again") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def vertex_normals(vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 3"]:
    """Unit normals, each the area-weighted mean of its triangles'; +z where a vertex has none."""
    corners = vertices[triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    columns = [np.bincount(triangles.reshape(-1), np.repeat(faces[:, axis], 3), len(vertices)) for axis in range(3)]
    normals = np.stack(columns, 1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    found = np.where(length > 1e-12, normals / np.maximum(length, 1e-12), [0.0, 0.0, 1.0])
    return found.astype(np.float32)


def _read_face(tree: Mapping[str, Any], binary: bytes) -> tuple[MorphFace, Animation | None]:
    mesh = tree["meshes"][0]
    first = mesh["primitives"][0]
    # Primitives of one mesh may share their vertices and differ in material only, as ours do.
    same = [one for one in mesh["primitives"] if one["attributes"]["POSITION"] == first["attributes"]["POSITION"]]
    vertices = read_array(tree, binary, first["attributes"]["POSITION"]).astype(np.float64)
    scale = 1.0 if np.ptp(vertices, axis=0).max() > 10.0 else MM_PER_M
    parts = [
        read_array(tree, binary, one["indices"]).reshape(-1, 3).astype(np.int64)
        if "indices" in one
        else np.arange(len(vertices)).reshape(-1, 3)
        for one in same
    ]
    triangles = np.concatenate(parts)
    if triangles.size and triangles.max() >= len(vertices):
        raise ValueError(f"triangles name vertex {triangles.max()} of {len(vertices)}; export it again")
    skin, colours = _read_skin(tree, binary, first, len(triangles)), np.full(vertices.shape, UNKNOWN_COLOUR)
    if skin is not None:
        colours = _picked_colours(skin)
    for one, part in zip(same, parts, strict=True):
        if "COLOR_0" in one["attributes"]:
            shown = displayed_colours(read_array(tree, binary, one["attributes"]["COLOR_0"])[:, :3])
            chosen = np.unique(part) if skin is not None else slice(None)
            colours[chosen] = shown[chosen]
    moved = [read_array(tree, binary, target["POSITION"]) for target in first.get("targets", ())]
    names: Sequence[str] = (mesh.get("extras") or {}).get("targetNames") or [f"target_{i}" for i in range(len(moved))]
    if len(names) != len(moved):
        raise ValueError(f"{len(names)} names for {len(moved)} morph targets; export it again")
    targets = np.stack(moved) if moved else np.zeros((0, *vertices.shape))
    if skin is not None:
        skin.plain[len(parts[0]) :] = True
    others = [one for one in mesh["primitives"] if one not in same]
    face = MorphFace(
        vertices=(vertices * scale).astype(np.float32),
        triangles=triangles,
        colours=colours.astype(np.float32),
        target_names=tuple(str(name) for name in names),
        targets=(targets * scale).astype(np.float32),
        skin=skin,
        inner=read_inner_parts(tree, binary, others, count=len(moved), scale=scale),
    )
    return face, _read_animation(tree, binary, len(moved))


def _read_skin(tree: Mapping[str, Any], binary: bytes, primitive: Mapping[str, Any], count: int) -> Skin | None:
    """The picture of a primitive's material, where it is in the file and this program knows its kind."""
    material = tree.get("materials", [{}])[primitive["material"]] if "material" in primitive else {}
    texture = material.get("pbrMetallicRoughness", {}).get("baseColorTexture")
    if texture is None or "TEXCOORD_0" not in primitive["attributes"] or texture.get("texCoord", 0) != 0:
        return None
    source = tree["textures"][texture["index"]].get("source")
    image = {} if source is None else tree["images"][source]
    if "bufferView" not in image:
        return None
    picture = read_view(tree, binary, image["bufferView"])
    if not any(picture.startswith(start) for start in PICTURE_KINDS):
        return None
    down = read_array(tree, binary, primitive["attributes"]["TEXCOORD_0"]).astype(np.float64)
    return Skin(np.stack([down[:, 0], 1.0 - down[:, 1]], 1), picture, np.zeros(count, bool))


def _picked_colours(skin: Skin) -> Float[np.ndarray, "V 3"]:
    """Colours of the vertices, as the picture shows them."""
    flat = np.frombuffer(skin.picture, np.uint8)
    image = cv2.imdecode(flat, cv2.IMREAD_REDUCED_COLOR_2) if flat.size else None
    if image is None:
        raise ValueError("its picture cannot be decoded; export it again")
    height, width = image.shape[:2]
    place = np.nan_to_num(np.stack([skin.uv[:, 0], 1.0 - skin.uv[:, 1]], 1)) % 1.0
    column = np.clip((place[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip((place[:, 1] * height).astype(int), 0, height - 1)
    return image[row, column, ::-1].astype(np.float64) / 255.0


def _read_animation(tree: Mapping[str, Any], binary: bytes, count: int) -> Animation | None:
    for animation in tree.get("animations", ()):
        for channel in animation["channels"]:
            if channel["target"].get("path") == "weights" and count:
                sampler = animation["samplers"][channel["sampler"]]
                weights = read_array(tree, binary, sampler["output"]).reshape(-1, count)
                return Animation(times_s=read_array(tree, binary, sampler["input"]).reshape(-1), weights=weights)
    return None
