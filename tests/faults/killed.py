"""Work in a child process that is killed, or lives under a limit; the imports are those of the test, so it is quick."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import torch

DONE, REFUSED = 0, 7


def start(work: Callable[[], None], *, file_bytes: int | None = None) -> int:
    """Start some work in a copy of this process; gives the process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        # The threads of the parent are not there.
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        work()
        code = DONE
    except (OSError, ValueError):
        code = REFUSED
    finally:
        os._exit(code)


def ended(child: int, *, within_s: float = 120.0) -> int:
    """Exit code of a child, negative for a signal; one that hangs is killed, and the test fails."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hung")


def killed_after(work: Callable[[], None], seconds: float) -> int:
    """Exit code of work that is killed after some seconds, if it has not ended before."""
    child = start(work)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return ended(child)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Here, too, a write that would make a file larger than so many bytes breaks off in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def digests(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
