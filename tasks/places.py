"""Where texts are in a long column, without the memory of a dictionary of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

ROWS_AT_ONCE = 4096


class Places:
    """Where texts are in a column, in sixteen bytes each."""

    def __init__(self, column: pa.Array | pa.ChunkedArray) -> None:
        self._column = column
        hashes = np.fromiter((_hash(text) for text in _texts(column)), np.int64, len(column))
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def find(self, text: str | bytes) -> int | None:
        """The row, or None where the text is not there, or hard to tell from another."""
        place = int(np.searchsorted(self._sorted, value := _hash(text)))
        if place == len(self._sorted) or self._sorted[place] != value:
            return None
        row = int(self._order[place])
        return row if self._column[row].as_py() == text else None


def _texts(column: pa.Array | pa.ChunkedArray) -> Iterator[str | bytes]:
    for start in range(0, len(column), ROWS_AT_ONCE):
        yield from column.slice(start, ROWS_AT_ONCE).to_pylist()


def _hash(text: str | bytes) -> int:
    content = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
