from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.animation.gltf import MorphFace, Skin, write_animated_glb
from models.export import write_mesh
from models.face.inner_parts import InnerParts
from models.face.inner_shapes import IRIS, Piece
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.faces_to_animate import open_face, with_arkit_shapes
from tests.speaking_face import speaking_face

MODEL = speaking_face()


def document(**changes: object) -> dict:
    coefficients = {"identity": [1.0, -2.0], "albedo": [0.5]}
    return {"face_model": MODEL.stamp(), "coefficients": {**coefficients, **changes}}


def test_the_mean_face() -> None:
    face, stamp = open_face(None, MODEL)
    assert np.array_equal(face.vertices, MODEL.mean.numpy())
    assert face.target_names == ARKIT_NAMES
    assert stamp == MODEL.stamp()


def test_a_reconstructed_person_without_its_expression(tmp_path: Path) -> None:
    (tmp_path / "face.json").write_text(json.dumps(document()))
    face, _ = open_face(tmp_path / "face.json", MODEL)
    expected = MODEL.mean + MODEL.identity_basis[0] - 2.0 * MODEL.identity_basis[1]
    assert np.allclose(face.vertices, expected.numpy(), atol=1e-4)
    assert np.allclose(face.colours, (MODEL.albedo_mean + 0.025).numpy(), atol=1e-5)


def test_irises_stand_in_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "tasks.faces_to_animate.make_inner_parts", lambda *_, iris, **__: seen.append(iris)
    )  # fmt: skip
    path = tmp_path / "face.json"
    path.write_text(json.dumps({**document(), "iris": {"rgb": [0.3, 0.4, 0.6], "confidence": 1.0}}))
    open_face(path, MODEL)
    path.write_text(json.dumps(document()))
    open_face(path, MODEL)
    assert seen == [(0.3, 0.4, 0.6), IRIS]
    for wrong in ({"rgb": [0.3, 0.4]}, {"rgb": [0.3, 0.4, 1e400]}, {"rgb": "red"}, [], None):
        path.write_text(json.dumps({**document(), "iris": wrong}))
        with pytest.raises(ValueError, match=r"not the \.json of a face"):
            open_face(path, MODEL)


def test_documents_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "face.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"not the \.json of a face"):
        open_face(path, MODEL)
    path.write_text(json.dumps({**document(), "face_model": {"name": "ict", "hash": "0123"}}))
    with pytest.raises(ValueError, match=r"belongs to the face model ict \(0123\), expected speaking"):
        open_face(path, MODEL)
    path.write_text(json.dumps(document(identity=[1.0])))
    with pytest.raises(ValueError, match="1 identity coefficients, expected 2"):
        open_face(path, MODEL)


def test_a_mesh_in_our_topology(tmp_path: Path) -> None:
    moved = MODEL.mean.numpy() + 1.0
    write_mesh(tmp_path / "face.glb", moved, MODEL.triangles.numpy(), colours=MODEL.albedo_mean.numpy())
    face, _ = open_face(tmp_path / "face.glb", MODEL)
    assert np.allclose(face.vertices, moved, atol=1e-4)
    assert face.target_names == ARKIT_NAMES
    write_mesh(tmp_path / "less.glb", moved[:67], np.array([[0, 1, 2]]), colours=MODEL.albedo_mean.numpy()[:67])
    with pytest.raises(ValueError, match="67 vertices and no morph targets"):
        open_face(tmp_path / "less.glb", MODEL)


def test_a_foreign_head_with_shapes_of_other_spelling(tmp_path: Path) -> None:
    names = ("head.JawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthSmile_L", "eyeBlink_R", "tail")
    targets = np.arange(7, dtype=np.float32)[:, None, None] * np.ones((7, 68, 3), np.float32)
    plain = MorphFace(MODEL.mean.numpy(), MODEL.triangles.numpy(), MODEL.albedo_mean.numpy(), names, targets)
    write_animated_glb(tmp_path / "head.glb", plain)
    face, stamp = open_face(tmp_path / "head.glb", MODEL)
    activity = face.targets.mean((1, 2))
    assert activity[ARKIT_NAMES.index("mouthSmileLeft")] == pytest.approx(4.0, abs=1e-4)
    assert activity[ARKIT_NAMES.index("eyeBlinkRight")] == pytest.approx(5.0, abs=1e-4)
    assert np.count_nonzero(activity) == 5
    assert stamp == {}
    with pytest.raises(ValueError, match="no morph targets jawOpen, mouthClose among 4"):
        with_arkit_shapes(replace(plain, target_names=names[2:6], targets=targets[2:6]), tmp_path / "head.glb")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such face"):
        open_face(tmp_path / "face.json", MODEL)
    (tmp_path / "face.obj").write_text("v 0 0 0")
    with pytest.raises(ValueError, match="unknown kind of face"):
        open_face(tmp_path / "face.obj", MODEL)


def test_a_glb_of_ours_brings_its_skin_its_eyes_and_its_licence(tmp_path: Path) -> None:
    mean, triangles = MODEL.mean.numpy(), MODEL.triangles.numpy()
    targets = np.arange(52, dtype=np.float32)[:, None, None] * np.ones((52, len(mean), 3), np.float32)
    points = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], np.float32)
    moved = np.arange(52, dtype=np.float32)[:, None, None] * np.ones((52, 3, 3), np.float32)
    colours = np.full((3, 3), 0.5, np.float32)
    piece = Piece("teeth", "teeth", (0.5, 0.5, 0.5), 0.3, np.array([[0, 1, 2]]))
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 100, 50)).save(picture, "PNG")
    skin = Skin(np.zeros((len(mean), 2), np.float32), picture.getvalue(), np.zeros(len(triangles), bool))
    inner = InnerParts(points, moved, colours, (piece,))
    face = MorphFace(mean, triangles, np.zeros_like(mean), ARKIT_NAMES[::-1], targets, skin, inner)
    write_animated_glb(tmp_path / "ann.glb", face, extras={"face_model": MODEL.stamp()})
    found, stamp = open_face(tmp_path / "ann.glb", MODEL)
    assert stamp == MODEL.stamp()
    assert found.skin is not None
    assert np.allclose(found.colours, np.array([200, 100, 50]) / 255.0, atol=0.01)
    assert found.inner is not None
    # The shapes were in the opposite order, for the face as for what is in it.
    assert np.allclose(found.inner.targets[0], 51.0, atol=1e-3)
    assert np.allclose(found.targets[0], 51.0, atol=1e-3)
