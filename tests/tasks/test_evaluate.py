"""The stage on a workspace of seven photos and untrained networks: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.formats import build_face_model
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.reconstruction.reconstructor import Reconstructor, ReconstructorSettings, reconstructor_content
from models.rendering.render import render
from models.types import Batch
from tasks import evaluate as stage
from tasks.artifacts import (
    CLEAN,
    CROPS,
    IMAGES,
    MESHES,
    SAMPLES,
    Workspace,
    load_checkpoint,
    save_checkpoint,
    write_json,
    write_table,
)
from tasks.evaluate import BLOCKS, SAMPLE_MEASURES, evaluate
from tasks.params import Params, parse_params
from tasks.predictions import predict_mean_face

SIZE_PX = 48
YAW_DEG = (-70.0, -20.0, 0.0, 10.0, 40.0, 5.0)
"""Of the test photos with a truth; one portrait without any follows, and one photo of the training split."""

TRAINING: dict[str, Any] = {
    "steps": 1,
    "sources": [{"source": "photos", "share": 1.0, "losses": {"photo": 1.0}}],
}


@pytest.fixture(scope="module")
def params() -> Params:
    return parse_params(
        {
            "project": {"crop_size_px": SIZE_PX, "precision": "32-true", "device": "cpu"},
            "ingest": {"sources": [{"kind": "synthetic", "name": "photos", "persons": 3}]},
            "train_self_supervised": {"init": "train_geometry", **TRAINING},
            "train_supervised": {"init": "train_self_supervised", **TRAINING},
            "train_fused": {"init": "train_supervised", **TRAINING},
            "detect_landmarks": {"detector": "provided"},
            "evaluate": {"batch_size": 4, "pictures": 3},
        }
    )


@pytest.fixture(scope="module")
def model(params: Params) -> MorphableModel:
    return build_face_model("procedural", identity_modes=params.face_model.identity_modes)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, params: Params, model: MorphableModel) -> Workspace:
    """Tables and checkpoints as the earlier stages leave them."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    count = len(YAW_DEG) + 2
    generator = torch.Generator().manual_seed(0)
    yaw = torch.tensor([*YAW_DEG, 0.0, 0.0])
    rotation = rotation_from_angles(yaw.deg2rad(), torch.zeros(count), torch.zeros(count))
    neutral = model.vertices(torch.randn(count, model.identity_size, generator=generator))
    albedo = model.albedo(torch.randn(count, model.albedo_size, generator=generator))
    seen = to_camera_space(neutral, rotation=rotation, translation=torch.tensor([0.0, 0.0, 1150.0]).expand(count, 3))
    camera = crop_camera(count, SIZE_PX)
    image = render(seen, model.triangles, albedo=albedo, lighting=ambient_light(count), camera=camera).image
    pixels = (image.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    points = project(model.landmarks(seen), camera).flatten(1).numpy()
    samples, clean = [], []
    for place in range(count):
        portrait = place == len(YAW_DEG)
        row = {
            "sample_id": f"photo{place}",
            "source": "portraits" if portrait else "photos",
            "path": "",
            "person": f"photos/{place // 2}",
            "split": "train" if place == count - 1 else "test",
            "labelled": False,
            "mesh_id": None if portrait else f"mesh{place}",
            "width": SIZE_PX,
            "height": SIZE_PX,
            "shard": "images-00000.parquet",
            "landmarks": None if portrait else points[place],
            "rotation": None if portrait else rotation[place].numpy(),
        }
        samples.append(row)
        detected = {
            "landmarks": points[place] + np.float32(0.3),
            "confidence": np.full(68, 0.9, np.float32),
            "box": np.float32([0, 0, SIZE_PX, SIZE_PX]),
            "face_score": 1.0,
            "yaw_deg": float(yaw[place]),
            "pitch_deg": 0.0,
            "roll_deg": 0.0,
            "label_quality": None,
            "affine": np.eye(3, dtype=np.float32).ravel(),
        }
        clean.append({**row, "annotation": row["landmarks"], **detected})
    meshes = [
        {
            "mesh_id": f"mesh{place}",
            "person": f"photos/{place // 2}",
            "vertices": mesh,
            "neutral": mesh,
            "fit_error_mm": 0.0,
            "coverage": 1.0,
        }
        for place, mesh in enumerate(neutral.flatten(1).numpy())
    ]
    ingest, validated = workspace.folder("ingest"), workspace.folder("validate_labels")
    write_table(ingest / "samples.parquet", samples, SAMPLES)
    write_table(ingest / "meshes.parquet", meshes, MESHES)
    stored = [cv2.imencode(".png", picture[..., ::-1])[1].tobytes() for picture in pixels]
    ids = [row["sample_id"] for row in samples]
    write_table(ingest / "images-00000.parquet", {"sample_id": ids, "image": stored}, IMAGES)
    write_table(validated / "clean.parquet", clean, CLEAN)
    crops = {"sample_id": ids, "crop": [picture.tobytes() for picture in pixels]}
    write_table(validated / "crops-00000.parquet", crops, CROPS)
    settings = ReconstructorSettings(
        crop_size_px=SIZE_PX,
        crop_scale=1.35,
        geometry_width=16,
        geometry_blocks=1,
        geometry_refinements=1,
        backbone="resnet-slim",
        width=8,
        features=16,
    )
    torch.manual_seed(0)
    content = reconstructor_content(Reconstructor(model, settings))
    for name in BLOCKS.values():
        if name is not None:
            save_checkpoint(workspace.folder(name) / "checkpoint.pt", content)
    (workspace.folder("train_fused") / "curve.csv").write_text(
        "step,split,name,value\n0,train,loss,2.0\n1,train,loss,1.0\n"
    )
    write_json(workspace.folder("refusion") / "metrics.json", {"stopped": "3 rounds are done"})
    return workspace


class LoggedRun:
    """Stands in for the MLflow run, whose database takes longer than all the rest; it has tests of its own."""

    run_id = "0a1b2c"

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}
        self.files: list[str] = []

    def metrics(self, values: dict[str, float]) -> None:
        self.logged |= values

    def artifact(self, path: Path) -> None:
        assert path.is_file()
        self.files.append(path.name)


@pytest.fixture(scope="module")
def run() -> Iterator[LoggedRun]:
    logged = LoggedRun()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "track", lambda params, workspace, name: nullcontext(logged))
        yield logged


@pytest.fixture(scope="module")
def evaluated(params: Params, workspace: Workspace, run: LoggedRun) -> Path:
    evaluate(params, workspace)
    return workspace.folder("evaluate")


def test_the_run_remembers_numbers_and_report(evaluated: Path, run: LoggedRun) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert run.files == ["report.html"]
    assert run.logged["refusion.vertex_error_mm"] == metrics["refusion"]["vertex_error_mm"]
    assert run.logged["fused.by_yaw.0-30.similarity"] == metrics["fused"]["by_yaw"]["0-30"]["similarity"]
    assert "mean_face.depth_correlation" not in run.logged


def test_metrics_have_a_block_for_the_baseline_and_every_stage(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert list(metrics) == [
        "mean_face",
        "optimised",
        "geometry",
        "self_supervised",
        "supervised",
        "fused",
        "refusion",
        "refined",
    ]
    wanted = {
        "scan_error_mm_median",
        "scan_error_mm_mean",
        "scan_error_scaled_mm_median",
        "vertex_error_mm",
        "normal_error_deg",
        "depth_slope",
        "depth_correlation",
        "landmark_nme",
        "pose_error_deg",
        "similarity",
        "psnr_db",
        "nose_error_mm",
        "nose_ratio",
        "yaw_error_deg",
        "vertex_error_mm_low",
        "scan_error_mm_median_high",
        "depth_slope_low",
    }
    for name, block in metrics.items():
        assert wanted <= set(block), name
        assert (block["photos"], block["photos_with_mesh"], block["persons"]) == (7, 6, 4)
        assert {bin_: values["photos"] for bin_, values in block["by_yaw"].items()} == {
            "0-30": 5,
            "30-60": 1,
            "60-90": 1,
        }
        assert 0.1 < block["vertex_error_mm"] < 20
        assert sum(values["photos"] for values in block["by_source"].values()) == 7
        assert sum(values["photos"] for values in block["by_tone"].values()) == 7
        assert set(block["by_tone"]) == {"light", "medium", "dark"}
        gain = block["versus_mean_face"]
        expected = block["vertex_error_mm"] - metrics["mean_face"]["vertex_error_mm"]
        assert gain["vertex_error_mm"] == pytest.approx(expected, abs=1e-4)
        assert gain["vertex_error_mm_low"] <= gain["vertex_error_mm"] <= gain["vertex_error_mm_high"]
    # The mean face has no relief of its own, and finds its pose from nearly exact landmarks.
    assert metrics["mean_face"]["depth_slope"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["mean_face"]["depth_correlation"] is None
    assert metrics["mean_face"]["pose_error_deg"] < 12
    assert metrics["mean_face"]["similarity"] > 0.5
    # From nearly exact landmarks the fit finds more than the mean face does.
    assert metrics["optimised"]["vertex_error_mm"] < metrics["mean_face"]["vertex_error_mm"]
    assert metrics["optimised"]["landmark_nme"] < metrics["mean_face"]["landmark_nme"]
    # All trained blocks hold the same untrained network.
    assert metrics["fused"] == metrics["refusion"] == metrics["supervised"]
    # Whose answer refinement leaves far behind.
    assert metrics["refined"]["landmark_nme"] < 0.5 * metrics["refusion"]["landmark_nme"]


def test_every_block_says_whether_faces_tell_persons_apart(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    for name, block in metrics.items():
        found = block["identity"]
        # Seven photos of four persons, three of whom were photographed twice.
        assert (found["pairs_same"], found["pairs_different"]) == (3, 18), name
        assert list(found["by_yaw"]) == ["0-30", "30-60", "60-90"]
        assert sum(part["pairs_same"] for part in found["by_yaw"].values()) == 3
    # All faces are one, so that nothing tells two apart.
    assert metrics["mean_face"]["identity"]["geometry_auc"] == 0.5
    assert metrics["mean_face"]["identity"]["distinctness"] is None
    # Nearly exact landmarks do; each photo has a shape of its own here, but the gallery holds the first of each person.
    assert metrics["optimised"]["identity"]["rank1_neutral"] >= 0.5
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert "Who is who" in page
    picture = cv2.imread(str(evaluated / "pictures" / "identities.png"))
    assert picture.shape == (3 * 150 + 2 * 4, 7 * 150 + 6 * 4, 3)


def test_every_photo_of_the_test_split_has_a_row_per_block(evaluated: Path) -> None:
    table = pq.read_table(evaluated / "samples.parquet")
    assert table.schema.equals(SAMPLE_MEASURES)
    rows = table.to_pylist()
    assert len(rows) == 7 * len(BLOCKS)
    assert {row["sample_id"] for row in rows} == {f"photo{place}" for place in range(7)}
    portraits = [row for row in rows if row["source"] == "portraits"]
    assert len(portraits) == len(BLOCKS)
    assert {row["scan_error_mm"] for row in portraits} == {row["landmark_nme"] for row in portraits} == {None}
    assert all(row["similarity"] is not None for row in rows)


def test_the_report_is_one_file_with_its_pictures(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert len(page) < 6e6
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    assert "7 photos of 4 persons" in page
    assert "MLflow run <code>0a1b2c</code>" in page
    for heading in (
        "At a glance",
        "Stage by stage",
        "Part by part",
        "Light skin and dark",
        "Best, median, worst",
        "How it learned",
    ):
        assert heading in page
    drawn = {path.name for path in (evaluated / "pictures").iterdir()}
    assert {
        "overview.png",
        "error_distribution.png",
        "by_yaw.png",
        "by_tone.png",
        "gains.png",
        "face_best_1.png",
        "curve_train_fused.png",
    } <= drawn
    overview = cv2.imread(str(evaluated / "pictures" / "overview.png"))
    assert overview.shape == (3 * 200 + 2 * 4, 3 * 200 + 2 * 4, 3)
    # The upper two rows show the same photos, without and with a face over them.
    assert 0 < np.abs(overview[:200].astype(int) - overview[204:404]).mean() < 120


def test_a_missing_stage_is_named_and_the_old_result_stays(
    params: Params, workspace: Workspace, evaluated: Path, model: MorphableModel
) -> None:
    before = (evaluated / "metrics.json").read_bytes()
    path = workspace.folder("train_fused") / "checkpoint.pt"
    content = load_checkpoint(path)
    path.unlink()
    try:
        with pytest.raises(
            FileNotFoundError, match=r"train_fused.checkpoint\.pt: missing; run the stage train_fused first"
        ):
            evaluate(params, workspace)
        save_checkpoint(path, {**content, "face_model": "0000"})
        with pytest.raises(ValueError, match=r"train_fused.checkpoint\.pt: .*face model 0000"):
            evaluate(params, workspace)
    finally:
        save_checkpoint(path, content)
    assert (evaluated / "metrics.json").read_bytes() == before


def test_the_baseline_finds_the_pose_of_a_mean_face(model: MorphableModel) -> None:
    rotation = rotation_from_angles(torch.tensor([0.4]), torch.tensor([0.1]), torch.tensor([-0.05]))
    translation = torch.tensor([[5.0, -3.0, 1150.0]])
    seen = to_camera_space(model.mean[None], rotation=rotation, translation=translation)
    camera = crop_camera(1, SIZE_PX)
    lighting = ambient_light(1)
    photo = render(seen, model.triangles, albedo=model.albedo_mean[None], lighting=lighting, camera=camera)
    landmarks = project(model.landmarks(seen), camera)
    batch = Batch(
        source="test",
        sample_ids=("photo",),
        camera=camera,
        image=photo.image.clamp(0, 1),
        mask=torch.ones(1, SIZE_PX, SIZE_PX, dtype=torch.bool),
        landmarks=landmarks,
        confidence=torch.ones(1, 68),
        person=torch.zeros(1, dtype=torch.int64),
    )
    coefficients, rendering, points = predict_mean_face(model, batch)
    torch.testing.assert_close(coefficients.rotation, rotation, atol=1e-3, rtol=0)
    torch.testing.assert_close(points, landmarks, atol=1e-2, rtol=0)
    assert not coefficients.identity.any()
    assert (rendering.image - photo.image)[:, :, photo.mask[0]].abs().mean() < 0.02
