"""Readers of what users bring, fed with damaged files: a refusal in one line, or values that can be used."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
import trimesh
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.animation.gltf import read_glb
from models.animation.gltf_container import container
from models.face.adapters import archive as archive_reader
from models.face.adapters.obj import read_obj
from models.face.formats import build_face_model, save_face_model
from tasks.annotations import AnnotationError, Annotations, read_landmark_table, read_person_table, read_pts
from tasks.artifacts import SAMPLES, load_checkpoint, read_table, write_table
from tasks.images import ImageError, decode
from tasks.mesh_files import read_geometry
from tasks.params import ParamsError, load_params
from tasks.scan_landmarks import read_scan_landmarks
from tests.fuzz.mutations import mutated, quick, refuses_or_reads
from tests.ingest_sources import HEADER, POINTS, content, picture, row_of
from tests.tiny_face import tiny_face

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


@cache
def photos() -> list[bytes]:
    """A small photo in every kind that is read."""
    pixels = picture(0, 24, 30)
    found = [content(pixels, kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")]
    wide = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(wide, "PNG")
    clear = io.BytesIO()
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(clear, "PNG")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(turned, "JPEG", exif=exif)
    return [*found, wide.getvalue(), clear.getvalue(), turned.getvalue()]


@quick
@given(st.data())
def test_photos(data: st.DataObject) -> None:
    damaged = data.draw(mutated(data.draw(st.sampled_from(photos()))))
    pixels: list[np.ndarray] = []
    refuses_or_reads(lambda: pixels.append(decode(damaged, max_pixels=4_000_000)), ImageError)
    for image in pixels:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.size <= 3 * 4_000_000


def mesh_bytes(kind: str) -> bytes:
    mesh = trimesh.Trimesh(tiny_face().mean.numpy(), tiny_face().triangles.numpy(), process=False)
    if kind == "binary":
        return bytes(mesh.export(file_type="ply"))
    text = mesh.export(file_type="obj") if kind == "obj" else mesh.export(file_type="ply", encoding="ascii")
    return text.encode() if isinstance(text, str) else bytes(text)


def array_bytes() -> bytes:
    stored = io.BytesIO()
    np.save(stored, tiny_face().mean.numpy())
    return stored.getvalue()


TEXT_POINTS = "version: 1\nn_points: 68\n{\n" + "\n".join(f"{x:.2f} {y:.2f}" for x, y in POINTS) + "\n}\n"
TABLE = f"{HEADER}\n{row_of('a.png', POINTS)}\n{row_of('b/c.png', POINTS)}\n"
PERSONS = "file,person\na.png,anna\nb/c.png,bert\n"
SPATIAL = "x,y,z\n" + "\n".join(f"{x:.2f},{y:.2f},1.5" for x, y in POINTS)
LABELLED = json.dumps(
    {
        "landmarks": {"points": np.column_stack([POINTS, POINTS[:, 0]]).tolist()},
        "labels": [{"label": "all", "mask": list(range(68))}],
        "version": 2,
    }
)


def read_table_of(read: Callable[[Path, Annotations], None]) -> Callable[[Path], None]:
    return lambda path: read(path, Annotations())


READERS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], Any], tuple[type[Exception], ...]]] = {
    "points": ("a.pts", TEXT_POINTS.encode, read_pts, (AnnotationError,)),
    "landmark table": ("landmarks.csv", TABLE.encode, read_table_of(read_landmark_table), (ValueError,)),
    "person table": ("persons.csv", PERSONS.encode, read_table_of(read_person_table), (ValueError,)),
    "scan points": ("a.landmarks.csv", SPATIAL.encode, read_scan_landmarks, (AnnotationError,)),
    "scan points as JSON": ("a.ljson", LABELLED.encode, read_scan_landmarks, (AnnotationError,)),
    "scan as OBJ": ("a.obj", lambda: mesh_bytes("obj"), read_geometry, (AnnotationError,)),
    "scan as PLY": ("a.ply", lambda: mesh_bytes("binary"), read_geometry, (AnnotationError,)),
    "scan as PLY in text": ("a.ply", lambda: mesh_bytes("text"), read_geometry, (AnnotationError,)),
    "scan as NPY": ("a.npy", array_bytes, read_geometry, (AnnotationError,)),
    "model as OBJ": ("a.obj", lambda: mesh_bytes("obj"), read_obj, (ValueError,)),
    "parameters": ("params.yaml", PARAMS.read_bytes, load_params, (ParamsError,)),
}


@pytest.mark.parametrize("name", READERS)
@quick
@given(data=st.data())
def test_files_of_users(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    file, valid, read, refusals = READERS[name]
    path = tmp_path_factory.getbasetemp() / f"{name.replace(' ', '_')}-{file}"
    path.write_bytes(valid())
    read(path)
    path.write_bytes(data.draw(mutated(valid())))
    refuses_or_reads(lambda: read(path), *refusals)


def own_model(folder: Path) -> Path:
    save_face_model(tiny_face(), folder / "face.npz")
    return folder / "face.npz"


def own_model_as_tensors(folder: Path) -> Path:
    save_face_model(tiny_face(), folder / "face.safetensors")
    return folder / "face.safetensors"


def basel_mat(folder: Path) -> Path:
    arrays = {
        "shapeMU": np.ones((30, 1)),
        "shapePC": np.ones((30, 2)),
        "shapeEV": np.ones((2, 1)),
        "tl": np.ones((4, 3)),
    }
    scipy.io.savemat(folder / "model.mat", arrays, do_compression=True)
    return folder / "model.mat"


def basel_h5(folder: Path) -> Path:
    with h5py.File(folder / "model.h5", "w") as file:
        for part in ("shape", "color", "expression"):
            file[f"{part}/model/mean"] = np.ones(30)
            file[f"{part}/model/pcaBasis"] = np.ones((30, 2))
            file[f"{part}/model/pcaVariance"] = np.ones(2)
            file[f"{part}/representer/points"] = np.ones((3, 10))
            file[f"{part}/representer/cells"] = np.ones((3, 4), np.int32)
    return folder / "model.h5"


def flame_pickle(folder: Path) -> Path:
    arrays = {"v_template": np.ones((10, 3)), "shapedirs": np.ones((10, 3, 400)), "f": np.zeros((4, 3), np.uint32)}
    (folder / "model.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    return folder / "model.pkl"


def surrey_binary(folder: Path) -> Path:
    numbers = struct.pack("<4i", 1, 30, 1, 5) + np.ones(30, "<f4").tobytes() + struct.pack("<3i", 30, 2, 5)
    (folder / "model.bin").write_bytes(numbers + np.ones(60, "<f4").tobytes())
    return folder / "model.bin"


MODELS: dict[str, Callable[[Path], Path]] = {
    "npz": own_model,
    "safetensors": own_model_as_tensors,
    "basel mat": basel_mat,
    "basel h5": basel_h5,
    "flame": flame_pickle,
    "surrey": surrey_binary,
}


@pytest.mark.filterwarnings("ignore::models.face.adapters.landmarks.LandmarksFoundWarning")
@pytest.mark.parametrize("name", MODELS)
@quick
@given(data=st.data())
def test_face_models(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    kind = {"safetensors": "npz"}.get(name, name.split()[0])
    folder = tmp_path_factory.getbasetemp() / f"model-{name.replace(' ', '_')}"
    folder.mkdir(exist_ok=True)
    path = MODELS[name](folder)
    path.write_bytes(data.draw(mutated(path.read_bytes())))
    message = refuses_or_reads(lambda: build_face_model(kind, path=path), ValueError, FileNotFoundError)
    assert message is None or "\n" not in message


@quick
@given(data=st.data())
def test_binary_gltf(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    points, corners = tiny_face().mean.numpy().astype("<f4"), tiny_face().triangles.numpy().astype("<u4")
    binary = points.tobytes() + corners.tobytes()
    tree: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": len(binary)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": points.nbytes},
            {"buffer": 0, "byteOffset": points.nbytes, "byteLength": corners.nbytes},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": corners.size, "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
    }
    path = tmp_path_factory.getbasetemp() / "face.glb"
    path.write_bytes(container(tree, binary))
    assert len(read_glb(path)[0].vertices) == len(points)
    for section in ("bufferViews", "accessors"):
        for entry in tree[section]:
            key = data.draw(st.sampled_from(sorted(entry)))
            if data.draw(st.booleans()):
                values = [0, -1, 2**31, 2**53, 1.5, None, "x", 5126, 5121, "VEC4", [], {}]
                entry[data.draw(st.sampled_from([key, "byteStride", "sparse"]))] = data.draw(st.sampled_from(values))
    path.write_bytes(data.draw(st.sampled_from([container(tree, binary), data.draw(mutated(container(tree, binary)))])))
    refuses_or_reads(lambda: read_glb(path), ValueError)


@quick
@given(data=st.data())
def test_parameters_of_any_shape(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Not damaged text but values of wrong kinds, which a user writes by hand."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    content = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    section = data.draw(st.sampled_from(sorted(content)))
    if isinstance(content[section], dict) and data.draw(st.booleans()):
        content[section][data.draw(st.sampled_from(sorted(content[section])))] = data.draw(values)
    else:
        content[section] = data.draw(values)
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    refuses_or_reads(lambda: load_params(path), ParamsError)


@quick
@given(data=st.data())
def test_our_own_tables_and_checkpoints(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    table, checkpoint = folder / "samples.parquet", folder / "checkpoint.pt"
    write_table(table, [dict.fromkeys(SAMPLES.names) | {"sample_id": "a"}], SAMPLES)
    torch.save({"weights": torch.ones(3, 4)}, checkpoint)
    table.write_bytes(data.draw(mutated(table.read_bytes())))
    checkpoint.write_bytes(data.draw(mutated(checkpoint.read_bytes())))
    refuses_or_reads(lambda: read_table(table, SAMPLES), ValueError)
    refuses_or_reads(lambda: load_checkpoint(checkpoint), ValueError)


# files that are made to do harm


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_reader, "MAX_BYTES", 2**20)
    np.savez_compressed(tmp_path / "bomb.npz", mean=np.zeros(2**21, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**14
    message = refuses_or_reads(lambda: build_face_model("npz", path=tmp_path / "bomb.npz"), ValueError)
    assert message
    assert "unpacks to" in message


def test_an_array_that_claims_more_than_its_file_holds(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
        archive.writestr("mean.npy", header.getvalue() + bytes(64))
    assert refuses_or_reads(lambda: build_face_model("npz", path=tmp_path / "claims.npz"), ValueError)


@pytest.mark.parametrize("suffix", [".h5", ".mat"])
def test_a_dataset_that_is_never_stored_costs_no_memory(tmp_path: Path, suffix: str) -> None:
    """HDF5 gives values that were never written by a fill value: a kilobyte of file, eight gigabytes of zeros."""
    path = tmp_path / f"huge{suffix}"
    with h5py.File(path, "w") as file:
        for name in ("shape/model/mean", "shapeMU"):
            file.create_dataset(name, shape=(2**30,), dtype="f8", chunks=(2**16,), fillvalue=1.0)
        for name in ("pcaBasis", "pcaVariance"):
            file.create_dataset(f"shape/model/{name}", shape=(2**30,), dtype="f8", chunks=(2**16,), fillvalue=1.0)
    assert path.stat().st_size < 2**20
    assert refuses_or_reads(lambda: build_face_model("basel", path=path), ValueError)


def test_values_in_one_place_cannot_be_any_number(tmp_path: Path) -> None:
    tree = {
        "buffers": [{"byteLength": 12}],
        "bufferViews": [{"buffer": 0, "byteLength": 12, "byteStride": 0}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 2**33, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
    }
    (tmp_path / "face.glb").write_bytes(container(tree, bytes(12)))
    message = refuses_or_reads(lambda: read_glb(tmp_path / "face.glb"), ValueError)
    assert message
    assert "claims" in message


class Harm:
    """Leaves a file behind when it is unpickled as pickle itself does it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["flame", "checkpoint", "npy", "npz"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, kind: str) -> None:
    harm = tmp_path / "harm"
    content = pickle.dumps({"v_template": Harm(harm)}, protocol=2)
    pickle.loads(content)
    assert harm.exists(), "the file does harm where it is believed"
    harm.unlink()
    if kind == "flame":
        (tmp_path / "model.pkl").write_bytes(content)
        assert refuses_or_reads(lambda: build_face_model("flame", path=tmp_path / "model.pkl"), ValueError)
    elif kind == "checkpoint":
        torch.save({"weights": Harm(harm)}, tmp_path / "checkpoint.pt")
        assert refuses_or_reads(lambda: load_checkpoint(tmp_path / "checkpoint.pt"), ValueError)
    elif kind == "npy":
        np.save(tmp_path / "a.npy", np.array([Harm(harm)], dtype=object), allow_pickle=True)
        assert refuses_or_reads(lambda: read_geometry(tmp_path / "a.npy"), AnnotationError)
    else:
        np.savez(tmp_path / "a.npz", mean=np.array([Harm(harm)], dtype=object))
        assert refuses_or_reads(lambda: build_face_model("npz", path=tmp_path / "a.npz"), ValueError)
    assert not harm.exists()


def test_parameters_name_no_python(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        f"ingest: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{tmp_path}/harm']]"
    )
    assert refuses_or_reads(lambda: load_params(path), ParamsError)
    assert not (tmp_path / "harm").exists()


def test_parameters_that_repeat_themselves_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Nine levels of ten references each: a billion words, if somebody writes them out."""
    path = tmp_path / "params.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
    path.write_text("\n".join(lines))
    assert refuses_or_reads(lambda: load_params(path), ParamsError)
