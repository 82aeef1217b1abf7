"""Child processes that do not outlive an interrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

PATIENCE = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""What an interrupted child is sent, and the seconds it then has; a stage uses the first to close what is open."""


def run_child(command: Sequence[str], *, cwd: Path) -> int:
    """Run a command and give its exit code; on an interrupt it and its own children are ended first.

    DVC ignores SIGINT while a stage runs, so the signal goes to the whole group.
    """
    with subprocess.Popen(command, cwd=cwd, start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            for kind, seconds in PATIENCE:
                try:
                    os.killpg(process.pid, kind)
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
                except ProcessLookupError:
                    pass
                break
            raise
