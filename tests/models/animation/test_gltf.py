from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from models.animation.gltf import Animation, MorphFace, read_glb, vertex_normals, write_animated_glb
from models.export import write_mesh
from tests.browser_player import play_glb, validate_glb
from tests.speaking_face import NAMES, speaking_face


def morph_face() -> MorphFace:
    model = speaking_face()
    return MorphFace(
        vertices=model.mean.numpy(),
        triangles=model.triangles.numpy(),
        colours=model.albedo_mean.numpy(),
        target_names=NAMES,
        targets=model.expression_basis.numpy(),
    )


def speaking() -> Animation:
    """The jaw opens within a second; the lips close again."""
    weights = np.zeros((51, len(NAMES)), np.float32)
    weights[:, 0] = np.linspace(0.0, 1.0, 51)
    weights[:, 1] = np.linspace(0.0, 0.5, 51) ** 2
    return Animation(times_s=np.linspace(0.0, 1.0, 51, dtype=np.float32), weights=weights)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    face, animation = morph_face(), speaking()
    write_animated_glb(tmp_path / "face.glb", face, animation)
    found, played = read_glb(tmp_path / "face.glb")
    assert found.target_names == NAMES
    assert np.allclose(found.vertices, face.vertices, atol=1e-4)
    assert np.allclose(found.targets, face.targets, atol=1e-5)
    assert np.allclose(found.colours, face.colours, atol=1e-3)
    assert np.array_equal(found.triangles, face.triangles)
    assert played is not None
    assert np.array_equal(played.weights, animation.weights)
    assert np.array_equal(played.times_s, animation.times_s)


def test_a_mesh_of_the_other_writer_is_read_in_millimetres(tmp_path: Path) -> None:
    face = morph_face()
    write_mesh(tmp_path / "mesh.glb", face.vertices, face.triangles, colours=face.colours)
    found, animation = read_glb(tmp_path / "mesh.glb")
    assert np.allclose(found.vertices, face.vertices, atol=1e-4)
    assert (found.target_names, animation) == ((), None)


def test_sparse_accessors_are_read(tmp_path: Path) -> None:
    write_animated_glb(tmp_path / "face.glb", morph_face())
    content = (tmp_path / "face.glb").read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    tree, binary = json.loads(content[20 : 20 + length]), content[20 + length + 8 :]
    place = tree["meshes"][0]["primitives"][0]["targets"][0]["POSITION"]
    accessor = tree["accessors"][place]
    views = tree["bufferViews"]
    views += [{"buffer": 0, "byteOffset": len(binary), "byteLength": 4}]
    views += [{"buffer": 0, "byteOffset": len(binary) + 4, "byteLength": 12}]
    accessor["sparse"] = {
        "count": 1,
        "indices": {"bufferView": len(views) - 2, "componentType": 5125},
        "values": {"bufferView": len(views) - 1},
    }
    binary += struct.pack("<Ifff", 3, 0.001, 0.002, 0.003)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    whole = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
    (tmp_path / "sparse.glb").write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(whole)) + whole)
    found, _ = read_glb(tmp_path / "sparse.glb")
    assert found.targets[0, 3] == pytest.approx([1.0, 2.0, 3.0])
    assert np.allclose(found.targets[1:], morph_face().targets[1:], atol=1e-5)


@pytest.mark.parametrize("damage", [b"\1\0\xa0\x7f", b"\0\0\x80\xff", b"\0\0\x70\x7f"], ids=["nan", "inf", "huge"])
def test_numbers_that_no_vertex_has_are_refused(tmp_path: Path, damage: bytes) -> None:
    write_animated_glb(tmp_path / "face.glb", morph_face())
    content = (tmp_path / "face.glb").read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    tree = json.loads(content[20 : 20 + length])
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    start = 28 + length + tree["bufferViews"][accessor["bufferView"]].get("byteOffset", 0)
    (tmp_path / "face.glb").write_bytes(content[:start] + damage + content[start + 4 :])
    with pytest.raises(ValueError, match=r"accessor \d+ holds numbers that are not finite or beyond 1e\+30"):
        read_glb(tmp_path / "face.glb")


def test_normals_of_a_square() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 5, 5]])
    normals = vertex_normals(vertices, np.array([[0, 1, 2], [0, 2, 3]]))
    assert np.allclose(normals, [[0, 0, 1]] * 5)


def test_weights_must_fit_the_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights of shape \(51, 6\) for 7 names"):
        write_animated_glb(tmp_path / "a.glb", morph_face(), Animation(speaking().times_s, speaking().weights[:, :6]))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.glb").write_bytes(b"\xff\xd8\xff" * 20)
    with pytest.raises(ValueError, match="not a binary glTF file"):
        read_glb(tmp_path / "photo.glb")
    write_animated_glb(tmp_path / "face.glb", morph_face())
    content = (tmp_path / "face.glb").read_bytes()
    (tmp_path / "short.glb").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="ends before its data does"):
        read_glb(tmp_path / "short.glb")
    length = struct.unpack_from("<I", content, 12)[0]
    (tmp_path / "text.glb").write_bytes(content[:20] + b"x" * length + content[20 + length :])
    with pytest.raises(ValueError, match="JSON cannot be read"):
        read_glb(tmp_path / "text.glb")


def test_the_validator_finds_no_errors(tmp_path: Path) -> None:
    write_animated_glb(tmp_path / "face.glb", morph_face(), speaking(), copyright_line="CC0", extras={"comment": "x"})
    issues = validate_glb(tmp_path / "face.glb")
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


@pytest.mark.slow
def test_the_animation_plays_in_a_browser(tmp_path: Path) -> None:
    write_animated_glb(tmp_path / "face.glb", morph_face(), speaking())
    answer, (shut, half, again) = play_glb(tmp_path / "face.glb", [0.0, 0.5, 0.0], tmp_path)
    assert answer["duration"] == pytest.approx(1.0)
    assert set(answer["names"]) == set(NAMES)
    assert half.weights["jawOpen"] == pytest.approx(0.5, abs=0.01)
    assert half.weights["mouthClose"] == pytest.approx(0.0625, abs=0.01)
    changed = np.abs(shut.picture.astype(int) - half.picture).max(2) > 24
    rows = np.nonzero(changed.any(1))[0]
    # The lower half of the face moves, the upper one stays, and what is played back is what was there before.
    assert changed.mean() > 0.01
    assert rows.min() > 0.45 * len(changed)
    assert np.array_equal(shut.picture, again.picture)
