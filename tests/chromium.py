"""A page in headless Chromium, driven over its debugging protocol, for tests of web pages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DEADLINE_S = 60.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    # Nothing but this machine exists for the page.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)


class Page:
    """A tab; the events that came while answers were waited for are kept."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=DEADLINE_S))
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def evaluate(self, script: str) -> Any:
        """The value of an expression, which may be a promise."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str, *, seconds: float = DEADLINE_S) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(condition)):
            status = self.evaluate("document.body?.innerText.slice(0, 600)")
            assert time.monotonic() < deadline, f"never true: {condition}; the page says: {status}"
            time.sleep(0.05)
        return value

    def choose_files(self, selector: str, paths: Sequence[Path]) -> None:
        """Give files to a file input, as a user who chooses them."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def click(self, selector: str) -> None:
        """Press the left button over the middle of an element, as a user would."""
        place = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", buttons=1, clickCount=1
            )

    def screenshot(self, path: Path, *, quality: int = 85) -> Path:
        """A picture of what is seen: JPEG or PNG, by the suffix."""
        form = {"format": "jpeg", "quality": quality} if path.suffix == ".jpg" else {"format": "png"}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **form)["data"]))
        return path

    def addresses(self) -> list[str]:
        """Everything that the page has asked for, over the network or not."""
        self.evaluate("0")
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Errors on the console, and exceptions that nobody caught."""
        self.evaluate("0")
        found = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"])[:500])
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found


@contextmanager
def open_page(address: str, scratch: Path, *, size: tuple[int, int] = (1400, 900)) -> Iterator[Page]:
    """A page at an address; downloads go to `scratch/downloads`. Skips the test where Chromium is missing."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    connect = pytest.importorskip("websockets.sync.client").connect
    profile, downloads = scratch / "profile", scratch / "downloads"
    downloads.mkdir(parents=True)
    command = [browser, *FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}", "about:blank"]
    with (scratch / "browser.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            with connect(_page_address(profile, process), max_size=None) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
                    page.send(f"{domain}.enable")
                page.send(
                    "Emulation.setDeviceMetricsOverride",
                    width=size[0],
                    height=size[1],
                    deviceScaleFactor=1,
                    mobile=False,
                )
                page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
                page.send("Page.navigate", url=address)
                yield page
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _page_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the first tab is spoken to."""
    port, deadline = profile / "DevToolsActivePort", time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the browser ended with code {process.returncode}"
        if port.is_file() and (lines := port.read_text().splitlines()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10) as answer:
                pages = [entry for entry in json.loads(answer.read()) if entry["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.05)
    raise AssertionError("the browser did not open a page")
