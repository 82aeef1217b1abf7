from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from models.rendering.compiled import LOCK_NAME, kernel, run_jobs, triangle_corners


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_job_is_done_once(threads: int, count: int) -> None:
    done = []
    run_jobs(done.append, count)
    assert sorted(done) == list(range(count))


def test_callers_in_many_threads_do_not_wait_for_each_other_for_ever(threads: int) -> None:
    done: list[int] = []
    callers = [threading.Thread(target=run_jobs, args=(done.append, 20), daemon=True) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=20)
    assert sorted(done) == sorted(list(range(20)) * 6)


def test_a_failing_job_fails_the_call(threads: int) -> None:
    def fail(job: int) -> None:
        if job == 3:
            raise ZeroDivisionError("job 3")

    with pytest.raises(ZeroDivisionError, match="job 3"):
        run_jobs(fail, 8)


def test_a_kernel_works_where_its_code_cannot_be_kept() -> None:
    # A function that stands in no file: numba finds no folder for it.
    place: dict = {}
    exec(compile("def twice(x):\n    return 2 * x\n", "<nowhere>", "exec"), place)
    assert kernel(place["twice"])(21) == 42


def test_corners_are_the_triangles() -> None:
    triangles = torch.tensor([[0, 1, 2], [3, 2, 1], [9, 9, 9]])[:, [2, 0, 1]]
    corners = triangle_corners(triangles, 4 + 6)
    assert corners.dtype == np.uint32
    assert corners.tolist() == triangles.tolist()
    assert triangle_corners(triangles[:0], 0).shape == (0, 3)


@pytest.mark.parametrize("wrong", [-1, 10, 2**32 + 1])
def test_a_triangle_without_its_vertex_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 9"):
        triangle_corners(torch.tensor([[0, 1, 2], [3, wrong, 1]]), 10)


def test_processes_compile_one_after_the_other(tmp_path: Path) -> None:
    source = tmp_path / "doubling.py"
    source.write_text(
        "from models.rendering.compiled import kernel\n\n\n@kernel\ndef twice(value):\n    return value + value\n"
    )
    spec = importlib.util.spec_from_file_location("doubling", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Another lock on the same file stands for another process.
    other = FileLock(Path(module.twice._cache.cache_path) / LOCK_NAME)
    found: list[float] = []
    caller = threading.Thread(target=lambda: found.append(module.twice(1.5)), daemon=True)
    with other:
        caller.start()
        caller.join(timeout=1.0)
        assert caller.is_alive()
        assert found == []
    caller.join(timeout=60)
    assert found == [3.0]
    # What is compiled is called without any lock.
    with other:
        assert module.twice(2.0) == 4.0
