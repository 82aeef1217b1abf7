"""PostgreSQL and an object store on this machine, as a team would have them on another."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KEYS = {"aws_access_key_id": "mien", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(address: str, log: Path, server: subprocess.Popen[bytes], seconds: float = 400.0) -> None:
    """Until an MLflow server answers; fails with its log if it ends before, or answers nothing for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"no answer from {address}:\n{log.read_text()}")


@contextmanager
def object_store(bucket: str) -> Iterator[str]:
    """Address of a server that speaks S3 and has a bucket; skips where moto is not installed."""
    server = pytest.importorskip("moto.server", reason="needs the extra team-test")
    boto3 = pytest.importorskip("boto3", reason="needs the extra team-test")
    port = free_port()
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    try:
        address = f"http://127.0.0.1:{port}"
        boto3.client("s3", endpoint_url=address, **KEYS).create_bucket(Bucket=bucket)
        yield address
    finally:
        running.stop()


@contextmanager
def postgres(*databases: str) -> Iterator[str]:
    """Address without database of a PostgreSQL server; skips where Debian's binaries are not installed."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    place, port = binaries[-1].parent, free_port()
    # Not below pytest's folder, which nobody but its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="mien-postgres-"))
    user = _other_user(folder)
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run([*user, *command], capture_output=True, text=True, cwd="/", check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run(str(place / "initdb"), "-D", str(data), "-U", "mien", "-A", "trust", "-N", "--no-locale", "-E", "UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off -c shared_buffers=16MB"
    run(str(place / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w", "-o", options, "start")
    try:
        for database in databases:
            run(str(place / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mien", database)
        yield f"mien@127.0.0.1:{port}"
    finally:
        run(str(place / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)


def _other_user(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root; Debian's package brings a user of its own."""
    if os.geteuid() != 0:
        return []
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv to become another user")
    os.chown(folder, found.pw_uid, found.pw_gid)
    return [setpriv, f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--clear-groups"]
