"""Outputs by name: which files each writes, that they agree with each other, and that all name the licence."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.reconstruction.iris_colour import IrisColour
from tasks.face_record import FaceRecord, Palette
from tasks.output_documents import write_document
from tasks.outputs import OUTPUTS, TOGETHER, OutputWriter, chosen_outputs
from tests.browser_player import pose_glb
from tests.photographed_face import PHOTO_PX, photo_face


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return procedural_face()


@pytest.fixture(scope="module")
def records(model: MorphableModel) -> list[FaceRecord]:
    palette = Palette(model, texture_px=128)
    face = photo_face(model)
    return [
        FaceRecord(face=face, stem=stem, palette=palette, origin={"checkpoint": "a.pt"}, number=number)
        for number, stem in ((1, "photo"), (2, "photo-2"))
    ]


@pytest.fixture(scope="module")
def folder(records: list[FaceRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer = OutputWriter(tmp_path_factory.mktemp("outputs") / "new", chosen_outputs("all"))
    for record in records:
        writer.add(record)
    written = writer.finish()
    assert sorted(written) == sorted(writer.folder.iterdir())
    return writer.folder


def test_every_output_is_there_for_every_face(folder: Path) -> None:
    expected = {
        f"{stem}{suffix}" for stem in ("photo", "photo-2") for one in OUTPUTS.values() for suffix in one.suffixes
    }
    assert {path.name for path in folder.iterdir()} == expected | {"weights.csv", "contact_sheet.png"}


def test_every_file_names_the_licence(model: MorphableModel, folder: Path) -> None:
    licence = model.licence
    for path in folder.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.info["face_model_licence"] == licence, path.name
        else:
            assert licence.encode() in path.read_bytes(), path.name


def test_depth_normals_and_overlay_cover_the_same_pixels(records: list[FaceRecord], folder: Path) -> None:
    depth = np.asarray(Image.open(folder / "photo_depth.png")).astype(float) / 10.0
    normals = np.asarray(Image.open(folder / "photo_normals.png")).astype(float) / 127.5 - 1.0
    assert depth.shape == (PHOTO_PX, PHOTO_PX)
    there = depth > 0
    assert 0.1 < there.mean() < 0.9
    assert ((normals > -1.0).any(2) == there).all()
    # Unit vectors that look at the camera; depths of the mesh itself.
    assert np.linalg.norm(normals[there], axis=1) == pytest.approx(1.0, abs=0.02)
    assert (normals[there][:, 2] > 0.0).mean() > 0.98
    seen = records[0].face.reconstruction.mesh.vertices[0].numpy()
    assert seen[:, 2].min() - 0.1 <= depth[there].min()
    assert depth[there].max() <= seen[:, 2].max() + 0.1
    # The photo shows exactly this face on black.
    shown = records[0].face.photo.max(2) > 8
    assert (shown != there).mean() < 0.02


def test_documents_say_the_colour_of_the_irises(records: list[FaceRecord], folder: Path, tmp_path: Path) -> None:
    own = records[0].iris
    found = json.loads((folder / "photo.json").read_text())["iris"]
    assert found == {"rgb": pytest.approx(own.colour, abs=1e-4), "confidence": pytest.approx(own.confidence, abs=1e-4)}
    # What all photos of a person say goes before what one says.
    shared = replace(records[0], person_iris=IrisColour((0.3, 0.4, 0.6), 0.7))
    write_document(shared, tmp_path / "photo.json")
    found = json.loads((tmp_path / "photo.json").read_text())["iris"]
    assert found == {"rgb": [0.3, 0.4, 0.6], "confidence": 0.7}


def test_the_table_has_a_row_per_face(folder: Path) -> None:
    with (folder / "weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["photo"], row["face"]) for row in rows] == [("photo.png", "1"), ("photo.png", "2")]
    assert float(rows[0]["jawOpen"]) == pytest.approx(0.6)
    assert len(rows[0]) == 52 + 4


def test_the_sheet_has_a_row_per_face(folder: Path) -> None:
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.size == (6 * 196 - 4, 2 * 196 - 4)
        cells = np.asarray(sheet)
    for column in range(6):
        assert cells[:192, column * 196 : column * 196 + 192].std() > 10.0


def test_a_broken_output_leaves_nothing(
    records: list[FaceRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    writer = OutputWriter(tmp_path / "out", ("json", "overlay"))
    monkeypatch.setattr("tasks.output_pictures.overlay", broken)
    with pytest.raises(OSError, match="No space left"):
        writer.add(records[0])
    assert list((tmp_path / "out").iterdir()) == []
    assert writer.finish() == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [("glb, json", ("glb", "json")), (["ply", "ply"], ("ply",)), ("all", (*OUTPUTS, *TOGETHER))],
)
def test_chosen_outputs(names: str | list[str], expected: tuple[str, ...]) -> None:
    assert chosen_outputs(names) == expected


@pytest.mark.parametrize(
    ("names", "message"), [("glb,fbx", "fbx: no such output, expected some of glb"), (",", "none")]
)
def test_unknown_outputs_are_named(names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen_outputs(names)


def test_cameras_of_other_programs_see_the_same(records: list[FaceRecord], folder: Path) -> None:
    document = json.loads((folder / "photo_camera.json").read_text())
    record = records[0]
    points = record.vertices.numpy().astype(np.float64)
    own = document["opencv"]
    seen = (points @ np.array(own["R"]).T + np.array(own["t_mm"])) @ np.array(own["K"]).T
    expected = seen[:, :2] / seen[:, 2:]

    metres = np.concatenate([points / 1000.0, np.ones((len(points), 1))], 1)
    view, projection = (np.array(document["opengl"][name]) for name in ("view", "projection"))
    clip = metres @ (projection @ view).T
    device = clip[:, :3] / clip[:, 3:]
    assert np.abs(device[:, 2]).max() < 1.0
    pixels = (device[:, :2] * [0.5, -0.5] + 0.5) * PHOTO_PX
    assert np.abs(pixels - expected).max() < 1e-3

    # Blender turns glTF's y up to its z up, and looks along -z with a sensor of 36 mm.
    upright = metres @ np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    blender = document["blender"]
    local = upright @ np.linalg.inv(np.array(blender["matrix_world"])).T
    on_sensor = blender["lens_mm"] / 36.0 * local[:, :2] / -local[:, 2:3]
    x = (on_sensor[:, 0] - blender["shift_x"] + 0.5) * PHOTO_PX
    y = (0.5 - on_sensor[:, 1] + blender["shift_y"]) * PHOTO_PX
    assert np.abs(np.stack([x, y], 1) - expected).max() < 1e-3


@pytest.mark.slow
def test_three_js_lays_the_face_over_its_photo(records: list[FaceRecord], folder: Path, tmp_path: Path) -> None:
    camera = json.loads((folder / "photo_camera.json").read_text())["opengl"]
    numbers = np.concatenate([np.ravel(camera[name]) for name in ("view", "projection")])
    address = f"&size={PHOTO_PX}x{PHOTO_PX}&camera={','.join(f'{number:.9g}' for number in numbers)}"
    _, (worn,) = pose_glb(folder / "photo.glb", ["worn"], tmp_path, more=address)
    assert worn.shape[:2] == (PHOTO_PX, PHOTO_PX)
    background = np.abs(worn.astype(int) - [0, 0, 255]).max(2) < 60
    shown = records[0].face.photo.max(2) > 8
    both, either = (~background & shown).sum(), (~background | shown).sum()
    assert both / either > 0.97
