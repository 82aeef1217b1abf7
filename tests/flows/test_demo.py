"""The page of `mien demo` in headless Chromium, from upload to download, with nothing but this machine to talk to."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import Page, open_page
from tests.demo_workspace import demo_workspace
from tests.tasks.trained_workspace import write_photo
from tests.wav_files import hum, write_wav

DEADLINE_S = 120.0


@contextlib.contextmanager
def serving(repository: Path, folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`mien demo` as a user starts it; gives its address, and ends it by Ctrl+C."""
    script = "import sys; from flows.cli import main; sys.argv[0] = 'mien'; main()"
    command = [sys.executable, "-c", script, "demo", "--workspace", str(folder), "--port", "0", "--no-open", *options]
    process = subprocess.Popen(
        command,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield _address(process), process
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    deadline, said = time.monotonic() + DEADLINE_S, ""
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 1.0)[0]:
            line = process.stdout.readline()
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                return found.group()
            assert line, f"it ended: {said}"
    raise AssertionError(f"no address: {said}")


def drawn_pixels(page: Page) -> int:
    """Pixels of the 3D view that the face covers."""
    return page.evaluate(
        "(() => { const c = document.getElementById('view'), gl = c.getContext('webgl2');"
        " const p = new Uint8Array(4 * c.width * c.height);"
        " gl.readPixels(0, 0, c.width, c.height, gl.RGBA, gl.UNSIGNED_BYTE, p);"
        " let n = 0; for (let i = 3; i < p.length; i += 4) n += p[i] > 0; return n; })()"
    )


@pytest.mark.slow
def test_from_upload_to_download(repository: Path, tmp_path: Path) -> None:
    workspace = demo_workspace(tmp_path / "workspace")
    photo = write_photo(tmp_path / "ann.png", 300)
    speech = write_wav(tmp_path / "hello.wav", hum(1.2))
    models = ("--checkpoint", str(workspace.folder("refusion")), "--animator", str(workspace.folder("train_animator")))
    with (
        serving(repository, workspace.root, *models) as (address, _),
        open_page(address, tmp_path / "browser") as page,
    ):
        # The mean face is there before any photo, and every one of the 52 sliders moves it.
        page.wait_for("window.mien?.current()?.key === 'mean' && mien.sliders.size === 52")
        page.wait_for("mien.viewer().parts.length > 0")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert drawn_pixels(page) > 20_000
        rest = page.evaluate("mien.viewer().meanPosition()")
        moved = page.evaluate(
            "[...mien.sliders].map(([name, { input }]) => { input.value = 1; input.dispatchEvent(new Event('input'));"
            " const place = mien.viewer().meanPosition(); input.value = 0; input.dispatchEvent(new Event('input'));"
            " return [name, place]; })"
        )
        still = [name for name, place in moved if max(abs(a - b) for a, b in zip(place, rest, strict=True)) < 1e-7]
        assert still == []
        assert page.evaluate("mien.viewer().meanPosition()") == pytest.approx(rest, abs=1e-9)

        # A photo becomes a face: its overlay is shown, its shapes are those of the photo.
        page.choose_files("#photo-input", [photo])
        page.wait_for("mien.faces.length > 0 && mien.current() === mien.faces[0]")
        assert page.evaluate("document.getElementById('title').textContent") == "ann"
        page.wait_for("document.getElementById('overlay').naturalWidth > 100")
        page.wait_for("document.getElementById('photo').naturalWidth > 100")
        assert not page.evaluate("document.getElementById('comparison').hidden")

        # It can be turned, and shown without its skin.
        page.click("#clay")
        assert page.evaluate("mien.viewer().clay")
        page.evaluate("mien.viewer().turn(0.6, 0.1)")
        assert page.evaluate("mien.viewer().yaw") == pytest.approx(0.6)
        page.click("#reset")
        assert page.evaluate("mien.viewer().yaw") == 0

        # A file that is no photo is named, and the page goes on.
        page.choose_files("#photo-input", [speech])
        page.wait_for("document.querySelector('#faces .bad')?.textContent.includes('hello.wav: not_an_image')")

        # Dropped speech moves the face in time with the sound.
        page.choose_files("#speech-input", [speech])
        page.wait_for("mien.current().speech && !document.getElementById('sound').hidden")
        page.wait_for("document.getElementById('sound').readyState >= 2")
        page.evaluate("document.getElementById('sound').pause()")
        page.evaluate(
            "new Promise((done) => { const s = document.getElementById('sound');"
            " s.addEventListener('seeked', () => setTimeout(done, 50), { once: true }); s.currentTime = 0.51; })"
        )
        curves = page.evaluate("mien.current().speech.weights[25]")
        worn = page.evaluate("mien.current().speech.names.map((name) => mien.weights[name])")
        assert worn == pytest.approx(curves, abs=1e-3)
        assert max(worn) > 0.05

        # Everything comes as one archive.
        names = page.evaluate("[...document.querySelectorAll('#files a')].map((link) => link.textContent)")
        assert {"ann.glb", "ann.obj", "ann_overlay.png", "ann.json", "ann_speech.glb", "ann_speech.csv"} <= set(names)
        page.click("#everything")
        archive = tmp_path / "browser" / "downloads" / "ann.zip"
        deadline = time.monotonic() + DEADLINE_S
        while not archive.exists():
            assert time.monotonic() < deadline, list(archive.parent.iterdir())
            time.sleep(0.05)
        with zipfile.ZipFile(archive) as content:
            assert sorted(content.namelist()) == sorted(names)
            assert content.testzip() is None

        elsewhere = [found for found in page.addresses() if not found.startswith((address, "data:", "blob:"))]
        assert elsewhere == []
        assert [text for text in page.complaints() if "422" not in text] == []
    # Photos and results are deleted when the program ends.
    assert not list(workspace.root.glob("mien-*"))


def test_a_port_that_is_taken(call, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        script = "import sys; from flows.cli import main; sys.argv = sys.argv[1:]; main()"
        (tmp_path / "mien_command.py").write_text(script)
        done = call("mien_command", "mien", "demo", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}: Address already in use; choose another --port" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
