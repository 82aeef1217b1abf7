"""Photos to files: what is written, what is refused, and that the served model says the same."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.artifacts import Workspace, load_checkpoint, save_checkpoint
from tasks.face_reader import open_champion
from tasks.mesh_files import read_geometry
from tasks.params import load_params
from tasks.reconstruct import ReconstructionError, Refinement, read_face
from tasks.reconstruct import reconstruct_photos as reconstruct_with_report
from tests.tasks.trained_workspace import PHOTO_SIZE_PX, front_points, write_photo


def reconstruct_photos(photos: list[Path], out: Path, *, workspace: Workspace, **options: Any) -> list[Path]:
    """What is written; the detector of these tests takes anything for a face, so the best one is asked for."""
    known = {"outputs": "obj,overlay,json", "which": "best", "texture_px": 64, **options}
    return reconstruct_with_report(photos, out, workspace=workspace, **known).files


def projected(document: dict, vertices: np.ndarray) -> np.ndarray:
    camera = document["camera"]
    seen = vertices @ np.array(camera["R"]).T + np.array(camera["t_mm"])
    pixels = seen @ np.array(camera["K"]).T
    return pixels[:, :2] / pixels[:, 2:]


def landmark_table(path: Path, rows: dict[str, np.ndarray]) -> Path:
    header = ",".join(["file", *[f"{axis}{point}" for point in range(68) for axis in "xy"]])
    lines = [",".join([name, *map(str, points.ravel())]) for name, points in rows.items()]
    path.write_text("\n".join([header, *lines]))
    return path


def test_champion_writes_mesh_overlay_and_camera_that_agree(registered: Workspace, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "face.png", 400)
    written = reconstruct_photos([photo], tmp_path / "out", workspace=registered)
    names = ["face.obj", "face.mtl", "face_texture.png", "face_overlay.png", "face.json"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    vertices, _ = read_geometry(written[0])
    assert vertices.shape == (210, 3)
    document = json.loads(written[4].read_text())
    assert document["model"] == {"name": "mien-reconstructor", "version": 1, "alias": "champion"}
    model = open_champion(load_params(registered.params), registered).reconstructor.model
    assert document["face_model"] == model.stamp()
    assert document["face_model"]["licence"] == "CC0-1.0"
    header = written[0].read_text().splitlines()[1:4]
    assert header == [f"# face model {key}: {model.stamp()[key]}" for key in ("name", "licence", "hash")]
    with Image.open(written[3]) as drawn:
        assert drawn.info["face_model_licence"] == "CC0-1.0"
        assert drawn.info["face_model_hash"] == model.content_hash()
    assert set(document["coefficients"]["expression"]) == {"jawOpen", "eyeBlinkLeft", "eyeBlinkRight"}
    assert all(0.0 <= weight <= 1.0 for weight in document["coefficients"]["expression"].values())
    pixels = projected(document, vertices)[model.landmark_vertices.numpy()]
    assert np.abs(pixels - np.array(document["landmarks"]["projected_px"])).max() < 0.02
    before, after = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (photo, written[3]))
    assert before.shape == after.shape
    changed = np.argwhere(np.abs(before - after).max(2) > 0)[:, ::-1]
    face = projected(document, vertices)
    assert len(changed) > 1000
    assert (changed.min(0) >= face.min(0) - 2).all()
    assert (changed.max(0) <= face.max(0) + 2).all()


def test_served_model_agrees_with_the_networks(registered: Workspace, tmp_path: Path) -> None:
    import mlflow
    import pandas

    params = load_params(registered.params)
    reader = open_champion(params, registered)
    (folder,) = (registered.root / "mlruns" / "artifacts" / "models").iterdir()
    served = mlflow.pyfunc.load_model(str(folder / "artifacts"))
    photos = [write_photo(tmp_path / f"{size}.png", size) for size in (PHOTO_SIZE_PX, 900)]
    rows = served.predict(pandas.DataFrame({"image": [photo.read_bytes() for photo in photos]}))
    for photo, row, size in zip(photos, rows, (PHOTO_SIZE_PX, 900), strict=True):
        face = read_face(reader, photo)
        assert row["error"] is None
        assert np.abs(row["landmarks_detected"] - face.detection.landmarks).max() < 0.004 * size
        # What is served is the network's own answer, before its weights are held within bounds.
        with torch.no_grad():
            answer = reader.photos.network(face.batch.image, face.batch.landmarks, face.batch.confidence)
        vertices = reader.reconstructor.reconstruct(answer, face.batch.camera).mesh.vertices[0].numpy()
        assert np.abs(row["vertices"] - vertices)[:, :2].max() < 1.0
        assert row["intrinsics"] == pytest.approx(face.intrinsics.numpy(), rel=0.01, abs=0.01)


def test_checkpoint_and_given_landmarks(registered: Workspace, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "face.png")
    table = landmark_table(tmp_path / "points.csv", {"face.png": front_points()})
    written = reconstruct_photos(
        [photo], tmp_path / "out", workspace=registered, checkpoint=registered.folder("refusion"), landmarks=table
    )
    document = json.loads(written[4].read_text())
    assert document["model"] == {"checkpoint": str(registered.folder("refusion") / "checkpoint.pt")}
    assert np.array(document["landmarks"]["detected_px"]) == pytest.approx(front_points(), abs=1e-3)
    assert document["landmarks"]["confidence"] == [pytest.approx(0.8)] * 68


def test_bad_photos_are_named_and_the_others_go_on(
    registered: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    (folder / "again").mkdir(parents=True)
    write_photo(folder / "good.png")
    write_photo(folder / "again" / "good.png")
    (folder / "text.jpg").write_text("no photo")
    content = BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(content, format="JPEG")
    (folder / "cut.jpg").write_bytes(content.getvalue()[:-2000])
    write_photo(folder / "points.png")
    table = landmark_table(tmp_path / "points.csv", {"points.png": np.full((68, 2), np.nan)})
    out = tmp_path / "out"
    with pytest.raises(ReconstructionError, match="4 of 5 photos could not be reconstructed"):
        reconstruct_photos([folder, folder / "again" / "good.png"], out, workspace=registered, landmarks=table)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for line, name, reason in zip(
        lines,
        ("cut.jpg", "points.png", "text.jpg", "again/good.png"),
        ("truncated", "landmarks_not_finite", "not_an_image", "would replace those of"),
        strict=True,
    ):
        assert f"{name}: " in line
        assert reason in line
    assert sorted(path.name for path in out.iterdir()) == [
        f"good{suffix}" for suffix in (".json", ".mtl", ".obj", "_overlay.png", "_texture.png")
    ]


def test_coinciding_points_are_refused(
    registered: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_photo(tmp_path / "face.png")
    table = landmark_table(tmp_path / "points.csv", {"face.png": np.full((68, 2), 40.0)})
    with pytest.raises(ReconstructionError, match=r"^the photo could not be reconstructed, see above$"):
        reconstruct_photos([photo], tmp_path / "out", workspace=registered, landmarks=table)
    assert "coincide" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_failed_writing_leaves_nothing(registered: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("tasks.output_pictures.overlay", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        reconstruct_photos([write_photo(tmp_path / "face.png")], tmp_path / "out", workspace=registered)
    assert list((tmp_path / "out").iterdir()) == []


def test_no_champion_is_one_line_and_makes_no_registry(registered: Workspace, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(registered.params.read_text())
    photo = write_photo(tmp_path / "face.png")
    with pytest.raises(FileNotFoundError, match=r"no champion of mien-reconstructor in sqlite.*; run `make run` first"):
        reconstruct_photos([photo], tmp_path / "out", workspace=Workspace(tmp_path))
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("refusion/none.pt", "no such checkpoint"), ("train_detector/checkpoint.pt", "expected 'reconstructor'")],
)
def test_wrong_checkpoint_is_named(registered: Workspace, tmp_path: Path, name: str, message: str) -> None:
    photo = write_photo(tmp_path / "face.png")
    path = registered.root / "artifacts" / name
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        reconstruct_photos([photo], tmp_path / "out", workspace=registered, checkpoint=path)


@pytest.mark.parametrize("stage", ["refusion", "train_detector"])
def test_weights_of_other_networks_are_named(registered: Workspace, tmp_path: Path, stage: str) -> None:
    workspace = Workspace(tmp_path / "older")
    shutil.copytree(registered.root, workspace.root, ignore=shutil.ignore_patterns("mlruns"))
    path = workspace.folder(stage) / "checkpoint.pt"
    content = load_checkpoint(path)
    del content["weights"][next(iter(content["weights"]))]
    save_checkpoint(path, content)
    photo = write_photo(tmp_path / "face.png")
    with pytest.raises(ValueError, match=rf"{stage}/checkpoint.pt: made by another version of Mien; train again"):
        reconstruct_photos([photo], tmp_path / "out", workspace=workspace, checkpoint=workspace.folder("refusion"))


def test_folder_without_photos_and_file_as_out(registered: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no photos in this folder"):
        reconstruct_photos([tmp_path / "empty"], tmp_path / "out", workspace=registered)
    photo = write_photo(tmp_path / "face.png")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        reconstruct_photos([photo], photo, workspace=registered)


def test_refinement_is_nearer_to_the_points_and_says_so(registered: Workspace, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "face.png", 400)
    table = landmark_table(tmp_path / "points.csv", {"face.png": front_points(400)})
    misses, documents = {}, {}
    for name, refinement in (
        ("plain", None),
        ("landmarks", Refinement(photo_steps=0)),
        ("photo", Refinement(photo_steps=5)),
    ):
        written = reconstruct_photos(
            [photo], tmp_path / name, workspace=registered, landmarks=table, refinement=refinement
        )
        documents[name] = json.loads(written[4].read_text())
        points = np.array(documents[name]["landmarks"]["projected_px"])
        misses[name] = np.linalg.norm(points - front_points(400), axis=1).mean()
        expected = "not refined" if refinement is None else "refined"
        assert f"face of face.png, {expected};" in written[0].read_text().splitlines()[0]
        with Image.open(written[3]) as drawn:
            assert drawn.info["face"] == expected
    assert documents["plain"]["refinement"] is None
    assert documents["photo"]["refinement"] == {"landmark_steps": 4, "photo_steps": 5, "same_person_as": []}
    assert misses["landmarks"] < 0.5 * misses["plain"]
    assert misses["photo"] < 0.5 * misses["plain"]
    # The mesh that is written is the refined one.
    vertices, _ = read_geometry(tmp_path / "photo" / "face.obj")
    model = open_champion(load_params(registered.params), registered).reconstructor.model
    pixels = projected(documents["photo"], vertices)[model.landmark_vertices.numpy()]
    assert np.abs(pixels - np.array(documents["photo"]["landmarks"]["projected_px"])).max() < 0.02


def test_photos_of_one_person_share_identity_and_albedo(
    registered: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [write_photo(tmp_path / f"{size}.png", size) for size in (PHOTO_SIZE_PX, 400)]
    (tmp_path / "text.png").write_text("no photo")
    written = []
    with pytest.raises(ReconstructionError, match="1 of 3 photos could not be reconstructed"):
        reconstruct_photos(
            [photos[0], tmp_path / "text.png", photos[1]],
            tmp_path / "out",
            workspace=registered,
            refinement=Refinement(photo_steps=2, same_person=True),
        )
    assert "not_an_image" in capsys.readouterr().err
    written = [json.loads((tmp_path / "out" / f"{photo.stem}.json").read_text()) for photo in photos]
    first, second = (document["coefficients"] for document in written)
    assert first["identity"] == second["identity"]
    assert first["albedo"] == second["albedo"]
    assert first["lighting"] != second["lighting"]
    assert written[0]["refinement"]["same_person_as"] == ["400.png"]
    alone = reconstruct_photos(
        photos, tmp_path / "alone", workspace=registered, refinement=Refinement(photo_steps=2, same_person=False)
    )
    apart = [json.loads(path.read_text())["coefficients"]["identity"] for path in alone if path.suffix == ".json"]
    assert apart[0] != apart[1]
