"""The page's addresses: what is answered, to whom, and how much is taken."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tasks.demo_server import demo_app


class FakeStudio:
    """Answers without networks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[Any, ...]] = []
        section = type("Section", (), {"max_image_bytes": 2**20, "max_file_bytes": 2**20})
        self.params = type("Params", (), {"ingest": section, "ingest_speech": section})
        self.reader = None

    def about(self) -> dict[str, Any]:
        return {"face_model": {"name": "none"}}

    def add_photo(self, name: str, content: bytes, *, refine: bool) -> dict[str, Any]:
        self.calls.append((name, content, refine, threading.current_thread() is threading.main_thread()))
        if content == b"bad":
            raise ValueError("not_an_image")
        if content == b"fault":
            raise RuntimeError("a shape is wrong\nsecond line")
        return {"faces": []}

    def add_speech(self, key: str, name: str, content: bytes, **options: Any) -> dict[str, Any]:
        self.calls.append((key, name, content, options))
        return {"speech": {}}

    def face(self, key: str) -> Any:
        if key != "known":
            raise ValueError("this face is not there any more")
        return type("Face", (), {"name": 'Ä "b"'})

    def file(self, key: str, name: str) -> Path:
        self.face(key)
        if name != "a.txt":
            raise ValueError("has no file of that name")
        path = self.folder / "a.txt"
        path.write_text("content")
        return path

    def bundle(self, key: str) -> bytes:
        return b"PK"


@pytest.fixture
def studio(tmp_path: Path) -> FakeStudio:
    return FakeStudio(tmp_path)


@pytest.fixture
def client(studio: FakeStudio) -> TestClient:
    return TestClient(demo_app(studio), base_url="http://127.0.0.1:7860")


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("page.js", "viewer.js", "glb.js", "style.css"):
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200
        assert "https://" not in answer.text
        assert "http://" not in answer.text
    assert client.get("/page/../demo.py").status_code == 404


def test_photos_and_speech_are_handed_on_in_a_thread(client: TestClient, studio: FakeStudio) -> None:
    assert client.post("/api/photos?name=a.png&refine=1", content=b"photo").json() == {"faces": []}
    assert studio.calls.pop() == ("a.png", b"photo", True, False)
    answer = client.post("/api/faces/known/speech?name=a.wav&emotion=joy&film=1", content=b"sound")
    assert answer.json() == {"speech": {}}
    assert studio.calls.pop() == ("known", "a.wav", b"sound", {"emotion": "joy", "style": "", "film": True})


def test_faults_are_one_line(client: TestClient) -> None:
    refused = client.post("/api/photos?name=a.png", content=b"bad")
    assert (refused.status_code, refused.json()) == (422, {"error": "a.png: not_an_image"})
    broken = client.post("/api/photos?name=a.png", content=b"fault")
    expected = {"error": "RuntimeError: a shape is wrong (a fault in Mien; please report it)"}
    assert (broken.status_code, broken.json()) == (500, expected)


def test_more_than_the_limit_is_not_taken(client: TestClient, studio: FakeStudio) -> None:
    answer = client.post("/api/photos?name=a.png", content=b"x" * (2**20 + 1))
    assert answer.status_code == 413
    assert "more than 1 MiB" in answer.json()["error"]
    assert not studio.calls


def test_other_websites_and_other_names_are_turned_away(client: TestClient, studio: FakeStudio) -> None:
    evil = client.post("/api/photos", content=b"photo", headers={"Origin": "https://evil.example"})
    assert evil.status_code == 403
    own = client.post("/api/photos", content=b"photo", headers={"Origin": "http://127.0.0.1:7860"})
    assert own.status_code == 200
    assert client.get("/api/about", headers={"Host": "evil.example"}).status_code == 400
    everybody = TestClient(demo_app(studio, hosts=("*",)), base_url="http://evil.example")
    assert everybody.get("/api/about").status_code == 200


def test_files(client: TestClient) -> None:
    assert client.get("/api/faces/known/files/a.txt").text == "content"
    assert client.get("/api/faces/known/files/b.txt").status_code == 404
    assert client.get("/api/faces/other/files/a.txt").status_code == 404
    archive = client.get("/api/faces/known/everything.zip")
    assert archive.headers["content-disposition"] == "attachment; filename=\"_ 'b'.zip\""
    assert client.get("/api/faces/other/everything.zip").status_code == 404
