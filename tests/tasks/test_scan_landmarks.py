"""Landmarks of scans: four formats, two ways of ordering, and everything that can be wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.annotations import AnnotationError
from tasks.scan_landmarks import find_scan_landmarks, read_scan_landmarks
from tests.tiny_face import tiny_face

POINTS = tiny_face().landmark_mean.double().numpy()


def reason(path: Path) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_scan_landmarks(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return caught.value.reason


def rows(points: np.ndarray) -> str:
    return "\n".join(",".join("" if np.isnan(value) else f"{value:.6f}" for value in row) for row in points)


@pytest.mark.parametrize("header", ["", "x,y,z\n"])
def test_table(tmp_path: Path, header: str) -> None:
    path = tmp_path / "face.landmarks.csv"
    points = POINTS.copy()
    points[5] = np.nan
    points[9, 1] = np.nan
    path.write_text(header + rows(points) + "\n", encoding="utf-8")
    points[9] = np.nan
    np.testing.assert_allclose(read_scan_landmarks(path), points, atol=1e-6)


@pytest.mark.parametrize("name", ["face.npy", "face.npz", "alone.npz"])
def test_arrays(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "face.npy":
        np.save(path, POINTS)
    elif name == "face.npz":
        np.savez(path, landmarks=POINTS, vertices=np.zeros((5, 3)))
    else:
        np.savez(path, points=POINTS)
        assert reason(path) == "landmarks_unreadable"
        return
    np.testing.assert_array_equal(read_scan_landmarks(path), POINTS)


IBUG = {
    "jaw": range(17),
    "right_eyebrow": range(17, 22),
    "left_eyebrow": range(22, 27),
    "nose": range(27, 36),
    "right_eye": range(36, 42),
    "left_eye": range(42, 48),
    "mouth": range(48, 68),
}


def ljson(order: list[str], names: dict[str, str], version: int) -> str:
    indices = [index for part in order for index in IBUG[part]]
    labels, start = [], 0
    for part in order:
        labels.append({"label": names.get(part, part), "mask": list(range(start, start + len(IBUG[part])))})
        start += len(IBUG[part])
    points = [[None if np.isnan(value) else value for value in row] for row in POINTS[indices]]
    group = {"labels": labels, "landmarks": {"points": points}}
    return json.dumps({"groups": {"LJSON": group}, "version": 3} if version == 3 else {**group, "version": 2})


@pytest.mark.parametrize("version", [2, 3])
def test_labelled_groups_come_in_any_order(tmp_path: Path, version: int) -> None:
    """As some tools write them: eyes before brows, and left as the viewer sees it."""
    order = ["jaw", "right_eye", "left_eye", "right_eyebrow", "nose", "left_eyebrow", "mouth"]
    names = {
        "jaw": "chin",
        "right_eye": "leye",
        "left_eye": "reye",
        "right_eyebrow": "leyebrow",
        "left_eyebrow": "reyebrow",
    }
    path = tmp_path / "face.ljson"
    path.write_text(ljson(order, names, version), encoding="utf-8")
    np.testing.assert_allclose(read_scan_landmarks(path), POINTS)
    swapped = ["jaw", "left_eyebrow", "right_eyebrow", "nose", "left_eye", "right_eye", "mouth"]
    path.write_text(ljson(swapped, {}, version), encoding="utf-8")
    np.testing.assert_allclose(read_scan_landmarks(path), POINTS)


def test_groups_of_other_labels_keep_their_order(tmp_path: Path) -> None:
    content = {"landmarks": {"points": POINTS.tolist()}, "labels": [{"label": "all", "mask": list(range(68))}]}
    path = tmp_path / "face.ljson"
    path.write_text(json.dumps(content), encoding="utf-8")
    np.testing.assert_allclose(read_scan_landmarks(path), POINTS)


def test_the_file_beside_a_mesh(tmp_path: Path) -> None:
    mesh = tmp_path / "anna.smile.obj"
    with pytest.raises(AnnotationError, match=r"put anna.smile.landmarks.csv beside it"):
        find_scan_landmarks(mesh)
    (tmp_path / "anna.smile.ljson").touch()
    assert find_scan_landmarks(mesh).name == "anna.smile.ljson"
    (tmp_path / "anna.smile.landmarks.csv").touch()
    assert find_scan_landmarks(mesh).name == "anna.smile.landmarks.csv"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", rows(POINTS[:67]), "landmarks_wrong_count"),
        ("a.csv", rows(POINTS[:, :2]), "landmarks_wrong_count"),
        ("a.csv", "", "landmarks_wrong_count"),
        ("a.csv", "x,y,z\n1,2,three\n", "landmarks_unreadable"),
        ("a.csv", "1,2,3\n4,5\n", "landmarks_unreadable"),
        ("a.npy", "text", "landmarks_unreadable"),
        ("a.npz", "text", "landmarks_unreadable"),
        ("a.ljson", "{", "landmarks_unreadable"),
        ("a.ljson", "[]", "landmarks_unreadable"),
        ("a.ljson", '{"groups": {"a": {}, "b": {}}}', "landmarks_unreadable"),
        ("a.txt", "", "landmarks_unreadable"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert reason(path) == expected


def test_missing_and_oversized_files(tmp_path: Path) -> None:
    assert reason(tmp_path / "a.csv") == "landmarks_missing"
    (tmp_path / "b.csv").write_bytes(b"0" * (2**20 + 1))
    assert reason(tmp_path / "b.csv") == "landmarks_unreadable"
