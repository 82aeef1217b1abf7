"""The Prefect server of a run: the one that is configured, or one of our own that ends with the run.

Run as `python -m flows.server PORT` this file is that server.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 300
"""A new database on a slow disk takes 20 s, beside trainings on all cores some minutes."""

STOP_SECONDS = 5


@contextmanager
def prefect_server(workspace: Path, *, scheduler: bool = False, port: int | None = None) -> Iterator[str]:
    """Give the address of a Prefect API, which is also set for child processes.

    Without a configured server one is started, its database in the workspace, and stopped at the end whatever happens.
    Without a `port` it takes one that is free.
    Raises: OSError if the server does not start.
    """
    configured = os.environ.get("PREFECT_API_URL")
    if configured:
        yield configured
        return
    port = _free_port() if port is None else port
    address = f"http://127.0.0.1:{port}/api"
    log = workspace / ".mien" / "prefect-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if not scheduler:
        # As Prefect's own temporary server: the API alone, without scheduler and clean-up services.
        environment |= {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    # Its page asks this address from the browser.
    environment.setdefault("PREFECT_UI_API_URL", address)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the work first, which still reports to the server
        )
        try:
            _wait_until_healthy(process, address, log)
            os.environ["PREFECT_API_URL"] = address
            yield address
        finally:
            os.environ.pop("PREFECT_API_URL", None)
            _stop(process)


def _wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise OSError(f"Prefect's server ended with code {process.returncode} while starting; see {log}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.1)
    raise OSError(f"Prefect's server did not answer within {START_SECONDS} s; see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent(parent: int) -> None:
    # A run that is killed cannot stop its server.
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def _serve(port: int) -> None:
    import uvicorn

    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
