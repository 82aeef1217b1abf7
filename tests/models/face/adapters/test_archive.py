"""What is wrong with archives is tested in tests/models/face/test_formats.py, where people meet it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.face.adapters.archive import npz_names, read_npz


def test_arrays_come_back(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.array("text"))
    found = read_npz(tmp_path / "a.npz")
    assert sorted(found) == ["x", "y"]
    assert found["x"].tolist() == [0, 1, 2]


def test_names_are_told_without_reading(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3), bad=np.array([{}], dtype=object))
    assert npz_names(tmp_path / "a.npz") == {"x", "bad"}
    (tmp_path / "b.npz").write_text("no archive")
    assert npz_names(tmp_path / "b.npz") == set()


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz: not an \.npz file without pickles"):
        read_npz(tmp_path / "a.npz")
