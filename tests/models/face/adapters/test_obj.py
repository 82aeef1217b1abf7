from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.face.adapters.obj import read_obj, read_obj_vertices

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mesh.obj"


@pytest.mark.parametrize(
    "face",
    ["f 1 2 3 4", "f -4 -3 -2 -1", "f 1// 2// 3// 4//", "f 1//1 2//1 3//1 4//1", "f  1\t2 3 4 ", "f 1 2 3\nf 1 3 4"],
)
def test_polygons_become_fans_in_every_notation(file: Path, face: str) -> None:
    mesh = read_obj(written(file, f"# square\r\n{SQUARE}vn 0 0 1\n{face}\n"))
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.uv is None


def test_polygons_of_different_sizes(file: Path) -> None:
    mesh = read_obj(written(file, f"{SQUARE}v 2 2 0\nf 1 2 3\nf 1 2 3 4 5\nf 3 4 5\n"))
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 3, 4], [2, 3, 4]]


def test_vertices_stay_where_they_are_at_seams_of_the_texture(file: Path) -> None:
    """Vertex 3 has two texture coordinates: the first wins, the vertex is not doubled; loose vertices stay."""
    uv = "vt 0.1 0.2\nvt 0.3 0.4 0\nvt 0.5 0.6\nvt 0.7 0.8\n".replace(" 0\n", "\n")
    mesh = read_obj(written(file, f"{SQUARE}v 9 9 9\n{uv}usemtl a\nf 1/1/1 2/2/1 3/3/1\nf 1/1/1 3/4/1 4/-1/1\n"))
    assert len(mesh.vertices) == 5
    assert mesh.uv is not None
    np.testing.assert_allclose(mesh.uv, [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8], [0, 0]])


@pytest.mark.parametrize("more", [" 1", " 0.1 0.2 0.3", " 1 0.1 0.2 0.3"])
def test_weights_and_colours_of_vertices_are_left_out(file: Path, more: str) -> None:
    text = "".join(f"{line}{more}\n" for line in SQUARE.splitlines())
    assert read_obj_vertices(written(file, text)).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_numbers_in_scientific_notation(file: Path) -> None:
    assert read_obj_vertices(written(file, "v -1e-3 2.5E1 +.5\n")).tolist() == [[-0.001, 25.0, 0.5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no lines `v x y …`"),
        ("f 1 2 3\n", "no lines `v x y …`"),
        (SQUARE, "no faces, expected"),
        (f"{SQUARE}f 1 2\n", "a face of less than three corners"),
        (f"{SQUARE}f 1 2 5\n", "a face names vertex 5, expected 1 to 4"),
        (f"{SQUARE}f 0 1 2\n", "a face names vertex 0, expected 1 to 4"),
        (f"{SQUARE}f 1 2 -5\n", "a face names vertex -5, expected 1 to 4"),
        (f"{SQUARE}f 1 2 three\n", "a face is not made of whole numbers"),
        (f"{SQUARE}vt 0 0\nf 1/1 2/2 3/1\n", "a face names texture coordinate 2, expected 1 to 1"),
        (f"{SQUARE}v 1 2\nf 1 2 3\n", "lines `v` hold 19 words in 5 lines"),
        (f"{SQUARE}v 1 2 x\nf 1 2 3\n", "lines `v` hold something else than numbers"),
        (f"{SQUARE}v 1 inf 2\nf 1 2 3\n", "line 5 of `v` is not finite"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(file: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_obj(written(file, text))
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_or_huge_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"mesh\.obj: no such file"):
        read_obj(file)
    monkeypatch.setattr("models.face.adapters.obj.MAX_OBJ_BYTES", 10)
    with pytest.raises(ValueError, match=r"mesh\.obj: more than 10 bytes"):
        read_obj(written(file, SQUARE))
