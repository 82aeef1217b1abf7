"""Our own Prefect server ends with what it was started for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flows.environment import prepare
from flows.server import prefect_server
from tests.local_servers import postgres


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def test_a_configured_server_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    with prefect_server(tmp_path) as address:
        assert address == "http://elsewhere/api"
    assert os.environ["PREFECT_API_URL"] == "http://elsewhere/api"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_server_runs_for_the_block_even_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    seen = []

    def fails() -> None:
        with prefect_server(tmp_path) as address:
            seen.append(address)
            assert answers(address)
            assert os.environ["PREFECT_API_URL"] == address
            raise RuntimeError("the work broke")

    with pytest.raises(RuntimeError, match="the work broke"):
        fails()
    assert not answers(seen[0])
    assert "PREFECT_API_URL" not in os.environ


@pytest.mark.slow
def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path, repository: Path) -> None:
    program = (
        "from pathlib import Path; import time\n"
        "from flows.environment import prepare; from flows.server import prefect_server\n"
        "prepare(Path())\n"
        "with prefect_server(Path()) as address:\n"
        "    print(address, flush=True); time.sleep(600)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PYTHONPATH"] = str(repository)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert answers(address)
        process.kill()
    deadline = time.monotonic() + 20
    while answers(address) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not answers(address)


def test_settings_of_the_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/somewhere")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    prepare(tmp_path)
    assert os.environ["PREFECT_HOME"] == "/somewhere"
    assert os.environ["DO_NOT_TRACK"] == "true"


@pytest.mark.slow
def test_the_server_runs_on_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    @flow
    def seven() -> int:
        return 7

    with postgres("prefect") as database:
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
        monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://{database}/prefect")
        with (
            prefect_server(tmp_path, scheduler=True) as address,
            temporary_settings({PREFECT_API_URL: address}),
            get_client(sync_client=True) as client,
        ):
            assert seven() == 7
            (run,) = client.read_flow_runs()
            assert run.state is not None
            assert run.state.is_completed()
    assert not (tmp_path / "prefect" / "prefect.db").exists()
