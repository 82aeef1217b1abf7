"""Photos of one person: what is fused, what is written, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from models.reconstruction.reconstructor import Reconstructor
from models.reconstruction.set_confidence import SetConfidence
from tasks.artifacts import Workspace
from tasks.ensembles import open_reader
from tasks.face_reader import FaceReader
from tasks.photo_sets import fuse_faces, photos_by_person
from tasks.reconstruct import ReconstructionError, Refinement, read_face, reconstruct_photos
from tasks.reconstruct_persons import reconstruct_persons
from tests.tasks.trained_workspace import PHOTO_SIZE_PX, trained_workspace, write_photo


def coefficients(path: Path) -> dict:
    return json.loads(path.read_text())["coefficients"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, FaceReader]:
    """Small networks of random weights, opened once."""
    params, workspace = trained_workspace(tmp_path_factory.mktemp("trained"))
    return workspace, open_reader(params, workspace, workspace.folder("refusion"))


@pytest.fixture
def options(trained: tuple[Workspace, FaceReader]) -> dict[str, Any]:
    """What `reconstruct_photos` is always called with."""
    return {"workspace": trained[0], "reader": trained[1], "outputs": "json"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    return [write_photo(folder / f"{size}.png", size) for size in (PHOTO_SIZE_PX, 300, 400)]


def test_photos_of_a_person_share_a_face_and_say_how_sure_it_is(
    options: dict[str, Any], photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = reconstruct_photos(photos, out, **options, aggregate="analytic")
    assert {path.name for path in report.files} == {path.name for path in out.iterdir()}
    first, *others = (coefficients(out / f"{photo.stem}.json") for photo in photos)
    for other in others:
        assert other["identity"] == first["identity"]
        assert other["albedo"] == first["albedo"]
        assert other["lighting"] != first["lighting"]
    person = json.loads((out / "person.json").read_text())
    assert person["identity"] == first["identity"]
    assert [row["photo"] for row in person["photos"]] == [photo.name for photo in photos]
    assert sum(row["weight"] for row in person["photos"]) == pytest.approx(1.0, abs=1e-3)
    assert 0.0 < person["shrinkage_of_the_mean"] <= 1.0
    model = options["reader"].reconstructor.model
    assert person["face_model"] == model.stamp()
    arrays = np.load(out / "person_uncertainty.npz")
    neutral = model.vertices(torch.tensor([person["identity"]]))[0].numpy()
    np.testing.assert_allclose(arrays["vertices_mm"], neutral, atol=1e-3)
    assert arrays["uncertainty_mm"].shape == (model.vertex_count,)
    assert (arrays["uncertainty_mm"] > 0).all()
    mesh = trimesh.load(out / "person_neutral.ply", process=False)
    np.testing.assert_allclose(mesh.vertices, neutral, atol=1e-3)
    raw = mesh.metadata["_ply_raw"]["vertex"]["data"]["uncertainty_mm"]
    np.testing.assert_allclose(np.asarray(raw).ravel(), arrays["uncertainty_mm"], rtol=1e-5)
    # More photos leave less open.
    alone = tmp_path / "alone"
    reconstruct_photos(photos[:1], alone, **options, aggregate="analytic")
    before = np.load(alone / "person_uncertainty.npz")["uncertainty_mm"]
    assert arrays["uncertainty_mm"].mean() < before.mean()


def test_a_photo_called_person_keeps_its_files(options: dict[str, Any], photos: list[Path], tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "person.png", 300)
    out = tmp_path / "out"
    reconstruct_photos([photo, photos[0]], out, **options, aggregate="mean")
    assert coefficients(out / "person.json")["identity"] == coefficients(out / f"{photos[0].stem}.json")["identity"]
    assert json.loads((out / "person_of_2_photos.json").read_text())["aggregate"] == "mean"


def test_refinement_starts_from_what_was_fused(options: dict[str, Any], photos: list[Path], tmp_path: Path) -> None:
    refinement = Refinement(photo_steps=1, same_person=True)
    out = tmp_path / "out"
    reconstruct_photos(photos[:2], out, **options, aggregate="analytic", refinement=refinement)
    person = json.loads((out / "person.json").read_text())
    found = json.loads((out / f"{photos[0].stem}.json").read_text())
    assert person["identity"] == found["coefficients"]["identity"]
    assert found["refinement"]["photo_steps"] == 1


def test_every_folder_is_a_person(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = tmp_path / "people"
    for name, sizes in (("ada", (150, 300)), ("bob", (200,))):
        (people / name).mkdir(parents=True)
        for size in sizes:
            write_photo(people / name / f"{size}.png", size)
    (people / "bob" / "text.png").write_text("no photo")
    persons = photos_by_person([people])
    assert {name: [path.name for path in own] for name, own in persons.items()} == {
        "ada": ["150.png", "300.png"],
        "bob": ["200.png", "text.png"],
    }
    assert photos_by_person([people / "bob", people / "ada"]) == dict(reversed(persons.items()))
    out = tmp_path / "out"
    with pytest.raises(ReconstructionError, match="1 of 4 photos could not be reconstructed") as caught:
        reconstruct_persons(
            persons,
            out,
            workspace=options["workspace"],
            checkpoint=options["workspace"].folder("refusion"),
            outputs="json",
            aggregate="analytic",
        )
    assert "not_an_image" in capsys.readouterr().err
    assert caught.value.report is not None
    assert [(face["person"], Path(face["photo"]).name) for face in caught.value.report.faces] == [
        ("ada", "150.png"),
        ("ada", "300.png"),
        ("bob", "200.png"),
    ]
    assert len(json.loads((out / "ada" / "person.json").read_text())["photos"]) == 2
    assert len(json.loads((out / "bob" / "person.json").read_text())["photos"]) == 1
    first, second, bob = (
        coefficients(out / name)["identity"] for name in ("ada/150.json", "ada/300.json", "bob/200.json")
    )
    assert first == second != bob


def test_folders_that_name_nobody_are_refused(tmp_path: Path, photos: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"not a folder, expected one per person"):
        photos_by_person(photos[:1])
    with pytest.raises(FileNotFoundError, match="no photos"):
        photos_by_person([tmp_path])
    for place in ("a", "b"):
        (tmp_path / place / "ann").mkdir(parents=True)
        write_photo(tmp_path / place / "ann" / "x.png")
    with pytest.raises(ValueError, match="a second folder called ann"):
        photos_by_person([tmp_path / "a", tmp_path / "b"])


def test_learned_confidences_are_used_or_asked_for(options: dict[str, Any], photos: list[Path]) -> None:
    reader = options["reader"]
    faces = [read_face(reader, photo) for photo in photos]
    reconstructor: Reconstructor = copy.deepcopy(reader.reconstructor)
    with pytest.raises(ValueError, match=r"learned nothing about sets of photos; use --aggregate analytic"):
        fuse_faces(reconstructor, faces, method="learned")
    reconstructor.sets = SetConfidence(
        features=reconstructor.encoder.geometry.width, identity_size=reconstructor.model.identity_size
    )
    _, plain = fuse_faces(reconstructor, faces, method="analytic")
    _, untrained = fuse_faces(reconstructor, faces, method="learned")
    torch.testing.assert_close(untrained.identity, plain.identity)
    torch.nn.init.normal_(reconstructor.sets.layers[-1].weight, std=0.5)
    _, trained = fuse_faces(reconstructor, faces, method="learned")
    assert (trained.identity - plain.identity).abs().max() > 1e-4
