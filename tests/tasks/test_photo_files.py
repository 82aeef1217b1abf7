from __future__ import annotations

from pathlib import Path

import pytest

from tasks.photo_files import photo_paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", "film.mp4", "deep/c.jpeg", "odd[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    return tmp_path


def names(found: list[Path]) -> list[str]:
    return [path.name for path in found]


def test_files_folders_and_patterns(folder: Path) -> None:
    assert names(list(photo_paths([folder]))) == ["a.jpg", "b.PNG", "odd[1].jpg"]
    assert names(list(photo_paths([folder / "**" / "*.jp*g"]))) == ["a.jpg", "c.jpeg", "odd[1].jpg"]
    assert names(list(photo_paths([folder], suffixes=(".mp4",)))) == ["film.mp4"]
    # A file that exists is that file, whatever its name looks like; one that is named may be called as it likes.
    assert names(list(photo_paths([folder / "odd[1].jpg", folder / "notes.txt"]))) == ["odd[1].jpg", "notes.txt"]


def test_nothing_found_is_said(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"\*\.webp: matches no photo"):
        list(photo_paths([folder / "*.webp"]))
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no photos in this folder"):
        list(photo_paths([folder / "empty"]))
