"""Arrays of a MATLAB file, of the old format as well as of version 7.3, which is HDF5."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

MAX_BYTES = 2**30
"""Of one array; those of the Basel models have an eighth of that."""

UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, EOFError, NotImplementedError, RuntimeError, MemoryError),
    *(zlib.error, struct.error, MatReadError),
)
"""What scipy and h5py raise over a damaged file."""


def matlab_names(path: Path) -> tuple[str, ...]:
    """Names of the arrays in a MATLAB file, without reading them.

    Raises: ValueError in one line, if it is no such file.
    """
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                return tuple(str(name) for name in file)
        return tuple(str(name) for name, _, _ in scipy.io.whosmat(path))
    except UNREADABLE as error:
        raise _damaged(path, error) from None


def read_matlab(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays called `names`, as far as the file has them, with rows and columns as MATLAB shows them.

    Raises: ValueError in one line, if the file is damaged, or one of them is no array of numbers.
    """
    try:
        data = _version_73(path, names) if h5py.is_hdf5(path) else scipy.io.loadmat(path, variable_names=list(names))
    except UNREADABLE as error:
        raise _damaged(path, error) from None
    arrays = {name: data[name] for name in names if name in data}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
            kind = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"{path}: {name} holds {kind}, expected an array of numbers")
    return arrays


def _version_73(path: Path, names: Sequence[str]) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        # MATLAB's columns come first in HDF5.
        return {name: read_dataset(file[name]).T for name in names if isinstance(file.get(name), h5py.Dataset)}


def read_dataset(dataset: h5py.Dataset, *, columns: int | None = None) -> np.ndarray:
    """The values of an HDF5 dataset, or the first `columns` of a matrix.

    Raises: ValueError if they are more than a face model can have: values that were never written cost a file nothing.
    """
    shape = dataset.shape if columns is None else (dataset.shape[0], min(columns, dataset.shape[1]))
    size = math.prod(shape or ()) * dataset.dtype.itemsize
    if size > MAX_BYTES:
        raise ValueError(f"{dataset.name} claims {size} bytes, expected at most {MAX_BYTES}")
    return np.asarray(dataset[()] if columns is None else dataset[:, :columns])


def _damaged(path: Path, error: BaseException) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return ValueError(f"{path}: not a readable MATLAB file ({reason}), expected a Basel .mat; copy it again")
