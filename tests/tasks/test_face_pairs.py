from __future__ import annotations

from pathlib import Path

import pytest

from tasks.face_pairs import FacePairs, PairsError, read_pairs


def read(tmp_path: Path, text: str) -> FacePairs:
    file = tmp_path / "pairs.txt"
    file.write_text(text, encoding="utf-8")
    return read_pairs(file, tmp_path)


def test_the_format_of_lfw(tmp_path: Path) -> None:
    (tmp_path / "Abel").mkdir()
    (tmp_path / "Abel" / "Abel_0004.png").write_bytes(b"")
    found = read(
        tmp_path,
        "2\t2\n"
        "Abel\t1\t4\nEva_B\t2\t3\nAbel\t1\tEva_B\t2\nEva_B\t1\tZoe\t12\n"
        "Zoe\t1\t2\nZoe\t2\t3\nAbel\t2\tZoe\t1\nEva_B\t1\tAbel\t3\n",
    )
    assert found.same.tolist() == [True, True, False, False] * 2
    assert found.fold.tolist() == [0] * 4 + [1] * 4
    assert found.first[0] == tmp_path / "Abel" / "Abel_0001.jpg"
    assert found.second[0] == tmp_path / "Abel" / "Abel_0004.png"
    assert found.second[3] == tmp_path / "Zoe" / "Zoe_0012.jpg"
    assert len(found.photos()) == len({*found.first, *found.second})


@pytest.mark.parametrize(
    "text",
    [
        "a/1.jpg b/2.jpg 0\na/1.jpg a/3.jpg 1\n",
        "# a list\n0,a/1.jpg,b/2.jpg\n\n1,a/1.jpg,a/3.jpg\n",
        "a/1.jpg\tb/2.jpg\t-1\na/1.jpg\ta/3.jpg\t1\n",
    ],
)
def test_lists_of_two_photos_and_a_flag(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text)
    assert found.first == (tmp_path / "a/1.jpg",) * 2
    assert found.second == (tmp_path / "b/2.jpg", tmp_path / "a/3.jpg")
    assert found.same.tolist() == [False, True]


def test_a_list_without_folds_is_dealt_to_ten(tmp_path: Path) -> None:
    rows = [f"p{number}.jpg q{number}.jpg {number % 2}" for number in range(40)]
    found = read(tmp_path, "\n".join(rows))
    assert sorted(set(found.fold.tolist())) == list(range(10))
    for fold in range(10):
        assert found.same[found.fold == fold].tolist().count(True) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no pairs, expected one a line"),
        ("a.jpg b.jpg\n", "line 1: 'a.jpg b.jpg', expected `name 1 2`"),
        ("Abel 1 2\nAbel 1 2 3 4\n", "line 2: 'Abel 1 2 3 4'"),
        ("a.jpg b.jpg maybe\n", "line 1"),
        ("2 2\nAbel 1 2\n", "1 pairs, but its first line says 2 folds of 2 pairs of either kind, expected 8"),
        ("../a.jpg b.jpg 1\n", r"'\.\./a\.jpg' of a pair lies outside the folder"),
        ("/etc/passwd b.jpg 1\n", "lies outside the folder of photos"),
        ("../../Abel 1 2\n", "lies outside the folder of photos"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PairsError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(PairsError, match="cannot be read as text"):
        read_pairs(tmp_path / "pairs.txt", tmp_path)
    with pytest.raises(PairsError, match="cannot be read as text"):
        read_pairs(tmp_path / "absent.txt", tmp_path)
