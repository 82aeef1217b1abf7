"""Measuring against faces whose truth is known because they were made from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.face.camera import crop_camera, project, to_camera_space
from models.face.formats import build_face_model
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.rendering.render import render
from models.training.data import CropSet
from models.types import Batch, FaceCoefficients, Rendering
from tasks.measure import (
    SCAN_POINTS,
    compare,
    join_coefficients,
    measure_stage,
    person_tone_deg,
    prepare_truth,
    summarize,
    tone_groups,
    true_yaw_deg,
    yaw_bins,
)

SIZE_PX = 64
YAW_DEG = (-70.0, -20.0, 0.0, 10.0, 40.0)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return build_face_model("procedural", identity_modes=12)


@pytest.fixture(scope="module")
def faces(model: MorphableModel) -> FaceCoefficients:
    generator = torch.Generator().manual_seed(3)
    count = len(YAW_DEG)
    rotation = torch.zeros(count, 3)
    rotation[:, 1] = torch.tensor(YAW_DEG).deg2rad()
    return FaceCoefficients(
        identity=torch.randn(count, model.identity_size, generator=generator),
        expression=0.3 * torch.rand(count, model.expression_size, generator=generator),
        albedo=torch.randn(count, model.albedo_size, generator=generator),
        lighting=ambient_light(count),
        rotation=rotation,
        translation=torch.tensor([0.0, 0.0, 1150.0]).expand(count, 3),
    )


def draw(model: MorphableModel, faces: FaceCoefficients) -> tuple[Rendering, torch.Tensor]:
    vertices = model.vertices(faces.identity, faces.expression)
    seen = to_camera_space(vertices, rotation=faces.rotation, translation=faces.translation)
    camera = crop_camera(len(seen), SIZE_PX)
    albedo = model.albedo(faces.albedo)
    return render(seen, model.triangles, albedo=albedo, lighting=faces.lighting, camera=camera), project(
        model.landmarks(seen), camera
    )


@pytest.fixture(scope="module")
def crops(model: MorphableModel, faces: FaceCoefficients) -> CropSet:
    """Photos of five faces; the last has no mesh, no annotation and no known rotation, as a real portrait."""
    rendering, landmarks = draw(model, faces)
    count = len(landmarks)
    rotation, annotation = faces.rotation.clone(), landmarks.clone()
    rotation[-1], annotation[-1] = torch.nan, torch.nan
    return CropSet(
        sample_ids=tuple(f"photo{place}" for place in range(count)),
        source=("photos",) * count,
        images=(rendering.image.clamp(0, 1) * 255).round().byte(),
        landmarks=landmarks,
        confidence=torch.ones(count, 68),
        annotation=annotation,
        person=torch.tensor([0, 0, 1, 2, 3]),
        affine=torch.eye(3).expand(count, 3, 3),
        photo_size=torch.full((count, 2), float(SIZE_PX)),
        rotation=rotation,
        yaw_deg=torch.tensor(YAW_DEG),
        quality=torch.full((count,), torch.nan),
        mesh_index=torch.tensor([0, 1, 2, 3, -1]),
        vertices=model.vertices(faces.identity, faces.expression)[:-1],
        neutral=model.vertices(faces.identity)[:-1],
    )


def predict_as(model: MorphableModel, faces: FaceCoefficients):
    """A predictor that knows the answers; photos come in their own order."""

    def predict(batch: Batch) -> tuple[FaceCoefficients, Rendering, torch.Tensor]:
        places = torch.tensor([int(name.removeprefix("photo")) for name in batch.sample_ids])
        names = ("identity", "expression", "albedo", "lighting", "rotation", "translation")
        chosen = FaceCoefficients(**{name: getattr(faces, name)[places] for name in names})
        return chosen, *draw(model, chosen)

    return predict


def test_the_truth_is_measured_as_perfect(model: MorphableModel, faces: FaceCoefficients, crops: CropSet) -> None:
    truth = prepare_truth(model, crops)
    found = measure_stage(predict_as(model, faces), crops, model=model, truth=truth, batch_size=2)
    block = summarize(found, crops.person.numpy(), np.ones(len(crops), dtype=bool))
    assert block["scan_error_mm_median"] < 1e-3
    assert block["scan_error_mm_mean"] < 1e-2
    assert block["scan_error_scaled_mm_median"] < 1e-2
    assert block["vertex_error_mm"] < 1e-3
    assert block["normal_error_deg"] < 0.1
    assert block["depth_slope"] == pytest.approx(1.0, abs=1e-3)
    assert block["depth_correlation"] == pytest.approx(1.0, abs=1e-3)
    assert block["landmark_nme"] < 1e-5
    assert block["pose_error_deg"] < 0.1
    assert block["similarity"] > 0.99
    assert block["psnr_db"] > 45
    assert block["nose_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert max(block[f"{name}_error_mm"] for name in ("nose", "mouth", "forehead", "cheeks", "region")) < 1e-3
    assert max(block[f"{name}_error_deg"] for name in ("yaw", "pitch", "roll")) < 0.1
    assert (block["photos"], block["persons"], block["photos_with_mesh"]) == (5, 4, 4)
    torch.testing.assert_close(found.coefficients.identity, faces.identity)


def test_the_mean_face_keeps_no_relief(model: MorphableModel, faces: FaceCoefficients, crops: CropSet) -> None:
    flat = replace(faces, identity=torch.zeros_like(faces.identity))
    found = measure_stage(predict_as(model, flat), crops, model=model, truth=prepare_truth(model, crops), batch_size=5)
    block = summarize(found, crops.person.numpy(), np.ones(len(crops), dtype=bool))
    assert block["depth_slope"] == pytest.approx(0.0, abs=1e-4)
    assert block["depth_correlation"] is None
    assert block["vertex_error_mm"] > 0.5
    assert block["vertex_error_mm"] > block["scan_error_mm_mean"] > block["scan_error_mm_median"] > 0.1
    assert block["pose_error_deg"] < 0.1
    for name in ("vertex_error_mm", "scan_error_mm_median", "scan_error_scaled_mm_median", "nose_error_mm"):
        assert 0.0 < block[f"{name}_low"] <= block[name] <= block[f"{name}_high"], name
    assert block["depth_slope_low"] == pytest.approx(0.0, abs=1e-3)
    assert block["depth_correlation_low"] is None
    # Nose, mouth, forehead and cheeks explain less than the whole face, as each is aligned by itself.
    assert block["region_error_mm"] < block["vertex_error_mm"]


def test_intervals_can_be_left_out(model: MorphableModel, faces: FaceCoefficients, crops: CropSet) -> None:
    found = measure_stage(predict_as(model, faces), crops, model=model, truth=prepare_truth(model, crops), batch_size=5)
    everyone = np.ones(len(crops), dtype=bool)
    full = summarize(found, crops.person.numpy(), everyone)
    bare = summarize(found, crops.person.numpy(), everyone, intervals=False)
    assert {name for name in full if not name.endswith(("_low", "_high"))} == set(bare)
    assert all(full[name] == value for name, value in bare.items())


def test_a_difference_to_a_baseline_has_an_interval(
    model: MorphableModel, faces: FaceCoefficients, crops: CropSet
) -> None:
    truth = prepare_truth(model, crops)
    flat = replace(faces, identity=torch.zeros_like(faces.identity))
    half = replace(faces, identity=0.5 * faces.identity)
    mean, better = (
        measure_stage(predict_as(model, shape), crops, model=model, truth=truth, batch_size=5) for shape in (flat, half)
    )
    found = compare(better, mean, crops.person.numpy())
    expected = np.nanmean(better.values["vertex_error_mm"] - mean.values["vertex_error_mm"])
    assert found["vertex_error_mm"] == pytest.approx(expected, abs=1e-5)
    assert found["vertex_error_mm_low"] <= found["vertex_error_mm"] <= found["vertex_error_mm_high"] < 0.0
    assert found["pose_error_deg"] == 0.0
    # Half the coefficients keep half of the relief.
    block = summarize(better, crops.person.numpy(), np.ones(len(crops), dtype=bool))
    assert block["depth_slope"] == pytest.approx(0.5, abs=0.05)
    assert 0.4 < block["depth_slope_low"] <= block["depth_slope"] <= block["depth_slope_high"] < 0.6


def test_tones_are_those_of_the_person(model: MorphableModel, faces: FaceCoefficients) -> None:
    persons = np.array([0, 0, 1, 2, 3])
    albedo = torch.zeros_like(faces.albedo)
    tone = person_tone_deg(model, replace(faces, albedo=albedo), persons)
    assert np.ptp(tone) < 1e-6
    albedo[0, 0] = 2.0
    changed = person_tone_deg(model, replace(faces, albedo=albedo), persons)
    assert changed[0] == changed[1] != tone[1]
    np.testing.assert_allclose(changed[2:], tone[2:])
    groups = tone_groups(np.array([70.0, 41.0, 40.9, 10.0, 9.9, -60.0]))
    assert {name: chosen.tolist() for name, chosen in groups.items()} == {
        "light": [True, True, False, False, False, False],
        "medium": [False, False, True, True, False, False],
        "dark": [False, False, False, False, True, True],
    }


def test_what_a_photo_has_no_truth_for_stays_unknown(
    model: MorphableModel, faces: FaceCoefficients, crops: CropSet
) -> None:
    found = measure_stage(predict_as(model, faces), crops, model=model, truth=prepare_truth(model, crops), batch_size=5)
    last = {name: bool(np.isfinite(values[-1])) for name, values in found.values.items()}
    assert [name for name, known in last.items() if known] == ["similarity", "psnr_db"]
    block = summarize(found, crops.person.numpy(), np.arange(len(crops)) == 4)
    unknown = {name for name, value in block.items() if value is None}
    assert "similarity" not in unknown
    assert unknown >= {"scan_error_mm_median", "vertex_error_mm", "depth_slope", "landmark_nme", "pose_error_deg"}
    nobody = summarize(found, crops.person.numpy(), np.zeros(len(crops), dtype=bool))
    assert nobody["similarity"] is None
    assert nobody["photos"] == 0


def test_a_scan_with_expression_is_compared_with_expression(
    model: MorphableModel, faces: FaceCoefficients, crops: CropSet
) -> None:
    neutral = crops.neutral.clone()
    neutral[1] = torch.nan
    truth = prepare_truth(model, replace(crops, neutral=neutral))
    assert truth.neutral.tolist() == [True, False, True, True]
    found = measure_stage(predict_as(model, faces), crops, model=model, truth=truth, batch_size=5)
    assert found.values["vertex_error_mm"][1] < 1e-3
    silent = replace(faces, expression=torch.zeros_like(faces.expression))
    found = measure_stage(predict_as(model, silent), crops, model=model, truth=truth, batch_size=5)
    assert found.values["vertex_error_mm"][1] > 0.05
    assert found.values["vertex_error_mm"][0] < 1e-3


def test_a_turned_and_moved_truth_changes_nothing(
    model: MorphableModel, faces: FaceCoefficients, crops: CropSet
) -> None:
    flat = replace(faces, identity=0.5 * faces.identity)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * turn.det()
    moved = replace(crops, neutral=crops.neutral @ turn + torch.tensor([30.0, -20.0, 10.0]))
    blocks = []
    for split in (crops, moved):
        found = measure_stage(
            predict_as(model, flat), split, model=model, truth=prepare_truth(model, split), batch_size=5
        )
        blocks.append(summarize(found, split.person.numpy(), np.ones(len(split), dtype=bool)))
    for name in ("scan_error_mm_median", "vertex_error_mm", "normal_error_deg", "depth_slope", "depth_correlation"):
        assert blocks[1][name] == pytest.approx(blocks[0][name], rel=1e-2), name


def test_scan_points_are_few_outer_and_near_the_nose(model: MorphableModel, crops: CropSet) -> None:
    truth = prepare_truth(model, crops)
    for mesh, points in enumerate(truth.scan_points):
        assert 300 < len(points) <= SCAN_POINTS
        assert truth.outer[points].all()
        nose = truth.shape[mesh, model.landmark_vertices[33]]
        assert (truth.shape[mesh, points] - nose).norm(dim=1).max() < 140


def test_meshes_of_another_face_model_are_refused(model: MorphableModel, crops: CropSet) -> None:
    with pytest.raises(ValueError, match=r"meshes of 100 vertices, expected the \d+ of face model procedural"):
        prepare_truth(model, replace(crops, vertices=crops.vertices[:, :100], neutral=crops.neutral[:, :100]))


def test_photos_fall_into_bins_by_their_true_yaw(crops: CropSet) -> None:
    wrong = replace(crops, yaw_deg=torch.full((len(crops),), 80.0))
    yaw = true_yaw_deg(wrong)
    np.testing.assert_allclose(yaw, [-70, -20, 0, 10, 80], atol=1e-3)
    bins = yaw_bins(np.array([0.0, 29.9, -30.0, 60.0, 120.0]), (0.0, 30.0, 60.0, 90.0))
    assert {name: chosen.tolist() for name, chosen in bins.items()} == {
        "0-30": [True, True, False, False, False],
        "30-60": [False, False, True, False, False],
        "60-90": [False, False, False, True, True],
    }


def test_batches_join_in_order(faces: FaceCoefficients) -> None:
    joined = join_coefficients([faces, faces])
    assert joined.identity.shape[0] == 2 * len(YAW_DEG)
    torch.testing.assert_close(joined.rotation[len(YAW_DEG) :], faces.rotation)


def test_a_split_without_any_mesh_is_measured_in_the_image_alone(
    model: MorphableModel, faces: FaceCoefficients, crops: CropSet
) -> None:
    nothing = torch.zeros(0, 1, 3)
    portraits = replace(crops, mesh_index=torch.full((len(crops),), -1), vertices=nothing, neutral=nothing)
    found = measure_stage(
        predict_as(model, faces), portraits, model=model, truth=prepare_truth(model, portraits), batch_size=3
    )
    block = summarize(found, crops.person.numpy(), np.ones(len(crops), dtype=bool))
    assert block["photos_with_mesh"] == 0
    assert block["scan_error_mm_median"] is block["vertex_error_mm"] is block["depth_slope"] is None
    assert block["landmark_nme"] < 1e-5
    assert block["similarity"] > 0.99
