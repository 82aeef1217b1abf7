"""Where the pieces of a stage run: here, on threads, in processes, on a Dask or on a Ray cluster.

Every runner gives the results in the order of the pieces and holds no more of them than its workers are busy with, so
that a stage writes the same bytes on each and its memory does not grow with the data.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.fan_out import Spread
    from tasks.runner_params import RunnerParams

FANNED_OUT = frozenset({"ingest", "detect_landmarks", "evaluate"})
"""Stages that hand out their work; the others are one piece."""

AHEAD = 2
"""Pieces under way for each worker."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of workers: there is one for each core already."""


class RunnerError(OSError):
    """A runner cannot be had, or one of its workers was lost; the message says which and what to do."""


@contextmanager
def open_runner(params: RunnerParams) -> Iterator[Spread]:
    """The runner that the params name; its workers end with the block.

    Raises: RunnerError if it is not installed or cannot be reached.
    """
    with RUNNERS[params.kind](params) as spread:
        yield spread


def _workers(params: RunnerParams) -> int:
    return params.workers or len(os.sched_getaffinity(0))


@contextmanager
def _serial(params: RunnerParams) -> Iterator[Spread]:  # noqa: ARG001
    def spread(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        for piece in pieces:
            yield _on_one_core(function, piece)

    yield spread


@contextmanager
def _threads(params: RunnerParams) -> Iterator[Spread]:
    with ThreadPoolExecutor(_workers(params), thread_name_prefix="piece") as pool:
        yield _spread_over(pool, _workers(params))


@contextmanager
def _processes(params: RunnerParams) -> Iterator[Spread]:
    count = _workers(params)
    # Forked copies of a process with threads may never wake up, so each worker is a fresh one.
    context = multiprocessing.get_context("spawn")
    with (
        _environment(ONE_THREAD),
        ProcessPoolExecutor(count, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)) as pool,
    ):
        yield _spread_over(pool, count)


@contextmanager
def _dask(params: RunnerParams) -> Iterator[Spread]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise RunnerError("runner dask: distributed is not installed; pip install 'mien[dask]'") from None
    count = _workers(params)
    try:
        if params.address:
            with Client(params.address, timeout=30) as client:
                yield _spread_with(_DaskTasks(client), max(1, sum(client.nthreads().values())))
            return
        with (
            _environment(ONE_THREAD),
            LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
            Client(cluster) as client,
        ):
            yield _spread_with(_DaskTasks(client), count)
    except TimeoutError:
        raise RunnerError(f"runner dask: {params.address} does not answer; start its scheduler") from None


@contextmanager
def _ray(params: RunnerParams) -> Iterator[Spread]:
    # Set before the import, which reads it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Of its own accord Ray lets its workers yield to everything else on the machine, and on a busy one they never end.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError:
        raise RunnerError("runner ray: ray is not installed; pip install 'mien[ray]'") from None
    count = _workers(params)
    where: dict[str, Any] = {"address": params.address} if params.address else {"num_cpus": count}
    try:
        ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise RunnerError(f"runner ray: {params.address} does not answer ({error}); start the cluster") from None
    try:
        yield _spread_with(_RayTasks(ray), int(ray.cluster_resources().get("CPU", count)))
    finally:
        ray.shutdown()


class _DaskTasks:
    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, function: Callable[[Any], Any], piece: Any) -> Any:
        return self._client.submit(_on_one_core, function, piece, pure=False, retries=1)

    def result(self, task: Any) -> Any:
        return task.result()

    def cancel(self, task: Any) -> None:
        task.cancel()


class _RayTasks:
    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote = ray.remote(num_cpus=1, max_retries=1)(_on_one_core)

    def submit(self, function: Callable[[Any], Any], piece: Any) -> Any:
        return self._remote.remote(function, piece)

    def result(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            # Ray wraps what the function raised.
            raise error.cause from None

    def cancel(self, task: Any) -> None:
        self._ray.cancel(task, force=True)


class _PoolTasks:
    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    def submit(self, function: Callable[[Any], Any], piece: Any) -> Any:
        return self._pool.submit(_on_one_core, function, piece)

    def result(self, task: Any) -> Any:
        try:
            return task.result()
        except BrokenProcessPool:
            raise RunnerError(
                "runner processes: a worker was ended from outside, perhaps for lack of memory; "
                "lower runner.workers and run again, what was done is kept"
            ) from None

    def cancel(self, task: Any) -> None:
        task.cancel()


def _spread_over(pool: Executor, workers: int) -> Spread:
    return _spread_with(_PoolTasks(pool), workers)


def _spread_with(tasks: Any, workers: int) -> Spread:
    def spread(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        under_way: deque[Any] = deque()
        try:
            for piece in pieces:
                under_way.append(tasks.submit(function, piece))
                if len(under_way) >= AHEAD * workers:
                    yield tasks.result(under_way.popleft())
            while under_way:
                yield tasks.result(under_way.popleft())
        finally:
            for task in under_way:
                tasks.cancel(task)

    return spread


def _on_one_core(function: Callable[[Any], Any], piece: Any) -> Any:
    # How many threads share a sum decides its last bit, and with it now and then what a detector takes for a face.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(piece)
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Variables that processes started in the block inherit."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_with(parent: int) -> None:
    """Let a worker end when the process that started it is killed; it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


RUNNERS: dict[str, Callable[[RunnerParams], Any]] = {
    "serial": _serial,
    "threads": _threads,
    "processes": _processes,
    "dask": _dask,
    "ray": _ray,
}
