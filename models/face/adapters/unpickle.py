"""Arrays out of pickles, `.npy` and `.npz` files that strangers wrote, without running any of their code.

A pickle is a program: it may import any name and call it. Here every name that it asks for is looked up in a table of
what FLAME's files hold, and what is found there is no numpy, scipy or chumpy, but an empty class that stores what it is
given. Arrays are made from the stored pieces once the pickle has ended, when nothing of it can be called any more;
numpy itself must not be asked, because a forged dtype makes it take bytes for the addresses of objects.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import reprlib
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ALLOWED: dict[str, str | type] = {
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "array",
    "numpy._core.multiarray._reconstruct": "array",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
    "numpy.core.numeric._frombuffer": "buffer",
    "numpy._core.numeric._frombuffer": "buffer",
    **{
        f"scipy.sparse.{module}{form}.{form}_{kind}": form
        for form in ("csc", "csr", "coo")
        for module in ("", "_")
        for kind in ("matrix", "array")
    },
    "chumpy.ch.Ch": "chumpy",
    "chumpy.Ch": "chumpy",
    "collections.OrderedDict": dict,
    "builtins.set": set,
    "__builtin__.set": set,
    "builtins.object": "object",
    "__builtin__.object": "object",
    "copyreg._reconstructor": "reconstructor",
    "copy_reg._reconstructor": "reconstructor",
    "_codecs.encode": "encode",
}
"""Every name that a pickle may ask for, and what it gets: the kind of an empty class, or one of Python's containers."""

FORBIDDEN_OPCODES = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEXT_BUFFER", "READONLY_BUFFER"}
"""They fetch objects by other ways than by name; no file of this kind uses them."""

MAX_DEPTH = 20
"""Nesting of containers; deeper ones, and those that hold themselves, are refused."""

MAX_DENSE = 10**8
"""Entries of a sparse matrix once written out; FLAME's has 25 thousand."""

MAX_BYTES = 2**32
"""Of a file, and of what an `.npz` file unpacks to; FLAME's have 50 million."""

READ_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    struct.error,
    TypeError,
    ValueError,
)
"""What a damaged or hostile file makes the standard library raise."""


def read_mapping(path: Path) -> dict[str, Any]:
    """The named arrays, numbers and texts of a pickled dictionary (`.pkl`, `.npy`) or of an `.npz` file.

    Sparse matrices come as plain arrays, chumpy arrays as their values. The kind of file shows in its first bytes.
    Raises: FileNotFoundError; ValueError if it is damaged, holds no dictionary, or asks for anything else to be run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        found = _read(path.read_bytes())
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason}); get the file again from its authors") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected a dictionary of arrays")
    return {str(key): value for key, value in found.items()}


def _read(data: bytes) -> Any:
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
            return {name.removesuffix(".npy"): _read_npy(archive.read(name)) for name in archive.namelist()}
    if data.startswith(b"\x93NUMPY"):
        return _read_npy(data)
    return unpickle(data)


def _read_npy(data: bytes) -> Any:
    stream = io.BytesIO(data)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in headers:
        raise ValueError(f"version {version} of numpy's format, expected 1.0 or 2.0")
    _, _, kind = headers[version](stream)
    if kind.hasobject:
        return unpickle(data[stream.tell() :])
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def unpickle(data: bytes) -> Any:
    """What a pickle holds, if it holds nothing but containers, numbers, texts and arrays; texts of Python 2 as latin-1.

    Raises: ValueError or another of `READ_ERRORS`, naming what it asks for that is not in `ALLOWED`.
    """
    with warnings.catch_warnings():
        # Of escapes in texts of the file, which are not ours to mend.
        warnings.simplefilter("ignore", DeprecationWarning)
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in FORBIDDEN_OPCODES:
                raise ValueError(f"the pickle asks for {opcode.name} {_short(argument)}, which is never run")
            # Python would make room for as many objects as the number says.
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(data):
                raise ValueError(f"the pickle asks for room for {argument} objects in {len(data)} bytes")
    return _Contents().value(_Unpickler(io.BytesIO(data), encoding="latin1").load())


class _Inert:
    """Stands for an object of the pickle: keeps what it was made from and what it was given, does nothing."""

    kind: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _Inert:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        # Exact names only: a dotted one would lead to attributes, and so to everything.
        found = ALLOWED.get(f"{module}.{name}") if "." not in name else None
        if found is None:
            raise pickle.UnpicklingError(f"the pickle asks for {_short(f'{module}.{name}')}, which is never run")
        # A class for each use, so that a pickle that writes to one changes nothing that outlives it.
        return type(found, (_Inert,), {"kind": found}) if isinstance(found, str) else found


class _Contents:
    """Turns inert objects into arrays; each object once, however often it is referred to."""

    def __init__(self) -> None:
        self.known: dict[int, Any] = {}
        self.depth = 0

    def value(self, found: Any) -> Any:
        if isinstance(found, type):
            raise ValueError(f"the pickle holds the type {found.__name__} instead of a value")
        if not isinstance(found, (dict, list, tuple, _Inert)):
            return found
        if id(found) not in self.known:
            if self.depth == MAX_DEPTH:
                raise ValueError(f"containers lie more than {MAX_DEPTH} deep in each other")
            self.depth += 1
            self.known[id(found)] = self._convert(found)
            self.depth -= 1
        return self.known[id(found)]

    def _convert(self, found: Any) -> Any:
        if isinstance(found, dict):
            return {key: self.value(item) for key, item in found.items()}
        if isinstance(found, (list, tuple)):
            return type(found)([self.value(item) for item in found])
        kind = _kind(found)
        readers: dict[str, Callable[[Any], Any]] = {
            "array": self._array,
            "buffer": self._buffer,
            "scalar": self._scalar,
            "csc": self._sparse,
            "csr": self._sparse,
            "coo": self._sparse,
            "chumpy": self._chumpy,
            "encode": _encoded,
        }
        if kind not in readers:
            raise ValueError(f"the pickle holds a bare {kind}")
        return readers[kind](found)

    def _array(self, found: _Inert) -> Any:
        _, shape, kind, fortran, content = found.state
        return self._make(content, _dtype(kind), shape, "F" if fortran else "C")

    def _buffer(self, found: _Inert) -> Any:
        content, kind, shape, order = found.arguments
        return self._make(content, _dtype(kind), shape, order)

    def _scalar(self, found: _Inert) -> Any:
        kind, content = found.arguments
        return self._make(content, _dtype(kind), (), "C")[()]

    def _make(self, content: Any, kind: np.dtype[Any], shape: Any, order: Any) -> Any:
        if not (isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)):
            raise ValueError(f"an array's shape is {_short(shape)}")
        if kind.hasobject:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise ValueError(f"an array of objects of shape {shape} does not hold as many")
            array = np.empty(len(content), dtype=object)
            for place, item in enumerate(content):
                array[place] = self.value(item)
            return array.reshape(shape)[()]
        raw = _encoded(content) if isinstance(content, (_Inert, str)) else bytes(content)
        if len(raw) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} and type {kind} has {len(raw)} bytes")
        return np.frombuffer(raw, kind).reshape(shape, order="F" if order == "F" else "C")

    def _sparse(self, found: _Inert) -> np.ndarray:
        state = self.value(found.state)
        rows_count, columns_count = (int(size) for size in state["_shape"])
        if not 0 <= rows_count * columns_count <= MAX_DENSE:
            raise ValueError(f"a sparse matrix of {rows_count} by {columns_count}")
        if "indptr" in state:
            counts = np.diff(state["indptr"])
            row, column = np.repeat(np.arange(len(counts)), counts), state["indices"]
            if _kind(found) == "csc":
                row, column = column, row
        else:
            row, column = state["coords"] if "coords" in state else (state["row"], state["col"])
        if any(len(index) and index.min() < 0 for index in (row, column)):
            raise ValueError("a sparse matrix has negative indices")
        dense = np.zeros((rows_count, columns_count))
        np.add.at(dense, (row, column), state["data"])
        return dense

    def _chumpy(self, found: _Inert) -> Any:
        if not isinstance(found.state, dict) or "x" not in found.state:
            raise ValueError("a chumpy array without its value x")
        return self.value(found.state["x"])


def _kind(found: _Inert) -> str:
    """What it stands for, also where Python 2 made it by way of its class."""
    return getattr(found.arguments[0], "kind", "object") if found.kind == "reconstructor" else found.kind


def _dtype(found: Any) -> np.dtype[Any]:
    """Plain numbers, texts, and objects; no records, no views into other types."""
    if getattr(found, "kind", None) != "dtype" or not re.fullmatch(r"[biufSU]\d{1,9}|O8?", str(found.arguments[0])):
        raise ValueError(f"an array's type is {_short(getattr(found, 'arguments', found))}")
    order = ""
    if found.state is not None:
        _, order, *fields = found.state[:5]
        if order not in ("<", ">", "=", "|") or any(field is not None for field in fields):
            raise ValueError(f"an array's type is {_short(found.state)}")
    return np.dtype(object) if found.arguments[0].startswith("O") else np.dtype(order + found.arguments[0])


def _encoded(found: Any) -> bytes:
    """Bytes as Python 3 writes them for Python 2, or as Python 2 wrote them."""
    if isinstance(found, _Inert) and found.kind == "encode" and found.arguments[1:] == ("latin1",):
        found = found.arguments[0]
    if not isinstance(found, str):
        raise ValueError("an array's content is no bytes")
    return found.encode("latin1")


def _short(found: Any) -> str:
    limited = reprlib.Repr()
    limited.maxlevel, limited.maxstring, limited.maxother = 2, 80, 80
    return limited.repr(found)
