from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from models.face.formats import save_face_model
from models.face.morphable import MorphableModel
from tasks.artifacts import Workspace
from tasks.face_model import load_face_model, png_stamp
from tests.ict_files import known_arrays, write_folder
from tests.tiny_face import tiny_face
from tests.tiny_workspace import tiny_params


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


@pytest.mark.parametrize("absolute", [False, True])
def test_a_path_counts_from_the_workspace(face: MorphableModel, tmp_path: Path, absolute: bool) -> None:
    (tmp_path / "models").mkdir()
    save_face_model(face, tmp_path / "models" / "face.npz")
    path = tmp_path / "models" / "face.npz" if absolute else "models/face.npz"
    params = tiny_params(face_model={"path": str(path), "identity_modes": 3})
    found = load_face_model(params, Workspace(tmp_path))
    assert found.identity_size == 3
    assert found.name == "tiny"


def test_landmarks_and_region_reach_the_reader(face: MorphableModel, tmp_path: Path) -> None:
    save_face_model(face, tmp_path / "tiny.npz")
    (tmp_path / "points.txt").write_text("\n".join(map(str, range(68))))
    found = load_face_model(tiny_params(face_model={"landmarks": "points.txt"}), Workspace(tmp_path))
    assert found.landmark_vertices.tolist() == list(range(68))
    params = tiny_params(face_model={"kind": "ict", "path": "FaceXModel", "region": "head"})
    write_folder(tmp_path / "FaceXModel", known_arrays())
    assert load_face_model(params, Workspace(tmp_path)).vertex_count == len(known_arrays()["mean"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tiny\.npz: no such face model"):
        load_face_model(tiny_params(), Workspace(tmp_path))


def test_a_picture_carries_the_stamp(face: MorphableModel, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "face.png", pnginfo=png_stamp(face))
    with Image.open(tmp_path / "face.png") as image:
        found = {key.removeprefix("face_model_"): image.info[key] for key in image.info}
    assert found == face.stamp()
