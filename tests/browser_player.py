"""Chromium with three.js, and the Khronos validator, for tests of animated GLB files; skips where they are missing."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).with_name("browser")
PACKAGES = FOLDER.parent.parent / ".node" / "node_modules"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DEADLINE_S = 180.0

VALIDATE = """
const fs = require("fs"), validator = require("gltf-validator");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))
  .then((report) => console.log(JSON.stringify(report.issues)));
"""


@dataclass(frozen=True)
class PlayedFrame:
    """What the browser showed at one time."""

    weights: dict[str, float]
    picture: np.ndarray


def node_packages(*names: str) -> Path:
    """The folder with the named packages; skips the test where one or node is missing."""
    folder = Path(os.environ.get("MIEN_NODE_MODULES", PACKAGES))
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing or shutil.which("node") is None:
        pytest.skip(f"needs node with {', '.join(missing or names)}: run `make browser`")
    return folder


def validate_glb(path: Path) -> dict[str, Any]:
    """Issues that Khronos' validator finds."""
    folder = node_packages("gltf-validator")
    answer = subprocess.run(
        ["node", "-e", VALIDATE, str(path.resolve())],
        env={**os.environ, "NODE_PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    return json.loads(answer.stdout)


def play_glb(path: Path, times_s: list[float], scratch: Path) -> tuple[dict[str, Any], list[PlayedFrame]]:
    """Load a GLB with three.js in headless Chromium, play its animation, and return what is seen at some times."""
    times = ",".join(f"{time:g}" for time in times_s)
    answer = show_page("player.html", f"times={times}", path, scratch)
    frames = [PlayedFrame(frame["weights"], _pixels(frame["picture"])) for frame in answer["frames"]]
    return answer, frames


def pose_glb(
    path: Path, poses: list[str], scratch: Path, *, more: str = ""
) -> tuple[dict[str, Any], list[np.ndarray]]:  # fmt: skip
    """Load a GLB with three.js in headless Chromium, set its morph targets, and return what is seen.

    A pose is `jawOpen:1,mouthClose:0.5`, or `worn` for the weights in the file; `more` goes into the address.
    """
    answer = show_page("morphs.html", f"poses={';'.join(poses)}{more}", path, scratch)
    return answer, [_pixels(picture) for picture in answer["pictures"]]


def show_page(page: str, query: str, path: Path, scratch: Path) -> dict[str, Any]:
    """Open a page of tests/browser with a GLB, and return what it reports."""
    folder = node_packages("three")
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    received: list[dict[str, Any]] = []
    arrived = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, address: str) -> str:
            plain = address.split("?")[0]
            if plain.startswith("/node_modules/"):
                return str(folder / plain.removeprefix("/node_modules/"))
            return str(path.resolve() if plain == "/face.glb" else FOLDER / plain.lstrip("/"))

        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{page}?file=/face.glb&{query}"
        flags = ["--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        with (scratch / "browser.log").open("w") as log:
            process = subprocess.Popen(
                [browser, *flags, f"--user-data-dir={scratch / 'profile'}", address],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                came = arrived.wait(DEADLINE_S)
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                server.shutdown()
    assert came, (scratch / "browser.log").read_text()[-2000:]
    (answer,) = received
    assert "error" not in answer, answer["error"]
    return answer


def _pixels(address: str) -> np.ndarray:
    content = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
