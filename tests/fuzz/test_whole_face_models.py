"""Damaged files of face models that are whole before, so that damage is looked for behind the first checks, too."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.face.formats import build_face_model
from tests.basel_files import front_2009, full_2009, known_face, save_h5, save_landmarks, save_mat, statismo
from tests.fuzz.mutations import mutated, quick, refuses_or_reads


@pytest.fixture(autouse=True)
def _as_a_user() -> Iterator[None]:
    """Files are read by people without shape checking, so they are damaged without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def surrey(path: Path) -> Path:
    """A file as `eos::morphablemodel::save_model` wrote version 1, of shapes only."""
    face = known_face()

    def matrix(values: np.ndarray) -> bytes:
        return struct.pack("<ii", *values.shape) + values.T.astype("<f4").tobytes()

    shape = [matrix(face.mean.reshape(-1, 1)), matrix(face.directions), matrix((face.sigma_mm**2).reshape(-1, 1))]
    triangles = struct.pack("<Q", len(face.triangles)) + face.triangles.astype("<i4").tobytes()
    colours = [matrix(np.zeros((0, count))) for count in (1, 0, 1)]
    ends = struct.pack("<QQ", 0, 0)
    path.write_bytes(b"".join([struct.pack("<I", 1), *shape, triangles, *colours, ends]))
    return path


MODELS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "basel 2009": ("basel", lambda folder: save_mat(folder / "full.mat", full_2009())),
    "basel 2009, HDF5": ("basel", lambda folder: save_mat(folder / "full73.mat", full_2009(), version_73=True)),
    "basel 2009, front": ("basel", lambda folder: save_mat(folder / "front.mat", front_2009())),
    "basel 2017": ("basel", lambda folder: save_h5(folder / "model.h5", statismo())),
    "surrey": ("surrey", lambda folder: surrey(folder / "model.bin")),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes]]:
    """Path and sound content of each file."""
    folder = tmp_path_factory.mktemp("whole")
    save_landmarks(folder / "landmarks.txt")
    paths = {name: make(folder) for name, (_, make) in MODELS.items()}
    return {name: (path, path.read_bytes()) for name, path in paths.items()}


@pytest.mark.parametrize("name", MODELS)
@quick
@given(data=st.data())
def test_whole_face_models(name: str, data: st.DataObject, whole: dict[str, tuple[Path, bytes]]) -> None:
    kind, (path, content) = MODELS[name][0], whole[name]
    points = path.parent / "landmarks.txt"
    # That of 2009 of the front brings its own.
    options = {} if name.endswith("front") else {"landmarks": points}
    path.write_bytes(data.draw(mutated(content)))
    message = refuses_or_reads(lambda: build_face_model(kind, path=path, **options), ValueError, FileNotFoundError)
    assert message is None or "\n" not in message


@pytest.mark.parametrize("name", MODELS)
def test_they_are_whole(name: str, whole: dict[str, tuple[Path, bytes]]) -> None:
    kind, (path, content) = MODELS[name][0], whole[name]
    path.write_bytes(content)
    options = {} if name.endswith("front") else {"landmarks": path.parent / "landmarks.txt"}
    assert build_face_model(kind, path=path, **options).vertex_count == len(known_face().mean)
