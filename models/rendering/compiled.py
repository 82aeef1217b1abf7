"""Kernels that numba compiles for the processor, and the threads that run them.

A kernel holds no lock, so plain threads suffice: as many as torch may use, and it does not matter which of them does
what, because every job writes to places of its own. numba's own threading is not used: depending on what a machine has
installed it aborts the process when two flows render at once, or after a fork.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Int
from torch import Tensor

from models.types import Camera

SETTINGS = {"nogil": True, "error_model": "numpy", "fastmath": False}

LOCK_NAME = "kernels.lock"

_pools: dict[int, ThreadPoolExecutor] = {}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call for the types that it is given, and keep the result on disk where that is possible."""
    try:
        compiled: Any = numba.njit(cache=True, **SETTINGS)(function)
    except RuntimeError:
        # Neither the folder of the source nor the user's cache can be written: compile again in every process.
        return numba.njit(**SETTINGS)(function)
    # Two processes that compile for the first time give different code the same file name, and crash when they read it.
    folder, compile_or_load = Path(compiled._cache.cache_path), compiled.compile

    def compile_alone(signature: Any) -> Any:
        with _cache_lock(folder):
            return compile_or_load(signature)

    compiled.compile = compile_alone
    return compiled


@functools.cache
def _cache_lock(folder: Path) -> FileLock:
    # A kernel that calls another compiles it meanwhile, perhaps in another thread; numba keeps threads apart itself.
    return FileLock(folder / LOCK_NAME, thread_local=False)


def _forget_the_parent() -> None:
    # Neither locks nor threads of a process are there in its copy.
    _cache_lock.cache_clear()
    _pools.clear()


os.register_at_fork(after_in_child=_forget_the_parent)


def run_jobs(job: Callable[[int], None], count: int) -> None:
    """Call `job(0)` to `job(count - 1)`, each once, on as many threads as torch may use."""
    threads = min(torch.get_num_threads(), count)
    numbers = itertools.count()

    def work() -> None:
        # The next number is drawn under the interpreter's lock, so no two threads get the same.
        while (number := next(numbers)) < count:
            job(number)

    waiting = [_pool(threads).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for future in waiting:
            # A thread that is still busy for others has nothing left to do here.
            if not future.cancel():
                future.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        _pools.setdefault(threads, ThreadPoolExecutor(threads - 1, thread_name_prefix="render"))
    return _pools[threads]


def camera_numbers(camera: Camera) -> Any:
    """Focal length and principal point as an array (B, 3) of doubles."""
    numbers = torch.cat([camera.focal_px[:, None].double(), camera.principal_px.double()], 1)
    return numbers.detach().contiguous().numpy()


def triangle_corners(triangles: Int[Tensor, "F 3"], vertex_count: int) -> Any:
    """Triangles as an array of unsigned 32 bits, which costs kernels the least.

    Raises: ValueError if one names a vertex that there is not; a kernel would read any memory.
    """
    corners = np.empty(tuple(triangles.shape), np.uint32)
    lowest, highest = _copy_corners(triangles.detach().contiguous().long().numpy(), corners)
    if len(corners) and not 0 <= lowest <= highest < vertex_count:
        raise ValueError(f"triangles: vertices {lowest} to {highest}, expected 0 to {vertex_count - 1}")
    return corners


@kernel
@no_type_check
def _copy_corners(triangles, corners):
    lowest, highest = np.int64(0), np.int64(0)
    for index in range(triangles.shape[0]):
        for corner in range(3):
            vertex = triangles[index, corner]
            lowest, highest = min(lowest, vertex), max(highest, vertex)
            corners[index, corner] = vertex
    return lowest, highest


# Threads do not survive a fork.
os.register_at_fork(after_in_child=_pools.clear)
