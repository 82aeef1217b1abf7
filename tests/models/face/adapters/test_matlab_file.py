from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.face.adapters.matlab_file import matlab_names, read_matlab
from tests.basel_files import save_mat


@pytest.mark.parametrize("version_73", [False, True])
def test_both_versions_show_rows_and_columns_as_matlab_does(tmp_path: Path, version_73: bool) -> None:
    table = np.arange(6.0).reshape(2, 3)
    path = save_mat(tmp_path / "a.mat", {"table": table, "other": np.ones((1, 1))}, version_73=version_73)
    assert set(matlab_names(path)) == {"table", "other"}
    found = read_matlab(path, ["table", "absent"])
    assert set(found) == {"table"}
    assert np.array_equal(found["table"], table)


@pytest.mark.parametrize("value", ["text", np.array([1, "a"], dtype=object), {"field": 1.0}])
def test_what_is_no_array_of_numbers_is_named(tmp_path: Path, value: object) -> None:
    path = save_mat(tmp_path / "a.mat", {"tl": value})
    with pytest.raises(ValueError, match=r"a\.mat: tl holds .*, expected an array of numbers"):
        read_matlab(path, ["tl"])


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(ValueError, match=r"a\.mat: not a readable MATLAB file"):
        matlab_names(path)
