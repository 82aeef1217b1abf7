"""Label meshes in the model's topology: three formats, and everything that can be wrong with one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import trimesh

from tasks.annotations import AnnotationError
from tasks.meshes import read_mesh
from tests.tiny_face import tiny_face

MODEL = tiny_face()
MESH = MODEL.mean.numpy() + np.float32(1.5)
# Most vertices belong to no triangle, and the uv seam would split vertices in a general reader.
TRIANGLES = np.array([[0, 1, 2], [2, 3, 4], [5, 6, 7], [8, 9, 10]])


def write(path: Path, vertices: np.ndarray) -> Path:
    if path.suffix == ".obj":
        lines = [
            "mtllib ../../etc/passwd",
            "# a comment",
            *(f"v {x:.6f} {y:.6f} {z:.6f} 0.5 0.5 0.5" for x, y, z in vertices),
        ]
        lines += ["vt 0 0", "vt 1 1", "vn 0 0 1", "usemtl skin"]
        lines += [f"f {a + 1}/1/1 {b + 1}/2/1 {c + 1}/1/1" for a, b, c in TRIANGLES]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".ply":
        trimesh.Trimesh(vertices, TRIANGLES, process=False).export(path)
    else:
        np.save(path, vertices)
    return path


def reason(path: Path) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_mesh(path, model=MODEL)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".npy"])
def test_vertices_keep_their_order(tmp_path: Path, suffix: str) -> None:
    label = read_mesh(write(tmp_path / f"mesh{suffix}", MESH), model=MODEL)
    assert label.vertices.dtype == np.float32
    assert (label.fit_error_mm, label.coverage, label.registered) == (0.0, 1.0, False)
    np.testing.assert_allclose(label.vertices, MESH, atol=1e-4)


def test_flat_array_of_the_right_length(tmp_path: Path) -> None:
    path = write(tmp_path / "mesh.npy", MESH.ravel())
    np.testing.assert_array_equal(read_mesh(path, model=MODEL).vertices, MESH)


def test_an_array_of_another_length_cannot_be_registered(tmp_path: Path) -> None:
    path = write(tmp_path / "mesh.npy", MESH[:11])
    assert reason(path) == "mesh_wrong_size"
    with pytest.raises(AnnotationError, match=r"vertices 11 x 3, expected 210 x 3 as in the face model, or OBJ or PLY"):
        read_mesh(path, model=MODEL)


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_another_topology_needs_landmarks(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mesh{suffix}", MESH[:11])
    assert reason(path) == "landmarks_missing"
    with pytest.raises(AnnotationError, match=r"put mesh.landmarks.csv beside it"):
        read_mesh(path, model=MODEL)


def test_points_without_a_surface(tmp_path: Path) -> None:
    (tmp_path / "mesh.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n", encoding="utf-8")
    assert reason(tmp_path / "mesh.obj") == "mesh_without_triangles"


@pytest.mark.parametrize("suffix", [".obj", ".npy"])
def test_not_finite(tmp_path: Path, suffix: str) -> None:
    spoiled = MESH.copy()
    spoiled[3, 1] = np.nan
    assert reason(write(tmp_path / f"mesh{suffix}", spoiled)) == "mesh_not_finite"


def test_centimetres_and_metres_are_noticed(tmp_path: Path) -> None:
    for number, scale in enumerate((0.1, 0.001, 10.0)):
        assert reason(write(tmp_path / f"mesh{number}.npy", scale * MESH)) == "mesh_wrong_scale"


@pytest.mark.parametrize(("unit", "scale"), [("cm", 0.1), ("m", 0.001), ("unknown", 0.037)])
def test_units(tmp_path: Path, unit: str, scale: float) -> None:
    path = write(tmp_path / "mesh.npy", scale * MODEL.mean.double().numpy())
    np.testing.assert_allclose(read_mesh(path, model=MODEL, unit=unit).vertices, MODEL.mean.numpy(), rtol=1e-4)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    assert reason(tmp_path / "mesh.obj") == "missing_mesh"
    (tmp_path / "mesh.stl").write_bytes(b"solid")
    assert reason(tmp_path / "mesh.stl") == "mesh_unreadable"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mesh.npy", b"not an array"),
        ("mesh.npy", b""),
        ("mesh.ply", b"ply\nformat ascii 1.0\nelement vertex 3\n"),
        ("mesh.ply", b"\x00\x01"),
        ("mesh.obj", b"v 1 2\nv 1 2 3\n"),
        ("mesh.obj", b"v one two three\n"),
        ("mesh.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n"),
        ("mesh.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 -4\n"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert reason(tmp_path / name) == "mesh_unreadable"


def test_text_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "mesh.npy", np.array([["a", "b", "c"]]))
    assert reason(tmp_path / "mesh.npy") == "mesh_unreadable"


def test_a_header_that_promises_too_much_asks_for_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "mesh.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)}
        np.lib.format.write_array_header_1_0(file, header)
    assert reason(tmp_path / "mesh.npy") == "mesh_unreadable"


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def test_pickles_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "array.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Bomb()))
    assert reason(tmp_path / "array.npy") == "mesh_unreadable"
    assert reason(tmp_path / "plain.npy") == "mesh_unreadable"
    assert not (tmp_path / "exploded").exists()
