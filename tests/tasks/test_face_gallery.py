"""The gallery: which faces are shown, and what of each."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.face.formats import build_face_model
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.training.data import CropSet
from models.types import FaceCoefficients
from tasks import face_gallery
from tasks.artifacts import Workspace
from tasks.face_gallery import PICTURE_PX, draw_gallery, rank
from tasks.measure import MEASURES, Measured, prepare_truth
from tasks.params import EvaluateParams, Params, ProjectParams

COUNT, SIZE_PX = 6, 32


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return build_face_model("procedural", identity_modes=3)


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    photos = {f"photo{place}": np.full((SIZE_PX, SIZE_PX, 3), 30 * place, np.uint8) for place in range(COUNT)}
    monkeypatch.setattr(face_gallery, "read_images", lambda workspace, ids: {name: photos[name] for name in ids})
    sections = {"project": ProjectParams(crop_size_px=SIZE_PX), "evaluate": EvaluateParams(pictures=3)}
    return Params.model_construct(**sections)


def measured(model: MorphableModel, **values: list[float]) -> Measured:
    unknown = np.full(COUNT, np.nan)
    coefficients = FaceCoefficients(
        identity=torch.zeros(COUNT, model.identity_size),
        expression=torch.zeros(COUNT, model.expression_size),
        albedo=torch.zeros(COUNT, model.albedo_size),
        lighting=ambient_light(COUNT),
        rotation=torch.zeros(COUNT, 3),
        translation=torch.tensor([0.0, 0.0, 1150.0]).expand(COUNT, 3),
    )
    return Measured(
        values={name: np.array(values.get(name, unknown)) for name in MEASURES},
        scan=(np.zeros(0),) * COUNT,
        scan_scaled=(np.zeros(0),) * COUNT,
        moments=torch.full((COUNT, 5), torch.nan),
        coefficients=coefficients,
    )


@pytest.fixture
def crops(model: MorphableModel) -> CropSet:
    """Portraits: no mesh, no annotation."""
    return CropSet(
        sample_ids=tuple(f"photo{place}" for place in range(COUNT)),
        source=("portraits",) * COUNT,
        images=torch.zeros(COUNT, 3, SIZE_PX, SIZE_PX, dtype=torch.uint8),
        landmarks=torch.zeros(COUNT, 68, 2),
        confidence=torch.ones(COUNT, 68),
        annotation=torch.full((COUNT, 68, 2), torch.nan),
        person=torch.arange(COUNT),
        affine=torch.eye(3).expand(COUNT, 3, 3),
        photo_size=torch.full((COUNT, 2), float(SIZE_PX)),
        rotation=torch.full((COUNT, 3), torch.nan),
        yaw_deg=torch.zeros(COUNT),
        quality=torch.full((COUNT,), torch.nan),
        mesh_index=torch.full((COUNT,), -1),
        vertices=torch.zeros(0, 1, 3),
        neutral=torch.zeros(0, 1, 3),
    )


def columns(content: bytes) -> int:
    with Image.open(io.BytesIO(content)) as image:
        assert image.height == PICTURE_PX
        return (image.width + 4) // (PICTURE_PX + 4)


def test_faces_are_ranked_by_what_is_known(model: MorphableModel) -> None:
    nan, everyone = np.nan, np.ones(6, dtype=bool)
    likeness = [0.1, 0.9, 0.5, nan, nan, nan]
    mixed = measured(model, scan_error_mm=[2.0, nan, 1.0, nan, nan, nan], similarity=likeness)
    name, order = rank(mixed, everyone)
    assert (name, order.tolist()) == ("scan_error_mm", [2, 0])
    name, order = rank(measured(model, similarity=likeness), everyone)
    assert (name, order.tolist()) == ("similarity", [1, 2, 0])
    # Among faces without a mesh the next measure decides.
    name, order = rank(mixed, np.array([False, True, False, True, True, True]))
    assert (name, order.tolist()) == ("similarity", [1])
    assert len(rank(measured(model), everyone)[1]) == 0


def test_portraits_are_shown_without_a_truth(
    model: MorphableModel, params: Params, crops: CropSet, tmp_path: Path
) -> None:
    found = measured(model, similarity=[0.6, 0.1, 0.9, 0.3, 0.4, 0.5])
    faces, images = draw_gallery(params, Workspace(tmp_path), model, crops, prepare_truth(model, crops), found)
    shown = [(face["group"], face["sample_id"]) for face in faces]
    assert shown == [("best", "photo2"), ("median", "photo5"), ("worst", "photo1")]
    assert [face["mesh"] for face in faces] == [False, False, False]
    assert all(np.isnan(face["scan"]) for face in faces)
    assert {columns(images[face["image"]]) for face in faces} == {4}


def test_a_true_mesh_adds_its_profile_and_the_error(
    model: MorphableModel, params: Params, crops: CropSet, tmp_path: Path
) -> None:
    mesh = model.vertices(torch.ones(1, model.identity_size))
    index = torch.full((COUNT,), -1)
    index[4] = 0
    crops = replace(crops, mesh_index=index, vertices=mesh, neutral=mesh)
    found = measured(model, scan_error_mm=[np.nan] * 4 + [1.5, np.nan])
    faces, images = draw_gallery(params, Workspace(tmp_path), model, crops, prepare_truth(model, crops), found)
    assert {face["sample_id"] for face in faces} == {"photo4"}
    assert {columns(images[face["image"]]) for face in faces} == {6}
    with Image.open(io.BytesIO(images[faces[0]["image"]])) as image:
        error = np.asarray(image)[:, 5 * (PICTURE_PX + 4) :].astype(int)
    # The error map alone is in colour.
    assert (np.ptp(error, axis=2) > 30).mean() > 0.1


def test_an_empty_split_shows_nobody(model: MorphableModel, params: Params, crops: CropSet, tmp_path: Path) -> None:
    found = measured(model)
    assert draw_gallery(params, Workspace(tmp_path), model, crops, prepare_truth(model, crops), found) == ([], {})
