"""What the page's server does with photos and speech, without a browser and without HTTP."""

from __future__ import annotations

import io
import json
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.animation.gltf import read_glb
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.artifacts import Workspace
from tasks.demo import MEAN, Studio, close_up, safe_name
from tests.demo_workspace import demo_workspace
from tests.tasks.trained_workspace import write_photo
from tests.wav_files import hum, write_wav


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return demo_workspace(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def studio(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(
        workspace,
        tmp_path_factory.mktemp("studio"),
        checkpoint=workspace.folder("refusion"),
        animator=workspace.folder("train_animator"),
        which="best",
    )


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_photo(tmp_path_factory.mktemp("photo") / "a.png", 300).read_bytes()


@pytest.fixture(scope="module")
def face(studio: Studio, photo: bytes) -> dict:
    (face,) = studio.add_photo("Ann at sea.png", photo)["faces"]
    return face


def test_a_photo_becomes_a_face_with_all_its_files(studio: Studio, face: dict) -> None:
    assert face["name"] == "Ann at sea"
    names = [entry["name"] for entry in face["files"]]
    endings = {name.removeprefix("Ann at sea") for name in names}
    assert {".glb", ".obj", ".mtl", "_texture.png", ".ply", ".json", "_overlay.png", "_depth.png"} <= endings
    for entry in face["files"]:
        assert studio.file(face["key"], entry["name"]).stat().st_size == entry["bytes"] > 0
    mesh, _ = read_glb(studio.file(face["key"], "Ann at sea.glb"))
    assert mesh.target_names == ARKIT_NAMES
    for address in (face["overlay"], face["photo"]):
        with Image.open(studio.file(face["key"], address.rsplit("/", 1)[-1])) as picture:
            assert picture.format == "JPEG"


def test_everything_in_one_archive(studio: Studio, face: dict) -> None:
    with zipfile.ZipFile(io.BytesIO(studio.bundle(face["key"]))) as archive:
        assert sorted(archive.namelist()) == sorted(entry["name"] for entry in face["files"])
        assert json.loads(archive.read("Ann at sea.json"))["photo"] == "Ann at sea.png"


def test_a_face_speaks(studio: Studio, photo: bytes, tmp_path: Path) -> None:
    key = studio.add_photo("b.png", photo)["faces"][0]["key"]
    sound = write_wav(tmp_path / "hello.wav", hum(1.0)).read_bytes()
    answer = studio.add_speech(key, "hello.wav", sound, emotion="joy")
    speech = answer["speech"]
    assert (speech["fps"], speech["names"], np.shape(speech["weights"])) == (50, list(ARKIT_NAMES), (50, 52))
    names = [entry["name"] for entry in answer["files"]]
    assert [name for name in names if "speech" in name] == [
        f"b_speech.{kind}" for kind in ("glb", "csv", "json", "wav")
    ]
    _, animation = read_glb(studio.file(key, "b_speech.glb"))
    assert animation is not None
    assert np.allclose(animation.weights, speech["weights"], atol=1e-4)
    with wave.open(str(studio.file(key, "b_speech.wav"))) as file:
        assert (file.getframerate(), file.getnframes()) == (16_000, 16_000)


def test_what_is_refused(studio: Studio, photo: bytes, face: dict) -> None:
    before = sorted(studio.folder.iterdir())
    with pytest.raises(ValueError, match="not_an_image"):
        studio.add_photo("a.png", b"no photo")
    with pytest.raises(ValueError, match="emotion"):
        studio.add_speech(face["key"], "a.wav", b"RIFF", emotion="envy")
    with pytest.raises(ValueError, match="not there any more"):
        studio.add_speech("unknown", "a.wav", b"")
    assert sorted(studio.folder.iterdir()) == before
    assert not list(studio.folder.glob("*/.sound"))
    for name in ("../../params.yaml", "params.yaml", ".sound", ""):
        with pytest.raises(ValueError, match="no file of that name"):
            studio.file(face["key"], name)


def test_old_faces_make_room(studio: Studio, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.demo.MAX_FACES", 1)
    first = studio.add_photo("first.png", photo)["faces"][0]["key"]
    second = studio.add_photo("second.png", photo)["faces"][0]["key"]
    assert list(studio.faces) == [MEAN, second]
    assert not (studio.folder / first).exists()


def test_without_trained_models_the_mean_face_is_shown(workspace: Workspace, tmp_path: Path) -> None:
    studio = Studio(workspace, tmp_path / "studio")
    about = studio.about()
    assert about["no_photos"].startswith("no champion of mien-reconstructor")
    assert "no champion of mien-animator" in about["no_speech"]
    mesh, _ = read_glb(studio.file(MEAN, "mean_face.glb"))
    assert mesh.vertices == pytest.approx(studio.model.mean.numpy(), abs=1e-3)
    with pytest.raises(ValueError, match="no champion"):
        studio.add_photo("a.png", b"")


def test_a_checkpoint_that_is_named_must_be_there(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        Studio(workspace, tmp_path / "studio", checkpoint=tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("a b.JPG", "a b.JPG"),
        ('x"><script>.png', "x___script_.png"),
        ("..", "photo"),
        ("", "photo"),
        (".png", "png"),
        ("Ünïcode 顔.jpg", "Ünïcode 顔.jpg"),
        ("a" * 200 + ".png", "a" * 76 + ".png"),
    ],
)
def test_names_lead_nowhere(name: str, safe: str) -> None:
    assert safe_name(name, "photo") == safe


def test_close_up_stays_inside_the_picture() -> None:
    picture = Image.new("RGB", (400, 200))
    assert close_up(picture, np.array([150.0, 50.0, 200.0, 100.0])).size == (100, 100)
    assert close_up(picture, np.array([0.0, 0.0, 100.0, 100.0])).size == (150, 150)
    assert close_up(picture, np.array([-50.0, -50.0, 800.0, 800.0])).size == (400, 200)
