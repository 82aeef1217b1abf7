"""Prepares the batches of coming steps in the background while the present one is computed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Generator

Load = Callable[[Generator], Sequence[Any]]
"""generator of a step -> the portions of its batch that this process computes, one after the other."""

AHEAD = 2
"""Steps prepared in advance: enough to bridge an uneven disk, few enough to hold in memory."""


def seeded(seed: int, step: int) -> Generator:
    """The generator of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class BatchLoader:
    """The batches of steps in order, each drawn from its step's own generator, so that looking ahead changes none.

    A thread is enough: gathering crops releases the interpreter. `waiting_seconds` is how long `next` had to wait.
    """

    def __init__(self, load: Load, *, seed: int, start: int, stop: int) -> None:
        self.waiting_seconds = 0.0
        self._load = load
        self._seed = seed
        self._steps = iter(range(start, stop))
        self._ready: deque[Future[Sequence[Any]]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._look_ahead()

    def __iter__(self) -> Iterator[Sequence[Any]]:
        """Itself."""
        return self

    def __next__(self) -> Sequence[Any]:
        """The next step's batch; raises whatever loading it raised."""
        if not self._ready:
            raise StopIteration
        started = time.perf_counter()
        batch = self._ready.popleft().result()
        self.waiting_seconds += time.perf_counter() - started
        self._look_ahead()
        return batch

    def close(self) -> None:
        """Drop what was prepared in vain and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _look_ahead(self) -> None:
        while len(self._ready) < AHEAD and (step := next(self._steps, None)) is not None:
            self._ready.append(self._thread.submit(self._run, step))

    @torch.no_grad()
    def _run(self, step: int) -> Sequence[Any]:
        return self._load(seeded(self._seed, step))
