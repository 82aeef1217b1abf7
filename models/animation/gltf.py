"""Faces as binary glTF: named morph targets with an animation of their weights, written and read back.

Convention: glTF 2.0, metres, +y up, +z out of the face, which is our model space over a thousand. One mesh with one
primitive; the names of its morph targets stand in `mesh.extras.targetNames`, where three.js, Blender and Unreal look.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

MM_PER_M = 1000.0
MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5121, 5123, 5125
VERTEX_DATA, INDEX_DATA = 34962, 34963
NUMBERS = {FLOAT: "<f4", UNSIGNED_BYTE: "u1", UNSIGNED_SHORT: "<u2", UNSIGNED_INT: "<u4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
MAX_BYTES = 2**30


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


@dataclass(frozen=True)
class Animation:
    """Weights of all morph targets over time."""

    times_s: Float[np.ndarray, "T"]
    weights: Float[np.ndarray, "T N"]


def write_animated_glb(
    path: Path,
    face: MorphFace,
    animation: Animation | None = None,
    *,
    name: str = "speech",
    extras: Mapping[str, Any] | None = None,
    copyright_line: str = "",
) -> None:
    """Write a face with its morph targets, and an animation of their weights.

    Raises: ValueError if names, targets and weights do not fit together.
    """
    count = len(face.target_names)
    if face.targets.shape != (count, *face.vertices.shape):
        raise ValueError(f"{path.name}: targets of shape {face.targets.shape} for {count} names")
    if animation is not None and animation.weights.shape != (len(animation.times_s), count):
        raise ValueError(f"{path.name}: weights of shape {animation.weights.shape} for {count} names")
    buffer = _Buffer()
    normals = vertex_normals(face.vertices, face.triangles)
    attributes = {
        "POSITION": buffer.add(face.vertices / MM_PER_M, "VEC3", FLOAT, target=VERTEX_DATA, bounds=True),
        "NORMAL": buffer.add(normals, "VEC3", FLOAT, target=VERTEX_DATA),
        "COLOR_0": buffer.add(_linear_colours(face.colours), "VEC4", UNSIGNED_SHORT, target=VERTEX_DATA, scaled=True),
    }
    indices = buffer.add(face.triangles.reshape(-1), "SCALAR", UNSIGNED_INT, target=INDEX_DATA)
    targets = []
    for moved in face.targets:
        turned = vertex_normals(face.vertices + moved, face.triangles) - normals
        targets.append(
            {
                "POSITION": buffer.add(moved / MM_PER_M, "VEC3", FLOAT, target=VERTEX_DATA, bounds=True),
                "NORMAL": buffer.add(turned, "VEC3", FLOAT, target=VERTEX_DATA),
            }
        )
    primitive: dict[str, Any] = {"attributes": attributes, "indices": indices, "material": 0}
    mesh: dict[str, Any] = {"name": "face", "primitives": [primitive]}
    if targets:
        primitive["targets"] = targets
        mesh |= {"weights": [0.0] * count, "extras": {"targetNames": list(face.target_names)}}
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "Mien"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "face", "mesh": 0}],
        "meshes": [mesh],
        "materials": [
            {
                "name": "skin",
                "doubleSided": True,
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.75},
            }
        ],
    }
    if extras:
        tree["asset"]["extras"] = dict(extras)
    if copyright_line:
        tree["asset"]["copyright"] = copyright_line
    if animation is not None and count:
        times = buffer.add(animation.times_s, "SCALAR", FLOAT, bounds=True)
        values = buffer.add(animation.weights.reshape(-1), "SCALAR", FLOAT)
        tree["animations"] = [
            {
                "name": name,
                "samplers": [{"input": times, "output": values, "interpolation": "LINEAR"}],
                "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}],
            }
        ]
    tree |= {"accessors": buffer.accessors, "bufferViews": buffer.views, "buffers": [{"byteLength": buffer.size}]}
    path.write_bytes(_container(tree, b"".join(buffer.parts)))


def read_glb(path: Path) -> tuple[MorphFace, Animation | None]:
    """Read the first mesh of a binary glTF file, with its morph targets and the animation of their weights.

    Files in metres become millimetres; a face that is larger than 10 units is taken for millimetres already.
    Raises: ValueError naming the file, what was found and what was expected.
    """
    tree, binary = _read_container(path)
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
    normals = np.zeros(vertices.shape)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], faces)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    found = np.where(length > 1e-12, normals / np.maximum(length, 1e-12), [0.0, 0.0, 1.0])
    return found.astype(np.float32)


class _Buffer:
    """Arrays one after the other, each with its view and accessor."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(
        self,
        values: np.ndarray,
        kind: str,
        component: int,
        *,
        target: int | None = None,
        bounds: bool = False,
        scaled: bool = False,
    ) -> int:
        array = np.ascontiguousarray(values, dtype=NUMBERS[component])
        content = array.tobytes()
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self.size, "byteLength": len(content)}
        if target is not None:
            view["target"] = target
        accessor: dict[str, Any] = {
            "bufferView": len(self.views),
            "componentType": component,
            "count": array.size // WIDTHS[kind],
            "type": kind,
        }
        if scaled:
            accessor["normalized"] = True
        if bounds:
            # In the stored precision, or a validator finds values outside the bounds.
            rows = array.reshape(-1, WIDTHS[kind]).astype(np.float64)
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        content += b"\0" * (-len(content) % 4)
        self.parts.append(content)
        self.size += len(content)
        self.views.append(view)
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _linear_colours(colours: Float[np.ndarray, "V 3"]) -> np.ndarray:
    """Display colours as the linear light that glTF wants, in 16 bits, opaque."""
    shown = np.clip(colours, 0.0, 1.0).astype(np.float64)
    linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    return np.rint(np.concatenate([linear, np.ones((len(linear), 1))], 1) * 65535.0)


def _displayed_colours(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0) ** (1 / 2.4) - 0.055)


def _container(tree: Mapping[str, Any], binary: bytes) -> bytes:
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<III", MAGIC, 2, 12 + 8 + len(text) + 8 + len(binary))
    return (
        header
        + struct.pack("<II", len(text), JSON_CHUNK)
        + text
        + struct.pack("<II", len(binary), BINARY_CHUNK)
        + binary
    )


def _read_container(path: Path) -> tuple[dict[str, Any], bytes]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_BYTES}; reduce the mesh")
    content = path.read_bytes()
    if len(content) < 20 or struct.unpack_from("<I", content)[0] != MAGIC:
        raise ValueError(f"{path}: not a binary glTF file; export the face as .glb")
    length, kind = struct.unpack_from("<II", content, 12)
    try:
        tree = json.loads(content[20 : 20 + length])
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"{path}: its JSON cannot be read; export the face again") from None
    if kind != JSON_CHUNK or not isinstance(tree, dict):
        raise ValueError(f"{path}: its first chunk is no JSON; export the face again")
    return tree, content[20 + length + 8 :]


def _read_face(tree: Mapping[str, Any], binary: bytes) -> tuple[MorphFace, Animation | None]:
    mesh = tree["meshes"][0]
    primitive = mesh["primitives"][0]
    attributes = primitive["attributes"]
    vertices = _array(tree, binary, attributes["POSITION"]).astype(np.float64)
    scale = 1.0 if np.ptp(vertices, axis=0).max() > 10.0 else MM_PER_M
    if "indices" in primitive:
        triangles = _array(tree, binary, primitive["indices"]).reshape(-1, 3).astype(np.int64)
    else:
        triangles = np.arange(len(vertices)).reshape(-1, 3)
    if triangles.size and triangles.max() >= len(vertices):
        raise ValueError(f"triangles name vertex {triangles.max()} of {len(vertices)}; export it again")
    colours = np.full(vertices.shape, 0.7)
    if "COLOR_0" in attributes:
        colours = _displayed_colours(_array(tree, binary, attributes["COLOR_0"])[:, :3])
    moved = [_array(tree, binary, target["POSITION"]) for target in primitive.get("targets", ())]
    names: Sequence[str] = (mesh.get("extras") or {}).get("targetNames") or [f"target_{i}" for i in range(len(moved))]
    if len(names) != len(moved):
        raise ValueError(f"{len(names)} names for {len(moved)} morph targets; export it again")
    targets = np.stack(moved) if moved else np.zeros((0, *vertices.shape))
    face = MorphFace(
        vertices=(vertices * scale).astype(np.float32),
        triangles=triangles,
        colours=colours.astype(np.float32),
        target_names=tuple(str(name) for name in names),
        targets=(targets * scale).astype(np.float32),
    )
    return face, _read_animation(tree, binary, len(moved))


def _read_animation(tree: Mapping[str, Any], binary: bytes, count: int) -> Animation | None:
    for animation in tree.get("animations", ()):
        for channel in animation["channels"]:
            if channel["target"].get("path") == "weights" and count:
                sampler = animation["samplers"][channel["sampler"]]
                weights = _array(tree, binary, sampler["output"]).reshape(-1, count)
                return Animation(times_s=_array(tree, binary, sampler["input"]).reshape(-1), weights=weights)
    return None


def _array(tree: Mapping[str, Any], binary: bytes, index: int) -> np.ndarray:
    """The values of an accessor as float32 or integers, rows by components; sparse and strided ones included."""
    accessor = tree["accessors"][index]
    width, count, kind = WIDTHS[accessor["type"]], accessor["count"], NUMBERS[accessor["componentType"]]
    values = np.zeros((count, width), kind)
    if "bufferView" in accessor:
        values = _elements(tree, binary, accessor["bufferView"], accessor.get("byteOffset", 0), kind, count, width)
    if "sparse" in accessor:
        sparse, values = accessor["sparse"], values.copy()
        place, moved = sparse["indices"], sparse["values"]
        offset = place.get("byteOffset", 0)
        rows = _elements(tree, binary, place["bufferView"], offset, NUMBERS[place["componentType"]], sparse["count"], 1)
        offset = moved.get("byteOffset", 0)
        values[rows[:, 0]] = _elements(tree, binary, moved["bufferView"], offset, kind, sparse["count"], width)
    if accessor.get("normalized") and values.dtype.kind == "u":
        return np.asarray(values / np.float32(np.iinfo(values.dtype).max), dtype=np.float32)
    return values


def _elements(
    tree: Mapping[str, Any], binary: bytes, view_index: int, offset: int, kind: str, count: int, width: int
) -> np.ndarray:
    view = tree["bufferViews"][view_index]
    if view.get("buffer", 0) != 0 or "uri" in tree["buffers"][0]:
        raise ValueError("refers to another file, expected everything in one .glb; export it with embedded buffers")
    size = np.dtype(kind).itemsize * width
    stride = view.get("byteStride", size)
    start = view.get("byteOffset", 0) + offset
    if count and start + (count - 1) * stride + size > len(binary):
        raise ValueError("ends before its data does; export it again")
    rows = np.ndarray((count, width), kind, binary, start, (stride, np.dtype(kind).itemsize))
    return rows.copy()
