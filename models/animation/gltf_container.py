"""The outside of a binary glTF file: its two chunks, and arrays in its buffer, dense or sparse.

Source: glTF 2.0, sections 3.6 (binary data) and 4 (GLB).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5121, 5123, 5125
VERTEX_DATA, INDEX_DATA = 34962, 34963
NUMBERS = {FLOAT: "<f4", UNSIGNED_BYTE: "u1", UNSIGNED_SHORT: "<u2", UNSIGNED_INT: "<u4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
MAX_BYTES = 2**30
MAX_VALUE = 1e30
"""Beyond any length in millimetres; what is larger overflows where it is scaled."""

MM_PER_M = 1000.0

SPARSE_SHARE = 0.6
"""Of the rows: an array of which fewer are not zero is stored as these rows with their places."""


class BufferWriter:
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
        """Store an array; returns the index of its accessor."""
        array = np.ascontiguousarray(values, dtype=NUMBERS[component])
        accessor = self._accessor(array, kind, component, bounds=bounds)
        accessor["bufferView"] = self.add_bytes(array.tobytes(), target=target)
        if scaled:
            accessor["normalized"] = True
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_displacements(self, values: np.ndarray, *, bounds: bool = False) -> int:
        """Store vectors (V, 3) of which most may be zero; returns the index of their accessor."""
        array = np.ascontiguousarray(values, dtype="<f4")
        moved = np.flatnonzero((array != 0.0).any(1))
        if len(moved) > SPARSE_SHARE * len(array):
            return self.add(array, "VEC3", FLOAT, target=VERTEX_DATA, bounds=bounds)
        # One row at least: some readers take a sparse accessor without any for an error.
        places = moved if len(moved) else np.zeros(1, np.int64)
        accessor = self._accessor(array, "VEC3", FLOAT, bounds=bounds)
        accessor["sparse"] = {
            "count": len(places),
            "indices": {
                "bufferView": self.add_bytes(places.astype("<u4").tobytes()),
                "componentType": UNSIGNED_INT,
            },
            "values": {"bufferView": self.add_bytes(array[places].tobytes())},
        }
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_bytes(self, content: bytes, *, target: int | None = None) -> int:
        """Store bytes, such as those of a picture; returns the index of their view."""
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self.size, "byteLength": len(content)}
        if target is not None:
            view["target"] = target
        content += b"\0" * (-len(content) % 4)
        self.parts.append(content)
        self.size += len(content)
        self.views.append(view)
        return len(self.views) - 1

    @staticmethod
    def _accessor(array: np.ndarray, kind: str, component: int, *, bounds: bool) -> dict[str, Any]:
        accessor: dict[str, Any] = {"componentType": component, "count": array.size // WIDTHS[kind], "type": kind}
        if bounds:
            # In the stored precision, or a validator finds values outside the bounds.
            rows = array.reshape(-1, WIDTHS[kind]).astype(np.float64)
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        return accessor


def container(tree: Mapping[str, Any], binary: bytes) -> bytes:
    """The content of a file of a tree and one buffer."""
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


def read_container(path: Path) -> tuple[dict[str, Any], bytes]:
    """Tree and buffer of a file.

    Raises: ValueError naming the file, what was found and the remedy.
    """
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


def read_array(tree: Mapping[str, Any], binary: bytes, index: int) -> np.ndarray:
    """The values of an accessor as float32 or integers, rows by components; sparse and strided ones included.

    Raises: ValueError, KeyError, IndexError or TypeError if the file is broken.
    """
    accessor = tree["accessors"][index]
    width, count, kind = WIDTHS[accessor["type"]], accessor["count"], NUMBERS[accessor["componentType"]]
    _require_size(count, width, kind)
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
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and np.abs(values).max(initial=0.0) < MAX_VALUE):
        raise ValueError(f"accessor {index} holds numbers that are not finite or beyond {MAX_VALUE:g}; export it again")
    return values


def read_view(tree: Mapping[str, Any], binary: bytes, index: int) -> bytes:
    """The bytes of a view.

    Raises: ValueError, KeyError, IndexError or TypeError if the file is broken.
    """
    view = tree["bufferViews"][index]
    start, length = view.get("byteOffset", 0), view["byteLength"]
    if start < 0 or length < 0 or start + length > len(binary):
        raise ValueError("ends before its data does; export it again")
    return binary[start : start + length]


def _require_size(count: int, width: int, kind: str) -> None:
    # A file of a hundred bytes may claim any number of values: all in one place, or none stored at all.
    if not isinstance(count, int) or not 0 <= count * width * np.dtype(kind).itemsize <= MAX_BYTES:
        raise ValueError(f"claims {count} values, expected at most {MAX_BYTES} bytes of them; export it again")


def _elements(
    tree: Mapping[str, Any], binary: bytes, view_index: int, offset: int, kind: str, count: int, width: int
) -> np.ndarray:
    view = tree["bufferViews"][view_index]
    if view.get("buffer", 0) != 0 or "uri" in tree["buffers"][0]:
        raise ValueError("refers to another file, expected everything in one .glb; export it with embedded buffers")
    _require_size(count, width, kind)
    size = np.dtype(kind).itemsize * width
    stride = view.get("byteStride", size)
    start = view.get("byteOffset", 0) + offset
    if count and start + (count - 1) * stride + size > len(binary):
        raise ValueError("ends before its data does; export it again")
    rows = np.ndarray((count, width), kind, binary, start, (stride, np.dtype(kind).itemsize))
    return rows.copy()


def linear_colours(colours: np.ndarray) -> np.ndarray:
    """Display colours (V, 3) as the linear light (V, 4) that glTF wants, in 16 bits, opaque."""
    shown = np.clip(colours, 0.0, 1.0).astype(np.float64)
    linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    return np.rint(np.concatenate([linear, np.ones((len(linear), 1))], 1) * 65535.0)


def displayed_colours(linear: np.ndarray) -> np.ndarray:
    """Linear light as display colours."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0) ** (1 / 2.4) - 0.055)
