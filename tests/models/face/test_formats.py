from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from models.face.formats import FACE_MODELS, ICT_KEYS, OWN_KEYS, build_face_model, save_face_model
from models.face.morphable import MorphableModel


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Files are read by people without shape checking, so messages are tested without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def saved(face: MorphableModel, tmp_path: Path) -> Path:
    save_face_model(face, tmp_path / "face.npz")
    return tmp_path / "face.npz"


def changed(path: Path, **arrays: Any) -> Path:
    """The file with some arrays replaced, or left out where None."""
    with np.load(path) as file:
        data = {key: file[key] for key in file.files} | arrays
    np.savez(path, **{key: value for key, value in data.items() if value is not None})
    return path


def test_a_saved_model_comes_back(face: MorphableModel, saved: Path) -> None:
    found = build_face_model("npz", path=saved)
    assert found.content_hash() == face.content_hash()
    assert (found.name, found.licence, found.expression_names) == (face.name, face.licence, face.expression_names)


def test_identity_modes_are_cut_to_the_number_asked_for(face: MorphableModel, saved: Path) -> None:
    found = build_face_model("npz", path=saved, identity_modes=2)
    assert torch.equal(found.identity_basis, face.identity_basis[:2])


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'bfm' is unknown, expected one of procedural"):
        build_face_model("bfm")


def test_npz_needs_a_path() -> None:
    with pytest.raises(ValueError, match=r"set face_model\.path"):
        build_face_model("npz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such face model"):
        build_face_model("npz", path=tmp_path / "none.npz")


@pytest.mark.parametrize("content", ["text", "empty", "truncated", "garbled", "plain array", "pickled"])
def test_files_that_cannot_be_read_are_refused_in_one_line(saved: Path, content: str) -> None:
    whole = saved.read_bytes()
    if content == "text":
        saved.write_text("not a model")
    elif content == "empty":
        saved.write_bytes(b"")
    elif content == "truncated":
        saved.write_bytes(whole[: len(whole) // 2])
    elif content == "garbled":
        saved.write_bytes(whole[:2000] + bytes(255 - byte for byte in whole[2000:2400]) + whole[2400:])
    elif content == "plain array":
        with saved.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        changed(saved, mean=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"face\.npz: not an \.npz file without pickles") as caught:
        build_face_model("npz", path=saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["mean", "parts", "expression_names"])
def test_missing_arrays_are_named(saved: Path, key: str) -> None:
    assert key in OWN_KEYS
    with pytest.raises(ValueError, match=rf"face\.npz: keys {key} are missing, found albedo_basis"):
        build_face_model("npz", path=changed(saved, **{key: None}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("uv", np.zeros((5, 2), np.float32), r"uv has shape \(5, 2\), expected \(210, 2\)"),
        ("identity_basis", np.zeros((4, 9, 3), np.float32), r"identity_basis has shape \(4, 9, 3\)"),
        ("identity_basis", np.float32(3), "face.npz: "),
        (
            "expression_names",
            np.array(["jawOpen"]),
            r"expression_basis has shape \(3, 210, 3\), expected \(1, 210, 3\)",
        ),
        ("landmark_vertices", np.arange(60), r"landmark_vertices has shape \(60,\), expected \(68, 3\)"),
        (
            "landmark_vertices",
            np.arange(68)[:, None] + 200 + np.zeros((1, 3), int),
            "landmark_vertices holds 200 to 267, expected 0 to 209",
        ),
        ("triangles", np.full((2, 3), -1), "triangles holds -1 to -1"),
        ("parts", np.full(210, 5), "parts holds 5 to 5, expected 0 to 4"),
        ("mean", np.full((210, 3), np.nan, np.float32), "mean has values that are not finite"),
        ("uv", np.array(["text"]), "face.npz: "),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_arrays_that_do_not_fit_are_named(saved: Path, key: str, value: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_face_model("npz", path=changed(saved, **{key: value}))
    assert str(caught.value).startswith(str(saved))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def donor() -> Iterator[MorphableModel]:
    """The procedural face, built once for all tests that borrow from it."""
    built = build_face_model("procedural")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FACE_MODELS, "procedural", lambda path, modes: built)
        yield built


@pytest.fixture(scope="module")
def ict(donor: MorphableModel) -> dict[str, Any]:
    """The layout of ICT-FaceKit with few vertices: centimetres, shapes to be mixed, vertices beyond the face."""
    generator = np.random.default_rng(0)
    mean = donor.mean.numpy()[donor.landmark_vertices.numpy()].astype(np.float32) / 10
    extra = np.array([[0, 0, 5], [9, 9, 9], [9, 8, 9]], dtype=np.float32)
    return {
        "mean": np.concatenate([mean, extra]),
        "identity_basis": generator.normal(size=(6, 71, 3)).astype(np.float32),
        "expression_basis": generator.normal(size=(3, 71, 3)).astype(np.float32),
        "arkit52_names": np.array(["jawOpen", "browInnerUp"]),
        "arkit52_to_expression": np.array([[0, 0, 1], [0.5, 0.5, 0]], dtype=np.float32),
        "triangles": np.array([[0, 1, 2], [2, 3, 68], [4, 5, 69], [70, 6, 7]], dtype=np.int32),
        "landmarks68": np.arange(68, dtype=np.int32),
        "uv_per_vertex": generator.random((71, 2)).astype(np.float32),
        "n_narrow_face_vertices": np.int64(69),
        "license": np.array("MIT License\n\nCopyright …"),
    }


def test_the_ict_layout_is_converted(ict: dict[str, Any], donor: MorphableModel, tmp_path: Path) -> None:
    np.savez(tmp_path / "ict.npz", **ict)
    found = build_face_model("npz", path=tmp_path / "ict.npz", identity_modes=4)
    assert found.licence == "MIT License"
    assert found.expression_names == ("jawOpen", "browInnerUp")
    np.testing.assert_allclose(found.mean.numpy(), ict["mean"][:69] * 10, rtol=1e-6)
    np.testing.assert_allclose(found.identity_basis.numpy(), ict["identity_basis"][:4, :69] * 10, rtol=1e-6)
    shapes = ict["expression_basis"][:, :69] * 10
    np.testing.assert_allclose(found.expression_basis[0].numpy(), shapes[2], rtol=1e-5)
    np.testing.assert_allclose(found.expression_basis[1].numpy(), (shapes[0] + shapes[1]) / 2, rtol=1e-4, atol=1e-5)
    assert found.triangles.tolist() == [[0, 1, 2], [2, 3, 68]]
    # Appearance comes from the procedural face, so lips look like lips.
    own = donor.parts[donor.landmark_vertices]
    assert (found.parts[:68] == own).float().mean() > 0.7
    assert found.albedo_size == donor.albedo_size
    assert found.albedo_mean.min() > 0
    assert found.albedo_mean.max() < 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("landmarks68", None, "keys landmarks68 are missing"),
        ("landmarks68", np.arange(68) + 10, "ict.npz: .*out of bounds"),
        ("arkit52_to_expression", np.zeros((2, 4), np.float32), "ict.npz: .*convert the model again"),
        ("uv_per_vertex", np.zeros((20, 2), np.float32), r"uv has shape \(20, 2\), expected \(69, 2\)"),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_ict_arrays_that_do_not_fit_are_refused(
    ict: dict[str, Any], tmp_path: Path, key: str, value: np.ndarray | None, message: str
) -> None:
    assert key in ICT_KEYS
    np.savez(tmp_path / "ict.npz", **ict)
    with pytest.raises(ValueError, match=message):
        build_face_model("npz", path=changed(tmp_path / "ict.npz", **{key: value}))


@pytest.mark.usefixtures("donor")
def test_the_published_ict_file_is_a_face_in_millimetres(shared_data: Path) -> None:
    path = shared_data / "face_models" / "ict_facekit_face.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    found = build_face_model("npz", path=path, identity_modes=12)
    assert found.identity_size == 12
    assert found.expression_size == 52
    points = found.landmarks(found.mean[None])[0]
    # Between the outer corners of the eyes of an adult lie about 90 mm.
    assert 80 < (points[45] - points[36]).norm() < 100
    assert points[45, 0] > points[36, 0]
    assert points[27, 1] > points[8, 1]
    assert points[30, 2] > points[0, 2]
    lips, eyes = found.part("lips"), found.part("brows")
    assert found.mean[eyes, 1].mean() > found.mean[lips, 1].mean()
    redness = found.albedo_mean[:, 0] / found.albedo_mean[:, 1]
    assert redness[lips].mean() > redness[found.part("skin")].mean()
