from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from models.face.adapters.source import file_sha256, files_sha256, named_in_short, require_file, require_keys


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    content = b"face" * 300_000
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_the_hash_of_files_depends_on_names_and_contents_not_on_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("x")
    second.write_text("y")
    before = files_sha256([first, second])
    assert before == files_sha256([second, first])
    assert before != files_sha256([first])
    first.write_text("y")
    second.write_text("x")
    assert files_sha256([first, second]) != before


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    require_file(tmp_path / "here", expected="a model")
    with pytest.raises(FileNotFoundError, match=r"gone: no such face model, expected a model; set face_model\.path"):
        require_file(tmp_path / "gone", expected="a model")
    with pytest.raises(ValueError, match="a folder, expected a model"):
        require_file(tmp_path, expected="a model")


def test_missing_keys_are_named() -> None:
    require_keys({"a": 1, "b": 2}, ("a",), Path("x.mat"))
    with pytest.raises(ValueError, match=r"x\.mat: keys c, d are missing, found a, b; is this the right file\?"):
        require_keys({"b": 2, "a": 1}, ("a", "c", "d"), Path("x.mat"))
    with pytest.raises(ValueError, match="found none"):
        require_keys({}, ("a",), Path("x.mat"))


def test_names_of_a_damaged_file_stay_short_and_on_one_line() -> None:
    assert named_in_short(["mean", "basis"]) == "mean, basis"
    assert named_in_short([]) == ""
    assert named_in_short([5000 * "A", "a\nb\0"]) == f"{40 * 'A'}…, 'a\\nb\\x00'"
    assert named_in_short([str(number) for number in range(14)]).endswith(", 10, 11 and 2 more")
