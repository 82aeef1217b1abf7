from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.face.adapters.assemble import landmark_positions, procedural_donor
from models.face.adapters.landmarks import (
    LandmarksFoundWarning,
    embedded_landmarks,
    find_landmarks,
    landmarks_from_embedding,
    nearest_on_surface,
    read_landmarks,
)


@pytest.fixture(scope="module")
def mean() -> np.ndarray:
    return procedural_donor().mean.numpy()


@pytest.fixture(scope="module")
def triangles() -> np.ndarray:
    return procedural_donor().triangles.numpy()


TABLE = np.arange(100, 168)


def write_indices(folder: Path, name: str, key: str = "landmarks68") -> Path:
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, TABLE)
    elif name.endswith(".npz"):
        np.savez(path, **{key: TABLE})
    elif name == "list.json":
        path.write_text(json.dumps(TABLE.tolist()))
    elif name == "keys.json":
        path.write_text(json.dumps({"comment": "68 points", "landmarks": TABLE.tolist()}))
    elif name == "column.csv":
        path.write_text("vertex\n" + "\n".join(map(str, TABLE)) + "\n")
    elif name == "row.csv":
        path.write_text(", ".join(map(str, TABLE)) + ",\n")
    else:
        path.write_text("# one a line\n\n" + "\r\n".join(map(str, TABLE)))
    return path


NAMES = ["a.txt", "column.csv", "row.csv", "list.json", "keys.json", "a.npy", "a.npz"]


@pytest.mark.parametrize("name", NAMES)
def test_indices_of_vertices(mean: np.ndarray, triangles: np.ndarray, tmp_path: Path, name: str) -> None:
    vertices, weights = read_landmarks(write_indices(tmp_path, name), mean=mean, triangles=triangles)
    assert weights is None
    assert vertices.tolist() == TABLE.tolist()


def points_of(mean: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Points within triangles, half a millimetre off the surface at most."""
    chosen = mean[triangles[np.arange(0, 6800, 100) % len(triangles)]]
    return chosen @ np.array([1.0, 0, 0]) if chosen.ndim == 2 else chosen.mean(1) + 0.1


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.npy", "a.pp"])
def test_points_are_dropped_onto_the_surface(
    mean: np.ndarray, triangles: np.ndarray, tmp_path: Path, name: str
) -> None:
    points, path = points_of(mean, triangles), tmp_path / name
    if name == "a.npy":
        np.save(path, points)
    elif name == "a.json":
        path.write_text(json.dumps(points.tolist()))
    elif name == "a.pp":
        tags = "\n".join(
            f' <point y="{y}" x="{x}" active="1" z="{z}" name="{i}"/>' for i, (x, y, z) in enumerate(points)
        )
        path.write_text(f"<!DOCTYPE PickedPoints>\n<PickedPoints>\n{tags}\n</PickedPoints>\n")
    else:
        separator = "," if name == "a.csv" else " "
        heading = "x,y,z\n" if name == "a.csv" else ""
        path.write_text(heading + "\n".join(separator.join(map(str, point)) for point in points))
    corners, weights = read_landmarks(path, mean=mean, triangles=triangles)
    assert weights is not None
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    assert np.abs(landmark_positions(mean, corners, weights) - points).max() < 0.2


def test_the_nearest_point_of_a_triangle() -> None:
    """By hand: over the inside, beyond an edge, beyond each corner."""
    mean = np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0]])
    points = np.array([[1.0, 1, 3], [2, -1, 0], [-1, -1, 0], [6, -1, 0], [-1, 6, 0], [3, 3, 0]])
    corners, weights, distances = nearest_on_surface(points, mean=mean, triangles=np.array([[0, 1, 2]]))
    expected = [[1, 1, 0], [2, 0, 0], [0, 0, 0], [4, 0, 0], [0, 4, 0], [2, 2, 0]]
    np.testing.assert_allclose((mean[corners] * weights[..., None]).sum(1), expected, atol=1e-6)
    np.testing.assert_allclose(distances, np.linalg.norm(points - expected, axis=1), atol=1e-6)


def embedding(count: int, prefix: str = "lmk_face_idx", other: str = "lmk_b_coords") -> dict[str, np.ndarray]:
    weights = np.tile(np.array([0.2, 0.3, 0.5]), (count, 1))
    return {prefix: np.arange(count) + 10, other: weights}


@pytest.mark.parametrize("keys", [("full_lmk_faces_idx", "full_lmk_bary_coords"), ("lmk_face_idx", "lmk_b_coords")])
def test_an_embedding_of_68_points(
    triangles: np.ndarray, mean: np.ndarray, tmp_path: Path, keys: tuple[str, str]
) -> None:
    content = {key: value[None] for key, value in embedding(68, *keys).items()}
    np.savez(tmp_path / "a.npz", **content)
    corners, weights = read_landmarks(tmp_path / "a.npz", mean=mean, triangles=triangles)
    np.testing.assert_array_equal(corners, triangles[10:78])
    np.testing.assert_allclose(weights, np.tile([0.2, 0.3, 0.5], (68, 1)), rtol=1e-6)


def test_an_embedding_without_contour_takes_the_frontal_one(triangles: np.ndarray) -> None:
    frontal = np.stack([np.arange(17) + 200, np.arange(17) + 300])
    content = embedding(51, "static_lmk_faces_idx", "static_lmk_bary_coords") | {
        "dynamic_lmk_faces_idx": frontal,
        "dynamic_lmk_bary_coords": np.full((2, 17, 3), 1 / 3),
    }
    corners, weights = embedded_landmarks(content, triangles=triangles)
    np.testing.assert_array_equal(corners[:17], triangles[200:217])
    np.testing.assert_array_equal(corners[17:], triangles[10:61])
    assert weights is not None
    np.testing.assert_allclose(weights[0], 1 / 3, rtol=1e-6)
    with pytest.raises(ValueError, match="lmk_face_idx holds 51 points, expected 68"):
        embedded_landmarks(embedding(51), triangles=triangles)


@pytest.mark.parametrize(
    ("faces", "weights", "message"),
    [
        (np.arange(3), np.full((2, 3), 1 / 3), "3 triangles with 2 barycentric coordinates"),
        (np.array([0, 99_999]), np.full((2, 3), 1 / 3), "triangles 0 to 99999 are named"),
        (np.arange(2), np.full((2, 3), 0.5), "do not add up to 1"),
        (np.arange(2), np.full((2, 3), np.nan), "do not add up to 1"),
    ],
)
def test_embeddings_that_do_not_fit(
    triangles: np.ndarray, faces: np.ndarray, weights: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        landmarks_from_embedding(faces, weights, triangles=triangles)


def far_away(count: int = 68) -> str:
    return "\n".join("0 0 900" for _ in range(count))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"holds an array of shape \(0,\), expected 68 indices or 68 points"),
        ("a.txt", " ".join(map(str, range(51))), r"holds an array of shape \(51,\)"),
        ("a.txt", "index\nfoo\n", "'foo' is no number"),
        ("a.txt", " ".join(["1.5"] * 68), "vertex indices run from 1.5 to 1.5, expected whole numbers"),
        ("a.txt", " ".join(["9999"] * 68), "run from 9999 to 9999, expected whole numbers from 0 to 3543"),
        ("a.txt", " ".join(["nan"] * 68), "something else than finite numbers"),
        ("a.txt", far_away(), r"point 0 lies 8\d\d(\.\d+)? off the surface, expected at most"),
        ("a.txt", b"\xff\xfe\x00", "not text, expected 68 vertex indices"),
        ("a.json", "[1, 2", "not valid JSON in line 1"),
        ("a.json", '{"other": [1]}', "no known key among other"),
        ("a.json", '"text"', "something else than finite numbers"),
        ("a.json", "[[1, 2], [3]]", "a.json: "),
        ("a.pp", "<PickedPoints></PickedPoints>", r"holds an array of shape \(0, 3\)"),
        ("a.pp", '<point x="1" y="2"/>', "point 1 has no x, y and z"),
        ("a.npz", b"no archive", "a.npz: "),
        ("a.npy", b"no array", "a.npy: "),
    ],
)
def test_files_that_say_something_else_are_refused_in_one_line(
    mean: np.ndarray, triangles: np.ndarray, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_landmarks(path, mean=mean, triangles=triangles)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(mean: np.ndarray, triangles: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such"):
        read_landmarks(tmp_path / "none.txt", mean=mean, triangles=triangles)


def test_pickles_are_not_read(mean: np.ndarray, triangles: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array({"lmk_face_idx": 1}, dtype=object))
    with pytest.raises(ValueError, match=r"a\.npy: .*; give 68 vertex indices"):
        read_landmarks(tmp_path / "a.npy", mean=mean, triangles=triangles)


def test_found_points_are_vertices_of_the_surface_and_announced(mean: np.ndarray, triangles: np.ndarray) -> None:
    loose = np.concatenate([mean, mean[procedural_donor().landmark_vertices.numpy()]])
    with pytest.warns(LandmarksFoundWarning, match="the 68 points were found on the face model's surface"):
        found = find_landmarks(loose, triangles)
    assert found.shape == (68,)
    assert found.max() < len(mean)
