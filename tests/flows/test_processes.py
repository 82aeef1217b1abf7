"""An interrupted run leaves no child behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import processes
from flows.processes import run_child


@pytest.fixture(autouse=True)
def _interrupts_arrive() -> Iterator[None]:
    # A shell starts background jobs with interrupts ignored, and Python leaves it at that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_exit_code_is_passed_on(tmp_path: Path) -> None:
    assert run_child([sys.executable, "-c", "raise SystemExit(7)"], cwd=tmp_path) == 7


def test_an_interrupt_reaches_the_children_of_the_child(tmp_path: Path) -> None:
    # Like DVC: the child itself ignores the signal, and waits for a stage that does not.
    program = "import signal, subprocess; signal.signal(signal.SIGINT, signal.SIG_IGN); subprocess.call(['./stage'])"
    stage = tmp_path / "stage"
    stage.write_text(
        f"#!{sys.executable}\n"
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "open('started', 'w').close()\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    open('interrupted', 'w').close()\n"
    )
    stage.chmod(0o755)

    def interrupt() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", program], cwd=tmp_path)
    assert (tmp_path / "interrupted").exists()
    assert time.monotonic() - started < 15


def test_a_grandchild_that_outlives_the_child_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", ((signal.SIGINT, 1.0), (signal.SIGTERM, 10.0)))
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); open('started', 'w'); time.sleep(60)"
    program = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {deaf!r}])\n"
    program += "open('pid', 'w').write(str(p.pid)); time.sleep(60)"

    def interrupt() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        processes.run_child([sys.executable, "-c", program], cwd=tmp_path)
    grandchild = int((tmp_path / "pid").read_text())
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(grandchild)], capture_output=True, text=True, check=False
    ).stdout
    # Gone, or a zombie where nobody reaps orphans.
    assert state.strip() in ("", "Z")
