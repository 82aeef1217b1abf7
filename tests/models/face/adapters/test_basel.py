from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from models.face.adapters import basel, partial_landmarks
from models.face.adapters.assemble import FaceModelArrays, assemble, outward_share
from models.face.adapters.basel import read_basel
from models.face.adapters.landmarks import LandmarksFoundWarning
from models.types import PART_NAMES
from tests.basel_files import front_2009, full_2009, known_face, save_landmarks, save_mat, statismo


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Files are read by people without shape checking, so messages are tested without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> FaceModelArrays:
    """Read-only."""
    return read_basel(save_mat(tmp_path_factory.mktemp("front") / "BFM_model_front.mat", front_2009()))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> FaceModelArrays:
    """Read-only."""
    folder = tmp_path_factory.mktemp("full")
    path = save_mat(folder / "01_MorphableModel.mat", full_2009())
    return read_basel(path, landmarks=save_landmarks(folder / "points.txt"))


def close(found: np.ndarray | None, expected: np.ndarray) -> None:
    """Equal but for single precision, relative to the largest number."""
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=3e-7 * np.abs(expected).max())


def same_surface(triangles: np.ndarray, expected: np.ndarray) -> None:
    """The same triangles with the same side outside, from whichever corner."""
    start = triangles.argmin(1)
    turned = np.stack([triangles[np.arange(len(triangles)), (start + corner) % 3] for corner in range(3)], 1)
    first = expected.argmin(1)
    assert np.array_equal(turned, np.stack([expected[np.arange(len(expected)), (first + c) % 3] for c in range(3)], 1))


@pytest.mark.parametrize("version_73", [False, True])
def test_front_layout_comes_back_in_millimetres_and_one_sigma(tmp_path: Path, version_73: bool) -> None:
    face = known_face()
    found = read_basel(save_mat(tmp_path / "BFM_model_front.mat", front_2009(), version_73=version_73))
    close(found.mean, face.mean)
    close(found.identity_basis, face.identity)
    close(found.expression_basis, face.expression)
    close(found.albedo_mean, face.colour)
    close(found.albedo_basis, face.albedo_modes)
    same_surface(found.triangles, face.triangles)
    assert np.array_equal(found.landmark_vertices, face.landmarks)
    assert found.expression_names == ("expression_01", "expression_02")
    assert found.name == "basel-2009-front"
    assert "non-commercial" in found.licence


@pytest.mark.parametrize("version_73", [False, True])
def test_full_layout_comes_back_in_millimetres_and_one_sigma(tmp_path: Path, version_73: bool) -> None:
    face = known_face()
    path = save_mat(tmp_path / "01_MorphableModel.mat", full_2009(), version_73=version_73)
    found = read_basel(path, landmarks=save_landmarks(tmp_path / "points.txt"))
    close(found.mean, face.mean)
    close(found.identity_basis, face.identity)
    close(found.albedo_mean, face.colour)
    close(found.albedo_basis, face.albedo_modes)
    same_surface(found.triangles, face.triangles)
    assert np.array_equal(found.landmark_vertices, face.landmarks)


def test_an_identity_coefficient_of_one_is_the_stored_deviation_not_its_root(full: FaceModelArrays) -> None:
    lengths = np.linalg.norm(full.identity_basis.reshape(len(full.identity_basis), -1), axis=1)
    np.testing.assert_allclose(lengths, [150.0, 90.0, 40.0], rtol=1e-5)


@pytest.mark.parametrize("make", ["front", "full"])
def test_the_model_assembles_with_the_stamp(make: str, request: pytest.FixtureRequest) -> None:
    arrays = request.getfixturevalue(make)
    model = assemble(arrays)
    assert model.name == arrays.name
    assert model.licence == arrays.licence
    assert len(arrays.source_sha256) == 64
    assert torch.equal(model.landmark_vertices, torch.from_numpy(known_face().landmarks))


@pytest.mark.parametrize("key", ["tri", "tl"])
def test_triangles_face_outwards_whichever_way_the_file_winds_them(tmp_path: Path, key: str) -> None:
    arrays = front_2009() if key == "tri" else full_2009()
    points = save_landmarks(tmp_path / "points.txt")
    for turned in (arrays[key], arrays[key][:, ::-1]):
        found = read_basel(save_mat(tmp_path / "model.mat", arrays, **{key: turned}), landmarks=points)
        assert outward_share(found.mean, found.triangles, found.mean[known_face().landmarks]) > 0.3


def test_a_front_file_with_its_x_axis_mirrored_is_refused(tmp_path: Path) -> None:
    arrays = front_2009()
    mirrored = (arrays["meanshape"].reshape(-1, 3) * [-1, 1, 1]).reshape(1, -1)
    with pytest.raises(ValueError, match="axis x does not point the subject's left"):
        assemble(read_basel(save_mat(tmp_path / "model.mat", arrays, meanshape=mirrored)))


def test_a_full_file_with_its_x_axis_mirrored_is_refused_by_the_vertices_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = known_face()
    monkeypatch.setattr(basel, "KNOWN_VERTEX_COUNT", len(face.mean))
    monkeypatch.setattr(basel, "KNOWN_VERTICES", {point: int(face.landmarks[point]) for point in (30, 36, 45, 48, 54)})
    # A finder sees nothing wrong with a mirrored face.
    swapped = face.landmarks.copy()
    swapped[[36, 45]] = swapped[[45, 36]]
    monkeypatch.setattr(partial_landmarks, "find_landmarks", lambda mean, triangles: swapped)
    arrays = full_2009()
    mirrored = (arrays["shapeMU"].reshape(-1, 3) * np.float32([-1, 1, 1])).reshape(-1, 1)
    with pytest.raises(ValueError, match="axis x does not point the subject's left"):
        assemble(read_basel(save_mat(tmp_path / "model.mat", arrays, shapeMU=mirrored)))


def test_known_vertices_of_the_published_full_model_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = known_face()
    known = {30: int(face.landmarks[30]) + 1, 36: int(face.landmarks[36]) + 2}
    monkeypatch.setattr(basel, "KNOWN_VERTEX_COUNT", len(face.mean))
    monkeypatch.setattr(basel, "KNOWN_VERTICES", known)
    monkeypatch.setattr(partial_landmarks, "find_landmarks", lambda mean, triangles: face.landmarks)
    found = read_basel(save_mat(tmp_path / "model.mat", full_2009()))
    assert {point: int(found.landmark_vertices[point]) for point in known} == known


def test_without_any_table_the_points_are_found_with_a_warning(tmp_path: Path) -> None:
    face = known_face()
    wider = face.mean * [1.1, 0.95, 1.05]
    path = save_mat(tmp_path / "model.mat", full_2009(), shapeMU=(wider * 1e3).reshape(-1, 1))
    with pytest.warns(LandmarksFoundWarning, match="points were found"):
        found = read_basel(path)
    errors = np.linalg.norm(found.mean[found.landmark_vertices] - wider[face.landmarks], axis=1)
    assert np.median(errors) < 2.0
    assert errors.max() < 10.0


def test_the_table_of_known_vertices_fits_the_published_model() -> None:
    assert len(set(basel.KNOWN_VERTICES.values())) == len(basel.KNOWN_VERTICES) == 18
    assert max(basel.KNOWN_VERTICES) < 68
    assert max(basel.KNOWN_VERTICES.values()) < basel.KNOWN_VERTEX_COUNT


def test_the_full_model_borrows_expressions_and_says_so(full: FaceModelArrays) -> None:
    assert full.name == "basel-2009, expressions borrowed"
    assert "expressions borrowed from the procedural face (Apache-2.0)" in full.licence
    assert len(full.expression_names) == 52
    opened = full.expression_basis[full.expression_names.index("jawOpen")]
    chin, brow = known_face().landmarks[[8, 19]]
    assert opened[chin, 1] < -10.0
    assert np.linalg.norm(opened[brow]) < 0.5


def test_points_of_the_user_are_in_the_units_of_the_file(tmp_path: Path) -> None:
    face = known_face()
    points = tmp_path / "points.txt"
    np.savetxt(points, face.mean[face.landmarks] * 1e3)
    found = assemble(read_basel(save_mat(tmp_path / "model.mat", full_2009()), landmarks=points))
    torch.testing.assert_close(
        found.landmark_mean, torch.from_numpy(face.mean[face.landmarks]).float(), atol=0.01, rtol=0
    )


def test_identity_modes_are_cut_to_the_number_asked_for(tmp_path: Path) -> None:
    points = save_landmarks(tmp_path / "points.txt")
    for arrays in (front_2009(), full_2009()):
        found = read_basel(save_mat(tmp_path / "model.mat", arrays), landmarks=points, identity_modes=2)
        close(found.identity_basis, known_face().identity[:2])


def test_no_more_albedo_modes_are_read_than_photos_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basel, "ALBEDO_MODES", 2)
    close(read_basel(save_mat(tmp_path / "model.mat", front_2009())).albedo_basis, known_face().albedo_modes[:2])


def test_parts_follow_the_landmarks_and_the_skin_mask(tmp_path: Path, front: FaceModelArrays) -> None:
    lips = np.flatnonzero(front.parts == PART_NAMES.index("lips"))
    eyes = np.flatnonzero(front.parts == PART_NAMES.index("eyes"))
    assert len(lips) > 20
    assert len(eyes) > 20
    mask = np.zeros((1, len(front.mean)), np.uint8)
    mask[0, lips[:10]] = 1
    masked = read_basel(save_mat(tmp_path / "model.mat", front_2009(), skinmask=mask))
    assert (masked.parts[lips[:10]] == PART_NAMES.index("skin")).all()
    assert (masked.parts[lips[10:]] == PART_NAMES.index("lips")).all()


def test_a_front_file_without_skin_mask_is_read(tmp_path: Path, front: FaceModelArrays) -> None:
    found = read_basel(save_mat(tmp_path / "model.mat", front_2009(), skinmask=None))
    assert np.array_equal(found.parts, front.parts)


def test_a_file_of_2017_is_handed_on(tmp_path: Path) -> None:
    from tests.basel_files import save_h5

    path = save_h5(tmp_path / "model2017.h5", statismo())
    found = read_basel(path, landmarks=save_landmarks(tmp_path / "points.txt"))
    close(found.identity_basis, known_face().identity)


def shifted(key: str, by: int) -> Callable[[dict[str, Any]], np.ndarray]:
    return lambda arrays: arrays[key].astype(np.int64) + by


WRONG = {
    "missing keys": (front_2009, {"tri": None, "exBase": None}, "keys exBase, tri are missing, found idBase, "),
    "mean of a table": (
        front_2009,
        {"meanshape": np.zeros((30, 3))},
        r"meanshape has shape \(30, 3\), expected one row",
    ),
    "mean not in threes": (front_2009, {"meanshape": np.zeros((1, 31))}, r"meanshape has shape \(1, 31\), expected"),
    "basis of other size": (
        front_2009,
        {"idBase": np.zeros((30, 4))},
        r"idBase has shape \(30, 4\), expected \(10632, any",
    ),
    "basis transposed": (
        front_2009,
        {"exBase": np.zeros((4, 10632))},
        r"exBase has shape \(4, 10632\), expected \(10632",
    ),
    "triangles from 0": (front_2009, {"tri": shifted("tri", -1)}, "tri holds 0 to 3543, expected vertices 1 to 3544"),
    "triangles beyond": (full_2009, {"tl": shifted("tl", 1)}, "tl holds 2 to 3545, expected vertices 1 to 3544"),
    "triangles transposed": (
        full_2009,
        {"tl": lambda arrays: arrays["tl"].T},
        r"tl has shape \(3, \d+\), expected \(any, 3",
    ),
    "66 landmarks": (front_2009, {"keypoints": np.ones((1, 66))}, r"keypoints has shape \(1, 66\), expected \(1, 68\)"),
    "landmarks from 0": (
        front_2009,
        {"keypoints": np.zeros((1, 68))},
        "keypoints holds 0 to 0, expected vertices 1 to",
    ),
    "skin mask": (front_2009, {"skinmask": np.ones((1, 5))}, r"skinmask has shape \(1, 5\), expected \(1, 3544\)"),
    "colours from 0 to 1": (
        front_2009,
        {"meantex": np.full((1, 10632), 0.5)},
        "meantex holds 0.5 to 0.5, expected colours",
    ),
    "other colours": (full_2009, {"texMU": np.ones((30, 1))}, "texMU has 10 colours, expected 3544"),
    "deviations": (full_2009, {"shapeEV": np.ones((5, 1))}, "shapePC has 3 modes, but 5 deviations"),
    "folded in": (full_2009, {"shapePC": lambda a: a["shapePC"] * 150}, "length 150, expected at most 1 before σ"),
    "not finite": (full_2009, {"shapePC": lambda a: a["shapePC"] * np.nan}, "shapePC holds something else than finite"),
    "text": (full_2009, {"texMU": "grey"}, "texMU holds <U4, expected an array of numbers"),
    "cells": (full_2009, {"shapeEV": np.array([{"a": 1}, 2], dtype=object)}, "shapeEV holds object, expected an array"),
    "another file": (lambda: {"lm": np.zeros((68, 3))}, {}, "no Basel Face Model, found keys lm, expected shapeMU"),
}


@pytest.mark.parametrize("case", list(WRONG))
@pytest.mark.usefixtures("as_a_user")
def test_arrays_that_do_not_fit_are_named_with_what_was_expected(tmp_path: Path, case: str) -> None:
    make, changes, message = WRONG[case]
    arrays = make()
    changes = {key: change(arrays) if callable(change) else change for key, change in changes.items()}
    path = save_mat(tmp_path / "model.mat", arrays, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_basel(path, landmarks=save_landmarks(tmp_path / "points.txt") if make is full_2009 else None)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version_73", [False, True])
@pytest.mark.parametrize("content", ["text", "empty", "header only", "truncated", "short of a byte", "garbled"])
@pytest.mark.usefixtures("as_a_user")
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, content: str, version_73: bool) -> None:
    path = save_mat(tmp_path / "model.mat", front_2009(), version_73=version_73)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "text": b"<html>please register first</html>" * 20,
            "empty": b"",
            "header only": whole[:600],
            "truncated": whole[:middle],
            "short of a byte": whole[:-1],
            "garbled": whole[:136] + b"\xff" * 4096 + whole[4232:],
        }[content]
    )
    with pytest.raises(ValueError, match=r"model\.mat: ") as caught:
        read_basel(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder, expected a Basel Face Model"):
        read_basel(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.mat: no such face model, expected a Basel"):
        read_basel(tmp_path / "none.mat")


def test_a_model_in_another_unit_is_refused(tmp_path: Path) -> None:
    arrays = front_2009()
    with pytest.raises(ValueError, match=r"chin to brows measures .* check the unit"):
        assemble(read_basel(save_mat(tmp_path / "model.mat", arrays, meanshape=arrays["meanshape"] * 100)))
