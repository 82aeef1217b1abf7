from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.face.adapters.ict import NPZ_KEYS, REGIONS, read_ict
from models.face.formats import build_face_model
from models.face.procedural_expressions import ARKIT_NAMES
from tests.ict_files import IDENTITIES, SHAPES, known_arrays, write_folder


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    return known_arrays()


@pytest.fixture(scope="module")
def published(arrays: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("ict") / "FaceXModel", arrays)


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "FaceXModel"))


def test_the_folder_becomes_modes_in_millimetres(arrays: dict[str, Any], published: Path) -> None:
    found = read_ict(published)
    assert (found.name, found.licence, len(found.source_sha256)) == ("ict", "MIT License", 64)
    # Nothing lies beyond the narrow face in a mesh this small.
    np.testing.assert_allclose(found.mean, 10 * arrays["mean"], atol=1e-5)
    np.testing.assert_allclose(found.identity_basis, 10 * arrays["identity_basis"], atol=1e-5)
    np.testing.assert_array_equal(found.triangles, arrays["triangles"])
    np.testing.assert_array_equal(found.landmark_vertices, arrays["landmarks68"])
    assert found.uv is not None
    used = np.unique(arrays["triangles"])
    np.testing.assert_allclose(found.uv[used], arrays["uv_per_vertex"][used], atol=1e-6)


def test_expressions_take_the_52_names(arrays: dict[str, Any], published: Path) -> None:
    found = read_ict(published)
    assert found.expression_names == (*ARKIT_NAMES, "tongueCurl")
    modes = dict(zip(found.expression_names, found.expression_basis, strict=True))
    shapes = dict(zip(SHAPES, 10 * arrays["expression_basis"], strict=True))
    np.testing.assert_allclose(modes["jawOpen"], shapes["jawOpen"], atol=1e-5)
    np.testing.assert_allclose(modes["mouthSmileLeft"], shapes["mouthSmile_L"], atol=1e-5)
    np.testing.assert_allclose(modes["mouthSmileRight"], shapes["mouthSmile_R"], atol=1e-5)
    np.testing.assert_allclose(modes["browInnerUp"], shapes["browInnerUp_L"] + shapes["browInnerUp_R"], atol=1e-5)
    np.testing.assert_allclose(modes["tongueCurl"], shapes["tongueCurl"], atol=1e-5)
    assert not modes["tongueOut"].any()
    assert not modes["cheekPuff"].any()


def test_the_number_of_identity_modes_decides_what_is_read(folder: Path, arrays: dict[str, Any]) -> None:
    (folder / "identity002.obj").write_text("broken")
    found = read_ict(folder, identity_modes=2)
    np.testing.assert_allclose(found.identity_basis, 10 * arrays["identity_basis"][:2], atol=1e-5)


def test_the_hash_follows_what_was_read(folder: Path) -> None:
    before = read_ict(folder).source_sha256
    (folder / "notes.txt").write_text("not read")
    assert read_ict(folder).source_sha256 == before
    with (folder / "jawOpen.obj").open("a") as file:
        file.write("# changed\n")
    assert read_ict(folder).source_sha256 != before


def test_a_region_keeps_the_leading_vertices(
    monkeypatch: pytest.MonkeyPatch, published: Path, arrays: dict[str, Any]
) -> None:
    count = int(arrays["n_narrow_face_vertices"])
    monkeypatch.setitem(REGIONS, "narrow_face", count)
    narrow = read_ict(published)
    assert len(narrow.mean) == narrow.identity_basis.shape[1] == narrow.expression_basis.shape[1] == count
    np.testing.assert_array_equal(narrow.triangles, arrays["triangles"][:-1])
    assert len(read_ict(published, region="head").mean) == count + 3
    with pytest.raises(ValueError, match="region 'nose' is unknown, expected one of narrow_face, face, head, full"):
        read_ict(published, region="nose")


def test_eyeballs_and_teeth_are_labelled_where_the_region_holds_them(
    monkeypatch: pytest.MonkeyPatch, published: Path
) -> None:
    for name, count in {"narrow_face": 1000, "face": 2000, "head": 3000, "full": 3500}.items():
        monkeypatch.setitem(REGIONS, name, count)
    monkeypatch.setattr("models.face.adapters.ict.INNER_PARTS", ((3000, 3200, "mouth"), (3200, 3500, "eyes")))
    assert read_ict(published, region="head").parts is None
    parts = read_ict(published, region="full").parts
    assert parts is not None
    assert np.unique(parts[:3000]).tolist() == [-1]
    assert np.unique(parts[3000:3200]).tolist() == [4]
    assert np.unique(parts[3200:]).tolist() == [3]


def test_landmarks_of_the_user_count_in_the_file(folder: Path, arrays: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "points.txt"
    np.savetxt(table, arrays["mean"][arrays["landmarks68"]])
    found = read_ict(folder, landmarks=table)
    assert found.landmark_weights is not None
    places = (found.mean[found.landmark_vertices] * found.landmark_weights[..., None]).sum(1)
    np.testing.assert_allclose(places, 10 * arrays["mean"][arrays["landmarks68"]], atol=1e-3)


def rewritten(path: Path, **changes: object) -> None:
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no neutral": (lambda f: (f / "generic_neutral_mesh.obj").unlink(), r"generic_neutral_mesh\.obj: no such file"),
    "no index": (lambda f: (f / "vertex_indices.json").unlink(), r"vertex_indices\.json: no such file"),
    "no shape": (lambda f: (f / "jawOpen.obj").unlink(), r"jawOpen\.obj: no such file"),
    "no identity": (lambda f: [p.unlink() for p in f.glob("identity*")], r"no identity000\.obj"),
    "gap": (lambda f: (f / "identity001.obj").unlink(), r"identity001\.obj: no such file, but there is identity002"),
    "other mesh": (
        lambda f: (f / "identity001.obj").write_text("v 0 0 0\nv 0 1 0\n"),
        r"identity001\.obj: 2 vertices, generic_neutral_mesh\.obj has 3547",
    ),
    "nan": (
        lambda f: (f / "jawOpen.obj").write_text("v 0 0 0\nv 0 nan 0\n"),
        r"jawOpen\.obj: line 2 of `v` is not finite",
    ),
    "no mesh": (lambda f: (f / "jawOpen.obj").write_bytes(b"\x00\x01\x02"), r"jawOpen\.obj: no lines `v x y …`"),
    "not json": (lambda f: (f / "vertex_indices.json").write_text("{"), r"vertex_indices\.json: not valid JSON"),
    "list": (lambda f: (f / "vertex_indices.json").write_text("[]"), r"vertex_indices\.json: holds a list"),
    "no names": (lambda f: rewritten(f / "vertex_indices.json", expressions=None), "keys expressions are missing"),
    "path as name": (
        lambda f: rewritten(f / "vertex_indices.json", expressions=["../jawOpen"]),
        "expressions is not a list of names",
    ),
    "67 points": (
        lambda f: rewritten(f / "vertex_indices.json", idx_to_landmark_verts=list(range(67))),
        "idx_to_landmark_verts is not a list of 68",
    ),
    "points outside": (
        lambda f: rewritten(f / "vertex_indices.json", idx_to_landmark_verts=list(range(9000, 9068))),
        "landmark_vertices holds 9000 to 9067, expected 0 to 3546",
    ),
    "metres": (
        lambda f: [shrink(path) for path in f.glob("*.obj")],
        r"FaceXModel: chin to brows measures 1\.2\d+ mm, expected 70 to 250",
    ),
}


def shrink(path: Path) -> None:
    """Coordinates in another unit."""
    lines = path.read_text().splitlines()
    small = [
        "v " + " ".join(f"{0.01 * float(word):.12f}" for word in line.split()[1:]) if line.startswith("v ") else line
        for line in lines
    ]
    path.write_text("\n".join(small))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_incomplete_folder_is_refused_in_one_line(folder: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        build_face_model("ict", path=folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def test_the_npz_layout_is_converted(arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "ict.npz", **arrays)
    found = build_face_model("npz", path=tmp_path / "ict.npz", identity_modes=2)
    count = int(arrays["n_narrow_face_vertices"])
    assert found.licence == "MIT License"
    assert found.expression_names == ("jawOpen", "browInnerUp")
    np.testing.assert_allclose(found.mean.numpy(), arrays["mean"][:count] * 10, rtol=1e-6)
    np.testing.assert_allclose(found.identity_basis.numpy(), arrays["identity_basis"][:2, :count] * 10, rtol=1e-6)
    shapes = arrays["expression_basis"][:, :count] * 10
    np.testing.assert_allclose(found.expression_basis[0].numpy(), shapes[2], rtol=1e-5)
    np.testing.assert_allclose(found.expression_basis[1].numpy(), shapes[0] + shapes[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.triangles, torch.from_numpy(arrays["triangles"][:-1].astype(np.int64)))
    same = build_face_model("ict", path=tmp_path / "ict.npz", identity_modes=2)
    assert same.stamp() == found.stamp()
    assert len(found.source_sha256) == 64


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("landmarks68", None, "keys landmarks68 are missing"),
        ("landmarks68", np.arange(68) + 9000, "landmark_vertices holds 9000 to 9067, expected 0 to 3543"),
        ("arkit52_to_expression", np.zeros((2, 4), np.float32), "ict.npz: "),
        ("uv_per_vertex", np.zeros((20, 2), np.float32), r"uv has shape \(20, 2\), expected \(3544, 2\)"),
        ("identity_basis", np.full((3, 3547, 3), np.nan, np.float32), "identity_basis has values that are not finite"),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_npz_arrays_that_do_not_fit_are_refused(
    arrays: dict[str, Any], tmp_path: Path, key: str, value: np.ndarray | None, message: str
) -> None:
    assert key in NPZ_KEYS
    changed = {name: array for name, array in (arrays | {key: value}).items() if array is not None}
    np.savez(tmp_path / "ict.npz", **changed)
    for kind in ("npz", "ict"):
        with pytest.raises(ValueError, match=message) as caught:
            build_face_model(kind, path=tmp_path / "ict.npz")
        assert str(caught.value).startswith(str(tmp_path / "ict.npz"))
        assert "\n" not in str(caught.value)


def test_the_published_file_is_a_face_in_millimetres(shared_data: Path) -> None:
    path = shared_data / "face_models" / "ict_facekit_face.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    found = build_face_model("npz", path=path, identity_modes=12)
    assert (found.vertex_count, found.identity_size, found.expression_size) == (6706, 12, 52)
    points = found.landmark_mean
    # Between the outer corners of the eyes of an adult lie about 90 mm.
    assert 80 < (points[45] - points[36]).norm() < 100
    assert points[45, 0] > points[36, 0]
    assert points[27, 1] > points[8, 1]
    assert points[30, 2] > points[0, 2]
    lips, brows = found.part("lips"), found.part("brows")
    assert found.mean[brows, 1].mean() > found.mean[lips, 1].mean()
    redness = found.albedo_mean[:, 0] / found.albedo_mean[:, 1]
    assert redness[lips].mean() > redness[found.part("skin")].mean()


def test_the_full_region_has_eyes_and_teeth_of_their_own_colour(shared_data: Path) -> None:
    path = shared_data / "face_models" / "ict_facekit_full_f16.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    found = build_face_model("ict", path=path, identity_modes=1, region="full")
    assert found.vertex_count == 24591
    saturation = found.albedo_mean.amax(1) - found.albedo_mean.amin(1)
    eyeballs = torch.arange(found.vertex_count) >= 21451
    assert found.part("eyes")[eyeballs].all()
    assert saturation[eyeballs].median() < 0.5 * saturation[found.part("skin")].median()


def test_identities_are_as_many_as_files(published: Path) -> None:
    assert len(read_ict(published).identity_basis) == IDENTITIES
