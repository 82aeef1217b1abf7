from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import jaxtyping
import numpy as np
import pytest

from models.face.adapters import basel_h5, partial_landmarks
from models.face.adapters.assemble import FaceModelArrays, assemble, outward_share
from models.face.adapters.basel_h5 import NAMED_POINTS, read_basel_h5
from tests.basel_files import known_face, save_h5, save_landmarks, statismo


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Files are read by people without shape checking, so messages are tested without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def read(folder: Path, *, datasets: dict[str, Any] | None = None, **options: Any) -> FaceModelArrays:
    path = save_h5(folder / "model2017-1_bfm_nomouth.h5", statismo() | (datasets or {}))
    return read_basel_h5(path, landmarks=save_landmarks(folder / "points.txt"), **options)


def close(found: np.ndarray | None, expected: np.ndarray) -> None:
    """Equal but for single precision, relative to the largest number."""
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=3e-7 * np.abs(expected).max())


def named_points(mean: np.ndarray) -> list[dict[str, Any]]:
    """The metadata's list, as Scalismo writes it."""
    landmarks = known_face().landmarks
    listed = [{"id": name, "coordinates": mean[landmarks[point]].tolist()} for name, point in NAMED_POINTS.items()]
    return [*listed, {"id": "left.ear.tragus.tip", "coordinates": [72.5, 4.9, 14.0]}]


def test_the_model_comes_back_in_millimetres_and_one_sigma(tmp_path: Path) -> None:
    face = known_face()
    found = read(tmp_path)
    close(found.mean, face.mean)
    # Variances lose half their digits to the root of a rounded square, hence a little more than single precision.
    close(found.identity_basis, face.identity)
    close(found.expression_basis, face.expression)
    close(found.albedo_mean, face.colour)
    close(found.albedo_basis, face.albedo_modes)
    assert np.array_equal(found.triangles, face.triangles)
    assert np.array_equal(found.landmark_vertices, face.landmarks)
    assert found.expression_names == ("expression_01", "expression_02")


def test_a_coefficient_of_one_is_the_root_of_the_variance(tmp_path: Path) -> None:
    found = read(tmp_path)
    lengths = np.linalg.norm(found.identity_basis.reshape(len(found.identity_basis), -1), axis=1)
    np.testing.assert_allclose(lengths, [150.0, 90.0, 40.0], rtol=1e-5)


def test_the_average_expression_is_a_mode_of_its_own_and_zero_is_neutral(tmp_path: Path) -> None:
    face = known_face()
    average = 0.3 * face.expression[0]
    found = read(tmp_path, datasets={"expression/model/mean": average.reshape(-1).astype(np.float32)})
    close(found.mean, face.mean)
    close(found.expression_basis, np.concatenate([average[None], face.expression]))
    assert found.expression_names == ("expression_mean", "expression_01", "expression_02")


@pytest.mark.parametrize("kind", ["text", "bytes", "list of one text", "characters"])
def test_named_points_place_the_landmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    face = known_face()
    # A finder that is wrong everywhere by a vertex.
    monkeypatch.setattr(partial_landmarks, "find_landmarks", lambda mean, triangles: (face.landmarks + 1) % len(mean))
    text = json.dumps(named_points(face.mean))
    stored: Any = {
        "text": text,
        "bytes": np.bytes_(text.encode()),
        "list of one text": np.array([text], dtype=h5py.string_dtype()),
        "characters": np.frombuffer(text.encode(), np.uint8),
    }[kind]
    found = read_basel_h5(save_h5(tmp_path / "model.h5", statismo(), **{"metadata/landmarks/json": stored}))
    known = list(NAMED_POINTS.values())
    # Places, because the procedural face has vertices that coincide.
    assert np.array_equal(found.mean[found.landmark_vertices[known]], found.mean[face.landmarks[known]])


def test_points_of_parts_that_were_cropped_away_are_left_to_the_finder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = known_face()
    monkeypatch.setattr(partial_landmarks, "find_landmarks", lambda mean, triangles: face.landmarks)
    away = [{"id": "center.chin.tip", "coordinates": [0.0, -300.0, 0.0]}]
    path = save_h5(tmp_path / "model.h5", statismo(), **{"metadata/landmarks/json": json.dumps(away)})
    assert np.array_equal(read_basel_h5(path).landmark_vertices, face.landmarks)


def test_a_file_with_its_x_axis_mirrored_is_refused_by_the_named_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = known_face()
    mirrored = face.mean * [-1, 1, 1]
    # A finder sees nothing wrong with a mirrored face.
    swapped = face.landmarks.copy()
    swapped[[36, 45]] = swapped[[45, 36]]
    monkeypatch.setattr(partial_landmarks, "find_landmarks", lambda mean, triangles: swapped)
    changes = {
        "shape/model/mean": mirrored.reshape(-1).astype(np.float32),
        "metadata/landmarks/json": json.dumps(named_points(mirrored)),
    }
    with pytest.raises(ValueError, match="axis x does not point the subject's left"):
        assemble(read_basel_h5(save_h5(tmp_path / "model.h5", statismo(), **changes)))


def test_triangles_face_outwards_whichever_way_the_file_winds_them(tmp_path: Path) -> None:
    face = known_face()
    found = read(tmp_path, datasets={"shape/representer/cells": face.triangles[:, ::-1].T})
    assert outward_share(found.mean, found.triangles, found.mean[face.landmarks]) > 0.3


def test_modes_are_cut_to_the_number_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basel_h5, "ALBEDO_MODES", 1)
    found = read(tmp_path, identity_modes=2)
    close(found.identity_basis, known_face().identity[:2])
    close(found.albedo_basis, known_face().albedo_modes[:1])


def test_the_edition_follows_from_the_number_of_vertices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(tmp_path).name == "basel"
    monkeypatch.setitem(basel_h5.EDITIONS, len(known_face().mean), "2019")
    assert read(tmp_path).name == "basel-2019"


def test_without_colours_the_albedo_is_borrowed_and_without_expressions_those(tmp_path: Path) -> None:
    lean = {key: None for key in statismo() if key.startswith(("color/", "expression/"))}
    found = read(tmp_path, datasets=lean)
    assert found.albedo_mean is None
    assert found.name == "basel, expressions borrowed"
    assert "expressions borrowed" in found.licence
    model = assemble(found)
    assert model.expression_size == 52
    assert model.albedo_size == 10


ROWS = 10632
WRONG = {
    "no shape": ({"shape/model": None}, "no Basel Face Model, found .*version.*, expected the group shape/model"),
    "no variance": ({"shape/model/pcaVariance": None}, "shape/model/pcaVariance are missing, found the groups color, "),
    "no cells": ({"shape/representer/cells": None}, "shape/representer/cells are missing"),
    "cells in rows": (
        {"shape/representer/cells": np.zeros((5, 3), int)},
        r"cells has shape \(5, 3\), expected \(3, any",
    ),
    "cells from 1": (
        {"shape/representer/cells": np.full((3, 4), 3544)},
        "holds 3544 to 3544, expected vertices 0 to 3543",
    ),
    "cells of text": ({"shape/representer/cells": np.full((3, 4), b"x")}, "cells .* holds something else than finite"),
    "mean": (
        {"shape/model/mean": np.zeros((5, 6))},
        r"shape/model/mean has shape \(5, 6\), expected one row or column",
    ),
    "basis": (
        {"shape/model/pcaBasis": np.zeros((3, ROWS))},
        rf"pcaBasis has shape \(3, {ROWS}\), expected \({ROWS}, any",
    ),
    "variances": ({"shape/model/pcaVariance": np.ones(9)}, "shape/model/pcaBasis has 3 modes, but 9 deviations"),
    "negative": ({"shape/model/pcaVariance": -np.ones(3)}, "holds -1, expected no negative variance"),
    "folded in": ({"shape/model/pcaBasis": np.ones((ROWS, 3))}, "length 103.1, expected at most 1 before σ"),
    "average": ({"expression/model/mean": np.zeros(30)}, "expression/model/mean has 10 vertices, expected 3544"),
    "colours to 255": ({"color/model/mean": np.full(ROWS, 200.0)}, "holds 200 to 200, expected colours from 0 to 1"),
    "landmarks": ({"metadata/landmarks/json": "[{]"}, "metadata/landmarks/json is damaged"),
    "a point": (
        {"metadata/landmarks/json": '[{"id": "center.chin.tip", "coordinates": [1, 2]}]'},
        "damaged .a point without three coordinates",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
@pytest.mark.usefixtures("as_a_user")
def test_datasets_that_do_not_fit_are_named_with_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(partial_landmarks, "find_landmarks", lambda mean, triangles: known_face().landmarks)
    changes, message = WRONG[case]
    kept = {
        key: value for key, value in statismo().items() if not (case == "no shape" and key.startswith("shape/model"))
    }
    path = save_h5(tmp_path / "model.h5", kept, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_basel_h5(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["text", "empty", "truncated", "short of a byte"])
@pytest.mark.usefixtures("as_a_user")
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = save_h5(tmp_path / "model.h5", statismo())
    whole = path.read_bytes()
    damaged = {"text": b"no model", "empty": b"", "truncated": whole[: len(whole) // 2], "short of a byte": whole[:-1]}
    path.write_bytes(damaged[content])
    with pytest.raises(
        ValueError, match=r"model\.h5: not a readable HDF5 file \(.*\), expected a Basel \.h5"
    ) as caught:
        read_basel_h5(path)
    assert "\n" not in str(caught.value)
