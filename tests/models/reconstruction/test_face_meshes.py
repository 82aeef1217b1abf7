"""Mesh files of a face: what is in them, that the validator and a browser take them."""

from __future__ import annotations

import json
import struct
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.animation.gltf import read_glb
from models.animation.morphs import morph_targets, morph_weights, morphs_note
from models.face.camera import crop_camera, project
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.face.procedural_expressions import ARKIT_NAMES
from models.reconstruction.face_meshes import paint_face, save_face, write_face_glb, write_face_obj
from models.reconstruction.photos import PhotoFace
from models.rendering.photo_texture import TexturePainter
from tests.browser_player import pose_glb, validate_glb
from tests.photographed_face import PHOTO_PX, photo_face
from tests.tiny_face import tiny_face


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return procedural_face()


@pytest.fixture(scope="module")
def face(model: MorphableModel) -> PhotoFace:
    return photo_face(model)


@pytest.fixture(scope="module")
def files(model: MorphableModel, face: PhotoFace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    painter = TexturePainter.build(model, 256)
    for suffix in (".glb", ".obj", ".ply"):
        save_face(face, folder / f"face{suffix}", model, painter=painter)
    return folder


def tree_of(path: Path) -> dict:
    content = path.read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[20 : 20 + length])


def test_glb_is_this_face_with_52_shapes_in_metres(model: MorphableModel, face: PhotoFace, files: Path) -> None:
    found, _ = read_glb(files / "face.glb")
    assert found.target_names == ARKIT_NAMES
    neutral = model.vertices(face.coefficients.identity)[0].numpy()
    assert np.abs(found.vertices - neutral).max() < 1e-3
    tree = tree_of(files / "face.glb")
    low, high = (np.array(tree["accessors"][0][side]) for side in ("min", "max"))
    assert 0.15 < (high - low)[1] < 0.35, "a head in metres"
    weights = np.array(tree["meshes"][0]["weights"])
    assert weights[ARKIT_NAMES.index("jawOpen")] == pytest.approx(0.6)
    # Worn, the shapes give the mesh of the photo.
    worn = found.vertices + np.einsum("n,nvx->vx", weights, found.targets)
    expected = model.vertices(face.coefficients.identity, face.coefficients.expression)[0].numpy()
    assert np.abs(worn - expected).max() < 0.01
    assert tree["asset"]["copyright"] == f"face model {model.name}: {model.licence}"
    assert tree["asset"]["extras"]["face_model"]["licence"] == model.licence
    assert tree["asset"]["extras"]["shapes"] == "ARKit's 52"
    assert any("sparse" in accessor for accessor in tree["accessors"]), "shapes of parts of a face stay small"
    assert (files / "face.glb").stat().st_size < 3e6


def test_irises_of_the_photo_in_glb_and_obj(face: PhotoFace, tmp_path: Path) -> None:
    mask = deepcopy(procedural_face())
    inner = mask.part("eyes") | mask.part("mouth")
    mask.triangles = mask.triangles[~inner[mask.triangles].any(1)]
    painter, blue = TexturePainter.build(mask, 64), (0.3, 0.4, 0.6)
    texture = paint_face(face, mask, painter)
    write_face_glb(tmp_path / "face.glb", face.coefficients, mask, painter=painter, texture=texture, iris=blue)
    found, _ = read_glb(tmp_path / "face.glb")
    assert found.inner is not None
    bluest = found.inner.colours[(found.inner.colours[:, 2] - found.inner.colours[:, 0]).argmax()]
    assert np.allclose(bluest / bluest[2], (0.5, 2.0 / 3.0, 1.0), atol=0.1)
    assert tree_of(tmp_path / "face.glb")["asset"]["extras"]["iris"] == list(blue)
    write_face_obj(tmp_path / "face.obj", face.coefficients, mask, painter=painter, picture="face.png", iris=blue)
    lines = (tmp_path / "face.mtl").read_text().splitlines()
    red, _, strong = map(float, lines[lines.index("newmtl eye_left_iris") + 2].split()[1:])
    assert red / strong == pytest.approx(0.5, abs=0.1)


def test_the_skin_shows_the_photo(model: MorphableModel, face: PhotoFace, files: Path) -> None:
    found, _ = read_glb(files / "face.glb")
    assert found.skin is not None
    # Where the photo sees the surface squarely, its colours are the photo's.
    seen = face.reconstruction.mesh.vertices[0]
    pixels = project(seen[None], crop_camera(1, PHOTO_PX))[0].long().clamp(0, PHOTO_PX - 1)
    shown = face.photo[pixels[:, 1], pixels[:, 0]] / 255.0
    cheeks = (model.mean[:, 2] > model.mean[:, 2].quantile(0.8)) & model.part("skin")
    assert np.abs(found.colours[cheeks] - shown[cheeks]).mean() < 0.06


def test_obj_names_material_picture_and_licence(model: MorphableModel, files: Path) -> None:
    lines = (files / "face.obj").read_text().splitlines()
    assert f"# face model licence: {model.licence}" in lines
    assert "mtllib face.mtl" in lines
    counts = {kind: sum(line.startswith(f"{kind} ") for line in lines) for kind in ("v", "vt", "f")}
    assert counts == {"v": model.vertex_count, "vt": model.vertex_count, "f": len(model.triangles)}
    material = (files / "face.mtl").read_text()
    assert "map_Kd face_texture.png" in material
    assert model.licence in material
    with Image.open(files / "face_texture.png") as picture:
        assert picture.size == (256, 256)
    assert model.licence in (files / "face.ply").read_bytes()[:2000].decode("ascii", "replace")


def test_models_without_arkit_names_keep_their_own() -> None:
    model = tiny_face()
    names, targets = morph_targets(model)
    assert names == model.expression_names
    assert np.array_equal(targets, model.expression_basis.numpy())
    assert "not ARKit's" in morphs_note(model)["shapes"]
    expression = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    assert np.array_equal(morph_weights(model, expression), expression)


def test_another_suffix_is_refused(model: MorphableModel, face: PhotoFace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \.glb, \.obj or \.ply"):
        save_face(face, tmp_path / "face.fbx", model)


def test_the_validator_finds_nothing(files: Path) -> None:
    issues = validate_glb(files / "face.glb")
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


@pytest.mark.slow
def test_a_browser_drives_a_shape(files: Path, tmp_path: Path) -> None:
    answer, (rest, opened) = pose_glb(files / "face.glb", ["", "jawOpen:1"], tmp_path)
    assert tuple(answer["names"]) == ARKIT_NAMES
    assert answer["textured"]
    assert answer["worn"][ARKIT_NAMES.index("jawOpen")] == pytest.approx(0.6, abs=1e-6)
    assert 0.15 < answer["height_m"] < 0.35
    changed = np.abs(rest.astype(int) - opened).max(2) > 24
    rows = np.nonzero(changed.any(1))[0]
    assert changed.mean() > 0.01
    assert rows.min() > 0.45 * len(changed), "the lower half of the face moves"
