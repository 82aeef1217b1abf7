"""Medians of repeated runs that take turns, so that whatever slows the machine down slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from benchmarks.rendering.runs import Run

FEWEST, MOST = 5, 41
SLOW_SECONDS = 1.0
SLOW_REPEATS = 3


def median_milliseconds(
    runs: Mapping[str, Run], *, seconds: float, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Median of every run by name; each is repeated for about so many seconds, at least five times.

    The first call compiles, warms up and does not count; but where one takes more than a second it does, and two more
    are enough.
    """
    first = {name: _seconds(run, device) for name, run in runs.items()}
    slow = {name for name, taken in first.items() if taken > SLOW_SECONDS}
    times = {name: [first[name]] if name in slow else [] for name in runs}
    # The first call compiled something: the second says how long one takes.
    again = {name: first[name] if name in slow else _seconds(run, device) for name, run in runs.items()}
    repeats = {
        name: SLOW_REPEATS if name in slow else min(MOST, max(FEWEST, round(seconds / taken)))
        for name, taken in again.items()
    }
    for turn in range(max(repeats.values())):
        for name, run in runs.items():
            # Runs with fewer repeats are spread over all turns.
            if len(times[name]) * max(repeats.values()) <= turn * repeats[name] and len(times[name]) < repeats[name]:
                times[name].append(_seconds(run, device))
    return {name: 1000.0 * statistics.median(taken) for name, taken in times.items()}


def _seconds(run: Run, device: torch.device | str) -> float:
    _finish(device)
    start = time.perf_counter()
    result = run()
    _finish(device)
    taken = time.perf_counter() - start
    del result
    return taken


def _finish(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
