"""Files laid out as FLAME's, written from the procedural face: pickles of Python 2 with chumpy and scipy, or npz."""

from __future__ import annotations

import pickle
import struct
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face

METRE = 1000.0
JAW_HINGE_MM = np.array([0.0, 4.0, -42.0])


@cache
def donor() -> MorphableModel:
    """The face that the files hold, with all the modes that it has."""
    return procedural_face()


def flame_arrays(*, eyeballs: bool = True) -> dict[str, Any]:
    """The content of `generic_model.pkl`: metres, float64, 300 + 100 modes, five joints, most modes empty."""
    face = donor()
    mean = face.mean.numpy().astype(np.float64)
    count = len(mean)
    shapedirs = np.zeros((count, 3, 400))
    shapedirs[:, :, : face.identity_size] = np.moveaxis(face.identity_basis.numpy(), 0, 2) / METRE
    shapedirs[:, :, 300 : 300 + face.expression_size] = np.moveaxis(face.expression_basis.numpy(), 0, 2) / METRE
    weights = np.zeros((count, 5))
    # What lies below the mouth and in front of the hinge follows the jaw.
    weights[:, 2] = np.clip((-30.0 - mean[:, 1]) / 15.0, 0.0, 1.0) * np.clip((mean[:, 2] + 40.0) / 30.0, 0.0, 1.0)
    weights[:, 1] = (1.0 - weights[:, 2]) * np.clip((-20.0 - mean[:, 1]) / 40.0, 0.0, 0.6)
    if eyeballs:
        eyes = face.part("eyes").numpy()
        weights[eyes] = 0.0
        weights[eyes & (mean[:, 0] > 0), 3] = 1.0
        weights[eyes & (mean[:, 0] < 0), 4] = 1.0
    weights[:, 0] = 1.0 - weights.sum(1)
    regressor = np.zeros((5, count))
    for joint, place in enumerate(([0.0, -80.0, -50.0], [0.0, -60.0, -45.0], JAW_HINGE_MM)):
        _add_pair(regressor[joint], mean, np.array(place))
    for joint, side in ((3, 1), (4, -1)):
        eye = face.part("eyes").numpy() & (np.sign(mean[:, 0]) == side)
        regressor[joint, eye] = 1.0 / eye.sum()
    stream = np.random.default_rng(0)
    posedirs = np.zeros((count, 3, 36))
    # Up to two millimetres where the jaw moves, as its columns are 9 to 17.
    posedirs[:, :, 9:18] = weights[:, 2, None, None] * stream.normal(0.0, 2.0, (1, 3, 9)) / METRE
    return {
        "v_template": mean / METRE,
        "f": face.triangles.numpy().astype(np.uint32),
        "shapedirs": shapedirs,
        "posedirs": posedirs,
        "J_regressor": csc_matrix(regressor),
        "weights": weights,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.uint32),
        "J": regressor @ mean / METRE,
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }


def _add_pair(row: np.ndarray, mean: np.ndarray, place: np.ndarray) -> None:
    for side in (60.0, -60.0):
        row[np.linalg.norm(mean - place - [side, 0.0, 0.0], axis=1).argmin()] += 0.5


def embedding() -> tuple[np.ndarray, np.ndarray]:
    """Triangles (68,) and barycentric coordinates (68, 3) close to the landmarks of the procedural face."""
    triangles = donor().triangles.numpy()
    faces, coordinates = [], []
    for vertex in donor().landmark_vertices.numpy():
        face = int(np.flatnonzero((triangles == vertex).any(1))[0])
        faces.append(face)
        coordinates.append(np.where(triangles[face] == vertex, 0.9, 0.05))
    return np.array(faces), np.array(coordinates)


def write_python2_pickle(content: Any, path: Path) -> None:
    """Write as Python 2 did: texts and array contents as byte strings, modules by their old names, protocol 2."""
    with path.open("wb") as file:
        _Python2Pickler(file, protocol=2).dump(content)


def write_flame_pickle(path: Path, **changes: Any) -> Path:
    """Write `generic_model.pkl`, its `shapedirs` a chumpy array; `changes` replace arrays, or drop them where None."""
    arrays = flame_arrays() | changes
    content = {key: value for key, value in arrays.items() if value is not None}
    package, module = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")
    # Its name and place are all that pickle looks at.
    kind = type("Ch", (), {"__module__": "chumpy.ch"})
    module.Ch = kind  # type: ignore[attr-defined]
    if isinstance(content.get("shapedirs"), np.ndarray):
        chumpy = kind()
        vars(chumpy).update(
            x=content["shapedirs"],
            _dirty_vars={"x"},
            _itr=None,
            _make_dense=False,
            _make_sparse=False,
            _depends_on_deps={},
        )
        content["shapedirs"] = chumpy
    sys.modules |= {"chumpy": package, "chumpy.ch": module}
    try:
        write_python2_pickle(content, path)
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]
    return path


def write_flame_npz(path: Path, **changes: Any) -> Path:
    """Write the same as plain arrays."""
    arrays = flame_arrays() | changes
    arrays["J_regressor"] = arrays["J_regressor"].toarray()
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


OLD_NAMES = {
    "numpy._core.multiarray": "numpy.core.multiarray",
    "scipy.sparse._csc": "scipy.sparse.csc",
    "builtins": "__builtin__",
    "copyreg": "copy_reg",
}


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, content: bytes) -> None:
        self.write(b"T" + struct.pack("<I", len(content)) + content)
        self.memoize(content)

    def save_text(self, content: str) -> None:
        encoded = content.encode("latin1")
        self.write(b"U" + bytes([len(encoded)]) + encoded)
        self.memoize(content)

    def save_global(self, found: Any, name: str | None = None) -> None:
        module = OLD_NAMES.get(found.__module__, found.__module__)
        self.write(f"c{module}\n{name or found.__qualname__}\n".encode())
        self.memoize(found)

    dispatch[bytes] = save_bytes
    dispatch[str] = save_text
    dispatch[types.FunctionType] = save_global
    dispatch[type] = save_global
