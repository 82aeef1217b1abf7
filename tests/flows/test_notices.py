"""Messages to a webhook: what they say, and that a silent one breaks nothing."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.notices import MAX_PICTURE_BYTES, notify, show_pictures, tell, tell_failure


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """Address of a server on this machine, and what it was told."""
    told: list[Any] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", told
    server.shutdown()
    server.server_close()


def failed_run(**parameters: Any) -> tuple[Any, Any, Any]:
    flow, state = (
        SimpleNamespace(name="pipeline"),
        SimpleNamespace(name="Failed", message="x StageError: ingest: no photos"),
    )
    return flow, SimpleNamespace(name="blue-fox", id="1", parameters=parameters), state


def test_a_failure_is_told_with_its_reason(webhook: tuple[str, list[Any]]) -> None:
    address, told = webhook
    tell_failure(*failed_run(webhook=address, workspace="/faces"))
    (message,) = told
    assert message["text"] == "pipeline failed: ingest: no photos"
    assert (message["flow"], message["run"], message["workspace"]) == ("pipeline", "blue-fox", "/faces")


def test_nobody_is_told_without_a_webhook(webhook: tuple[str, list[Any]]) -> None:
    tell_failure(*failed_run(webhook=None))
    tell(None, "monitor", "/faces", "drift")
    assert webhook[1] == []
    tell(webhook[0], "monitor", "/faces", "drift", version=3)
    assert webhook[1] == [{"text": "monitor: drift", "flow": "monitor", "workspace": "/faces", "version": 3}]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/nobody", "file:///etc/passwd", "nonsense"])
def test_a_webhook_that_is_not_there_breaks_nothing(address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert notify(address, {"text": "lost"}) is False
    assert address in caplog.text


def test_pictures_travel_with_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, str] = {}
    monkeypatch.setattr(
        "prefect.artifacts.create_image_artifact", lambda url, *, key, description: shown.update({key: url})
    )
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "by_yaw.png").write_bytes(b"small")
    (tmp_path / "pictures" / "error_distribution.png").write_bytes(b"x" * (MAX_PICTURE_BYTES + 1))
    show_pictures("evaluate", tmp_path)
    assert shown == {"evaluate-by-yaw": f"data:image/png;base64,{base64.b64encode(b'small').decode()}"}
    show_pictures("train_fused", tmp_path)
    assert len(shown) == 1
