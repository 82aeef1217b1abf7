"""The registered version served by MLflow itself, far from the repository: batches, base64, and wrong input."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Workspace, read_json
from tests.local_servers import free_port
from tests.tasks.trained_workspace import write_photo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(registered: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `mlflow models serve` with the champion, in a folder of its own without our code on the path."""
    folder, port = tmp_path_factory.mktemp("elsewhere"), free_port()
    uri = read_json(registered.folder("register") / "summary.json")["tracking_uri"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": uri, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    command = [sys.executable, "-P", "-m", "mlflow", "models", "serve", "-m", "models:/mien-reconstructor@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 400
            while ask(f"http://127.0.0.1:{port}/ping")[0] != 200:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def ask(address: str, content: Any = None) -> tuple[int, Any]:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if content is not None else text
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0, ""


def test_a_batch_of_photos_in_base64(served: str, tmp_path: Path) -> None:
    photo = base64.b64encode(write_photo(tmp_path / "face.png").read_bytes()).decode()
    records = [{"image": photo}, {"image": base64.b64encode(b"no photo").decode()}, {"image": photo}]
    status, answer = ask(served, {"dataframe_records": records, "params": {"triangles": True}})
    assert status == 200, answer
    first, refused, third = answer["predictions"]
    assert first["error"] is None
    assert len(first["model_vertices"]) == 210
    assert len(first["triangles"]) == 364
    assert third["model_vertices"] == first["model_vertices"]
    assert refused["error"].startswith("image: not an image")
    assert refused["model_vertices"] is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"dataframe_records": [{"photo": "x"}]}, "image"),
        ({"dataframe_records": [{"image": "x"}], "params": {"triangles": "many"}}, "triangles"),
        ({"photos": []}, "dataframe_split"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(served: str, content: Any, reason: str) -> None:
    status, answer = ask(served, content)
    assert status == 400
    assert reason in answer
