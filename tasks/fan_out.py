"""How a stage hands out pieces of its work that do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""(function, pieces) -> results in the order of the pieces, like `map`.

Function, pieces and results may travel to another process or machine, which sees the same workspace at the same path;
so they are plain data, and large results are files of the workspace. Pieces are drawn as they are needed.
"""


def serial(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
    """One piece after the other, here."""
    return map(function, pieces)
