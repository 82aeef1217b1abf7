from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from models.face.adapters.assemble import assemble
from models.face.adapters.flame import JOINT_MODES, JOINT_NAMES, KEYS, read_flame
from models.face.adapters.landmarks import LandmarksFoundWarning
from models.face.adapters.source import file_sha256
from models.face.formats import build_face_model, save_face_model
from models.face.morphable import MorphableModel
from models.types import PART_NAMES
from tests.flame_file import (
    JAW_HINGE_MM,
    donor,
    embedding,
    flame_arrays,
    write_flame_npz,
    write_flame_pickle,
    write_python2_pickle,
)


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Files are read by people without shape checking, so messages are tested without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def write_embedding(folder: Path) -> Path:
    """`landmark_embedding.npy` as it comes with FLAME: a pickled dictionary."""
    faces, coordinates = embedding()
    path = folder / "landmark_embedding.npy"
    content = {"full_lmk_faces_idx": faces[None], "full_lmk_bary_coords": coordinates[None]}
    np.save(path, content, allow_pickle=True)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def flame_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flame")
    write_embedding(folder)
    return write_flame_pickle(folder / "generic_model.pkl")


@pytest.fixture(scope="module")
def model(flame_pickle: Path) -> MorphableModel:
    return assemble(read_flame(flame_pickle))


def small(**changes: Any) -> dict[str, Any]:
    """Arrays of a model of twelve vertices, for files that are refused before anybody looks at the face."""
    stream = np.random.default_rng(0)
    parents = np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.uint32)
    arrays: dict[str, Any] = {
        "v_template": stream.normal(size=(12, 3)),
        "f": stream.integers(0, 12, (9, 3)).astype(np.uint32),
        "shapedirs": np.zeros((12, 3, 400)),
        "posedirs": np.zeros((12, 3, 36)),
        "J_regressor": np.full((5, 12), 1 / 12),
        "weights": np.full((12, 5), 0.2),
        "kintree_table": parents,
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def test_units_axes_and_modes(model: MorphableModel) -> None:
    face = donor()
    torch.testing.assert_close(model.mean, face.mean, atol=1e-3, rtol=0)
    assert torch.equal(model.triangles, face.triangles)
    assert (model.identity_size, model.expression_size) == (300, 50 + len(JOINT_MODES))
    assert model.expression_names[49:51] == ("expression49", "jawOpen")
    torch.testing.assert_close(model.identity_basis[:40], face.identity_basis, atol=1e-3, rtol=0)
    assert not model.identity_basis[40:].any()
    torch.testing.assert_close(model.expression_basis[:50], face.expression_basis[:50], atol=1e-3, rtol=0)


def test_identity_and_expression_modes_are_cut_to_the_numbers_asked_for(flame_pickle: Path) -> None:
    found = read_flame(flame_pickle, identity_modes=7, expression_modes=3)
    assert len(found.identity_basis) == 7
    assert found.expression_names[:4] == ("expression00", "expression01", "expression02", "jawOpen")
    assert len(found.expression_basis) == 3 + len(JOINT_MODES)


def test_the_stamp_names_the_file(model: MorphableModel, flame_pickle: Path) -> None:
    assert model.source_sha256 == file_sha256(flame_pickle)
    assert model.name == "flame"
    assert "Max Planck" in model.licence


def test_a_pickle_and_an_npz_hold_the_same_model(model: MorphableModel, tmp_path: Path) -> None:
    write_embedding(tmp_path)
    found = assemble(read_flame(write_flame_npz(tmp_path / "flame2023.npz")))
    assert found.content_hash() == model.content_hash()
    assert found.source_sha256 != model.source_sha256


def test_landmarks_lie_within_their_triangles(model: MorphableModel) -> None:
    faces, coordinates = embedding()
    corners = donor().mean.numpy()[donor().triangles.numpy()[faces]]
    np.testing.assert_allclose(model.landmark_mean.numpy(), (corners * coordinates[..., None]).sum(1), atol=1e-3)


def test_modes_of_joints_are_the_exact_displacement_of_the_mean(model: MorphableModel) -> None:
    identity, expression = torch.zeros(1, model.identity_size), torch.zeros(1, model.expression_size)
    for name, (joint, rotation) in JOINT_MODES.items():
        turned = torch.zeros(1, 5, 3)
        turned[0, JOINT_NAMES.index(joint)] = torch.tensor(rotation)
        posed = model.skinning.pose(model, identity, expression, turned)[0]
        mode = model.expression_basis[model.expression_names.index(name)]
        torch.testing.assert_close(model.mean + mode, posed, atol=1e-3, rtol=0)
        named = expression.clone()
        named[0, model.expression_names.index(name)] = 1.0
        torch.testing.assert_close(model.skinning.pose(model, identity, named)[0], posed, atol=1e-3, rtol=0)


def test_what_hangs_on_the_jaw_alone_turns_about_its_joint(flame_pickle: Path, tmp_path: Path) -> None:
    write_embedding(tmp_path)
    posedirs = np.zeros((donor().vertex_count, 3, 36))
    found = read_flame(write_flame_npz(tmp_path / "plain.npz", posedirs=posedirs))
    mode = found.expression_basis[found.expression_names.index("jawOpen")]
    weights = flame_arrays()["weights"]
    follows, stays = weights[:, 2] > 0.999, weights[:, 2] == 0
    turn = Rotation.from_rotvec([0.35, 0.0, 0.0]).as_matrix()
    hinge = found.skinning.joints(torch.from_numpy(found.mean)[None])[0, 2].numpy()
    # The pair of vertices that makes the joint lies within a few millimetres of it.
    assert np.linalg.norm(hinge - JAW_HINGE_MM) < 15
    expected = (found.mean[follows] - hinge) @ turn.T + hinge - found.mean[follows]
    np.testing.assert_allclose(mode[follows], expected, atol=0.05)
    np.testing.assert_allclose(mode[stays], 0.0, atol=1e-4)
    assert follows.sum() > 50


@pytest.mark.parametrize(
    ("name", "axis", "sign"),
    [
        ("jawOpen", 1, -1),
        ("jawLeft", 0, 1),
        ("jawRight", 0, -1),
    ],
)
def test_the_chin_goes_where_the_name_says(model: MorphableModel, name: str, axis: int, sign: int) -> None:
    chin = model.landmark_expression_basis[model.expression_names.index(name), 8]
    assert sign * chin[axis] > 5


@pytest.mark.parametrize(
    ("motion", "axis", "left", "right"), [("Up", 1, 1, 1), ("Down", 1, -1, -1), ("In", 0, -1, 1), ("Out", 0, 1, -1)]
)
def test_the_pupils_go_where_the_name_says(
    model: MorphableModel, motion: str, axis: int, left: int, right: int
) -> None:
    for side, eye_sign, direction in (("Left", 1, left), ("Right", -1, right)):
        mode = model.expression_basis[model.expression_names.index(f"eyeLook{motion}{side}")]
        eye = model.part("eyes") & (model.mean[:, 0] * eye_sign > 0)
        assert not mode[~eye].norm(dim=1).gt(1e-3).any()
        pupil = model.mean[:, 2].masked_fill(~eye, -torch.inf).argmax()
        assert direction * mode[pupil, axis] > 1


def test_a_model_without_eyeballs_has_no_modes_for_them(tmp_path: Path) -> None:
    write_embedding(tmp_path)
    weights = flame_arrays(eyeballs=False)["weights"]
    found = read_flame(write_flame_npz(tmp_path / "no_eyes.npz", weights=weights))
    assert found.expression_names[50:] == ("jawOpen", "jawLeft", "jawRight")


def test_eyeballs_are_eyes_and_have_their_colours(model: MorphableModel) -> None:
    assert torch.equal(model.part("eyes"), donor().part("eyes"))
    eyes = model.part("eyes")
    brightness = model.albedo_mean.mean(1)
    for side in (1, -1):
        eye = eyes & (model.mean[:, 0] * side > 0)
        pupil = model.mean[model.mean[:, 2].masked_fill(~eye, -torch.inf).argmax()]
        distance = (model.mean - pupil).norm(dim=1)
        assert brightness[eye & (distance < 1.5)].max() < 0.2
        assert brightness[eye & (distance > 8.0)].mean() > 0.5


def test_masks_beside_the_model_say_what_is_lip_and_eye(flame_pickle: Path, tmp_path: Path) -> None:
    face = donor()
    path = tmp_path / "generic_model.pkl"
    path.hardlink_to(flame_pickle)
    write_embedding(tmp_path)
    outer = {8, 9, 10}
    masks = {
        "lips": np.array(sorted(outer)),
        "left_eyeball": np.flatnonzero(face.part("eyes").numpy() & (face.mean[:, 0].numpy() > 0)),
        "right_eyeball": np.flatnonzero(face.part("eyes").numpy() & (face.mean[:, 0].numpy() < 0)),
        "eye_region": np.flatnonzero(face.part("brows").numpy()),
        "forehead": np.array([], dtype=np.int64),
        "nose": np.array([1]),
    }
    write_python2_pickle(masks, tmp_path / "FLAME_masks.pkl")
    found = assemble(read_flame(path))
    assert set(torch.nonzero(found.part("lips"))[:, 0].tolist()) == outer
    assert torch.equal(found.part("eyes"), face.part("eyes"))
    assert not (found.part("brows") & ~face.part("brows")).any()
    assert (found.part("brows") & face.part("brows")).sum() > 0.8 * face.part("brows").sum()
    write_python2_pickle(masks | {"lips": np.array([10**6])}, tmp_path / "FLAME_masks.pkl")
    with pytest.raises(ValueError, match=r"FLAME_masks\.pkl: lips does not hold vertices 0 to 3543"):
        read_flame(path)
    write_python2_pickle({"lips": masks["lips"]}, tmp_path / "FLAME_masks.pkl")
    with pytest.raises(ValueError, match=r"FLAME_masks\.pkl: keys left_eyeball, right_eyeball"):
        read_flame(path)


def test_uv_comes_from_the_template_beside_the_model(flame_pickle: Path, tmp_path: Path) -> None:
    face = donor()
    path = tmp_path / "generic_model.pkl"
    path.hardlink_to(flame_pickle)
    write_embedding(tmp_path)
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in face.mean.tolist()]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in face.uv.tolist()]
    lines += ["f " + " ".join(f"{corner + 1}/{corner + 1}" for corner in row) for row in face.triangles.tolist()]
    (tmp_path / "head_template.obj").write_text("\n".join(lines))
    uv = read_flame(path).uv
    used = face.triangles.unique().numpy()
    assert uv is not None
    np.testing.assert_allclose(uv[used], face.uv.numpy()[used], atol=1e-5)
    (tmp_path / "head_template.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(ValueError, match=r"head_template\.obj: 3 vertices, expected 3544"):
        read_flame(path)


@pytest.fixture
def bare(flame_pickle: Path, tmp_path: Path) -> Path:
    """The model with nothing beside it."""
    path = tmp_path / "generic_model.pkl"
    path.hardlink_to(flame_pickle)
    return path


def points(found: Any) -> np.ndarray:
    return (found.mean[found.landmark_vertices] * found.landmark_weights[..., None]).sum(1)


def test_51_points_and_the_contour_of_the_frontal_view(bare: Path, model: MorphableModel) -> None:
    faces, coordinates = embedding()
    contour = {"lmk_face_idx": np.stack([faces[:17], faces[:17] * 0]), "lmk_b_coords": np.stack([coordinates[:17]] * 2)}
    write_python2_pickle(
        {"lmk_face_idx": faces[17:].astype(np.uint32), "lmk_b_coords": coordinates[17:]},
        bare.parent / "flame_static_embedding.pkl",
    )
    np.save(bare.parent / "flame_dynamic_embedding.npy", contour, allow_pickle=True)  # type: ignore[arg-type]
    np.testing.assert_allclose(points(read_flame(bare)), model.landmark_mean.numpy(), atol=1e-3)


def test_51_points_without_a_contour_have_it_searched_for(bare: Path, model: MorphableModel) -> None:
    faces, coordinates = embedding()
    static = {"lmk_face_idx": faces[17:], "lmk_b_coords": coordinates[17:]}
    write_python2_pickle(static, bare.parent / "flame_static_embedding.pkl")
    with pytest.warns(LandmarksFoundWarning):
        found = points(read_flame(bare))
    np.testing.assert_allclose(found[17:], model.landmark_mean[17:].numpy(), atol=1e-3)
    assert np.linalg.norm(found[:17] - model.landmark_mean[:17].numpy(), axis=1).max() < 10


def test_without_any_table_the_points_are_searched_for(bare: Path, model: MorphableModel) -> None:
    with pytest.warns(LandmarksFoundWarning):
        found = read_flame(bare)
    assert found.landmark_weights is None
    gaps = np.linalg.norm(found.mean[found.landmark_vertices] - model.landmark_mean.numpy(), axis=1)
    assert np.median(gaps) < 5


def test_landmarks_of_the_user_come_before_those_beside_the_model(flame_pickle: Path, tmp_path: Path) -> None:
    chosen = donor().landmark_vertices.numpy()[::-1]
    np.savetxt(tmp_path / "mine.txt", chosen, fmt="%d")
    found = read_flame(flame_pickle, landmarks=tmp_path / "mine.txt")
    np.testing.assert_array_equal(found.landmark_vertices, chosen)
    in_metres = donor().mean.numpy()[chosen] / 1000
    np.savetxt(tmp_path / "picked.csv", in_metres, delimiter=",")
    np.testing.assert_allclose(
        points(read_flame(flame_pickle, landmarks=tmp_path / "picked.csv")), 1000 * in_metres, atol=1e-2
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    given = read_flame(flame_pickle, landmarks=write_embedding(elsewhere))
    assert given.landmark_weights is not None


def test_an_embedding_of_another_model_is_refused(bare: Path) -> None:
    path = bare.parent / "landmark_embedding.npy"
    faces, coordinates = embedding()
    np.save(path, {"full_lmk_faces_idx": faces + 10**5, "full_lmk_bary_coords": coordinates}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"landmark_embedding\.npy: triangles .* expected 0 to 6711; give the embedding"
    ):
        read_flame(bare)
    np.save(path, {"something": 1}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"landmark_embedding\.npy: found something, expected full_lmk_faces_idx"):
        read_flame(bare)


def test_a_saved_model_keeps_its_joints(model: MorphableModel, tmp_path: Path) -> None:
    save_face_model(model, tmp_path / "flame.npz")
    found = build_face_model("npz", path=tmp_path / "flame.npz", identity_modes=None)
    assert found.stamp() == model.stamp()
    assert found.skinning.joint_names == JOINT_NAMES
    identity, expression = torch.zeros(1, 300), torch.zeros(1, model.expression_size)
    expression[0, 50] = 0.7
    assert torch.equal(
        found.skinning.pose(found, identity, expression), model.skinning.pose(model, identity, expression)
    )


def test_the_kind_is_known_to_the_builder(flame_pickle: Path) -> None:
    found = build_face_model("flame", path=flame_pickle, identity_modes=5)
    assert (found.name, found.identity_size, found.skinning.joint_names) == ("flame", 5, JOINT_NAMES)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    (tmp_path / "flame.pkl").write_bytes(pickle.dumps(small(**{key: None})))
    with pytest.raises(ValueError, match=rf"flame\.pkl: keys {key} are missing, found "):
        read_flame(tmp_path / "flame.pkl")


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_template": np.zeros((12, 2))}, r"v_template has shape \(12, 2\), expected \(12, 3\)"),
        ({"v_template": 3.0}, r"v_template has shape \(\), expected"),
        ({"shapedirs": np.zeros((12, 3, 10))}, r"shapedirs has shape \(12, 3, 10\), expected \(12, 3, 400\)"),
        ({"kintree_table": np.zeros((2, 24))}, r"kintree_table has shape \(2, 24\), expected \(2, 5\)"),
        ({"posedirs": np.zeros((12, 3, 207))}, r"posedirs has shape \(12, 3, 207\), expected \(12, 3, 36\)"),
        ({"J_regressor": np.zeros((5, 11))}, r"J_regressor has shape \(5, 11\), expected \(5, 12\)"),
        ({"J_regressor": np.zeros((5, 12))}, "joint_regressor add up to 0 to 0, expected 1"),
        ({"weights": np.full((12, 5), np.nan)}, "joint_weights has values that are not finite"),
        ({"weights": {"a": 1}}, "weights is no array of numbers but a dict"),
        ({"f": np.full((9, 3), 12)}, "f holds 12 to 12, expected 0 to 11"),
        ({"f": np.full((9, 3), 0.5)}, "f holds something else than whole numbers"),
        ({"kintree_table": np.array([[9, 3, 1, 1, 1], [0, 1, 2, 3, 4]])}, "each parent before its children"),
        ({"bs_style": "dqbs"}, "bs_style is 'dqbs', expected 'lbs'"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "flame.pkl"
    path.write_bytes(pickle.dumps(small(**changes)))
    with pytest.raises(ValueError, match=message) as caught:
        read_flame(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_in_other_units_is_refused(flame_pickle: Path, tmp_path: Path) -> None:
    write_embedding(tmp_path)
    path = write_flame_npz(tmp_path / "flame.npz", v_template=donor().mean.numpy())
    with pytest.raises(ValueError, match=r"chin to brows measures .* check the unit of the file"):
        assemble(read_flame(path))


def test_no_file_a_folder_and_a_truncated_file_are_named(flame_pickle: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pkl: no such face model, expected a FLAME \.pkl or \.npz file"):
        read_flame(tmp_path / "none.pkl")
    with pytest.raises(ValueError, match="a folder, expected a FLAME"):
        read_flame(tmp_path)
    (tmp_path / "cut.pkl").write_bytes(flame_pickle.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut\.pkl: cannot be read"):
        read_flame(tmp_path / "cut.pkl")


def test_parts_are_all_known(model: MorphableModel) -> None:
    assert set(model.parts.unique().tolist()) <= set(range(len(PART_NAMES)))
