"""Tables and `.pts` files that users write, good and bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.annotations import (
    AnnotationError,
    Annotations,
    read_landmark_table,
    read_person_table,
    read_pts,
    safe_name,
)

HEADER = "file," + ",".join(f"x{point},y{point}" for point in range(68))


def table(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def numbers(count: int = 136, start: float = 0.0) -> str:
    return ",".join(str(start + number) for number in range(count))


def landmarks(path: Path) -> Annotations:
    annotations = Annotations()
    read_landmark_table(path, annotations)
    return annotations


def reason(value: object) -> str:
    assert isinstance(value, AnnotationError)
    return value.reason


# names


@pytest.mark.parametrize(("text", "name"), [("a.jpg", "a.jpg"), ("./b/a.jpg", "b/a.jpg"), ("b\\a.jpg", "b/a.jpg")])
def test_names_inside_the_folder(text: str, name: str) -> None:
    assert safe_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "../a.jpg",
        "b/../../a.jpg",
        "C:\\a.jpg",
        "C:a.jpg",
        "\\\\host\\a.jpg",
        "..\\a.jpg",
        "",
        ".",
        "a\0",
    ],
)
def test_names_that_lead_out(text: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        safe_name(text)
    assert caught.value.reason == "unsafe_path"


# landmarks


def test_points_in_order_and_other_columns_ignored(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", f"a.jpg,{numbers()},200", header=HEADER + ",width")
    points = landmarks(path).landmarks["a.jpg"]
    np.testing.assert_array_equal(points, np.arange(136, dtype=np.float32).reshape(68, 2))


def test_a_mark_at_the_start_of_the_file_is_no_letter(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\na.jpg,{numbers()}\n", encoding="utf-8-sig")
    assert list(landmarks(path).landmarks) == ["a.jpg"]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (numbers(135) + ",nan", "landmarks_not_finite"),
        (numbers(135) + ",inf", "landmarks_not_finite"),
        (numbers(135) + ",", "landmarks_not_finite"),
        (numbers(134), "landmarks_not_finite"),
        (numbers(135) + ",left", "landmarks_unreadable"),
    ],
)
def test_faulty_cells_spoil_their_row_alone(tmp_path: Path, cells: str, expected: str) -> None:
    found = landmarks(table(tmp_path / "t.csv", f"bad.jpg,{cells}", f"good.jpg,{numbers()}")).landmarks
    assert reason(found["bad.jpg"]) == expected
    assert found["good.jpg"].shape == (68, 2)


def test_67_points(tmp_path: Path) -> None:
    header = "file," + ",".join(f"x{point},y{point}" for point in range(67))
    found = landmarks(table(tmp_path / "t.csv", f"a.jpg,{numbers(134)}", header=header)).landmarks["a.jpg"]
    assert reason(found) == "landmarks_wrong_count"
    assert found.detail == "67 points, expected 68"


def test_a_photo_listed_twice_is_ambiguous(tmp_path: Path) -> None:
    found = landmarks(table(tmp_path / "t.csv", f"a.jpg,{numbers()}", f"./a.jpg,{numbers(start=5)}")).landmarks
    assert reason(found["a.jpg"]) == "landmarks_ambiguous"


def test_unsafe_rows_are_kept_aside(tmp_path: Path) -> None:
    found = landmarks(table(tmp_path / "t.csv", f"../a.jpg,{numbers()}"))
    assert found.unsafe == [("../a.jpg", "t.csv")]
    assert not found.landmarks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,x0\na.jpg,1\n", r"t\.csv: column file is missing, found name, x0; expected columns file"),
        (b"", r"t\.csv: column file is missing, found an empty file"),
        (b"\xff\xfe\x00bad", r"t\.csv: not a CSV file in UTF-8"),
        (5000 * b"A" + b",y0\n", r"found A{40}…, y0; expected columns file"),
        (b'"a\nb",\0\n', r"found 'a\\nb', '\\x00'; expected columns file"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        landmarks(path)
    assert str(caught.value).isprintable()


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"t\.csv: no such table; expected columns file"):
        landmarks(tmp_path / "t.csv")


# persons


def test_persons(tmp_path: Path) -> None:
    annotations = Annotations()
    rows = ["a.jpg, anna", "b.jpg,", "c.jpg,carl", "c.jpg,carl", "d.jpg,dora", "d.jpg,dina"]
    read_person_table(table(tmp_path / "p.csv", *rows, header="file,person"), annotations)
    assert annotations.persons["a.jpg"] == "anna"
    assert "b.jpg" not in annotations.persons
    assert annotations.persons["c.jpg"] == "carl"
    assert reason(annotations.persons["d.jpg"]) == "person_ambiguous"


# pts


def pts(path: Path, body: str) -> Path:
    path.write_text(f"version: 1\nn_points:  68\n{{\n{body}\n}}\n", encoding="utf-8")
    return path


def test_pts_counts_the_first_pixel_as_one(tmp_path: Path) -> None:
    body = "\n".join(f"{1 + point} {1 + 2 * point}" for point in range(68))
    points = read_pts(pts(tmp_path / "a.pts", body))
    np.testing.assert_allclose(points[:, 0], np.arange(68) + 0.5)
    np.testing.assert_allclose(points[:, 1], 2 * np.arange(68) + 0.5)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("1 1\n" * 67, "landmarks_wrong_count"),
        ("1 1\n" * 67 + "nan 1", "landmarks_not_finite"),
        ("1 1\n" * 67 + "one 1", "landmarks_unreadable"),
    ],
)
def test_faulty_pts(tmp_path: Path, body: str, expected: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read_pts(pts(tmp_path / "a.pts", body))
    assert caught.value.reason == expected


def test_pts_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.pts"
    for content in (b"no braces", b"\xff\xd8\xff"):
        path.write_bytes(content)
        with pytest.raises(AnnotationError, match="landmarks_unreadable"):
            read_pts(path)


def test_real_pts_lies_on_the_face(shared_data: Path) -> None:
    points = read_pts(shared_data / "photos" / "einstein.pts")
    first = (shared_data / "photos" / "einstein.pts").read_text(encoding="utf-8").split("{")[1].split()
    np.testing.assert_allclose(points[0], [float(first[0]) - 0.5, float(first[1]) - 0.5], rtol=1e-6)
    brows, eyes, nose, mouth, chin = (
        points[part, 1].mean() for part in (range(17, 27), range(36, 48), [30], range(48, 68), [8])
    )
    assert brows < eyes < nose < mouth < chin
