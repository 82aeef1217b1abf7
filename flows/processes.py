"""Child processes that do not outlive an interrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PATIENCE = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""What an interrupted child is sent, and the seconds it then has; a stage uses the first to close what is open."""


def run_child(command: Sequence[str], *, cwd: Path, timeout_s: float | None = None) -> int:
    """Run a command and give its exit code; on an interrupt it and its own children are ended first.

    Raises: TimeoutError if it takes longer than `timeout_s`; then it was ended, too.
    """
    with subprocess.Popen(command, cwd=cwd, start_new_session=True) as process:
        try:
            try:
                return process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"took longer than {timeout_s:g} s and was ended") from None
        except BaseException:
            # DVC ignores SIGINT while a stage runs, so the signal goes to the whole group.
            for kind, seconds in PATIENCE:
                if _group_ended(process, kind, seconds):
                    break
            raise


def _group_ended(process: subprocess.Popen[bytes], kind: signal.Signals, seconds: float) -> bool:
    """Send a signal to all processes of a group and wait for them; the first may end before the others."""
    deadline = time.monotonic() + seconds
    try:
        os.killpg(process.pid, kind)
        while time.monotonic() < deadline:
            process.poll()  # an ended child counts as a member until it is reaped
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        return True
    return False
