from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.face.crop import crop_affine, warp_crop
from models.face.morphable import MorphableModel
from tasks import validate
from tasks.artifacts import (
    CLEAN,
    CROPS,
    LANDMARKS,
    POINT_COLUMNS,
    QUARANTINE,
    Workspace,
    read_json,
    read_table,
)
from tasks.params import Params
from tasks.validate import GateError, failed_folder, validate_labels
from tests.faults.killed import files_of_at_most

CROP_PX = 64

MakeData = Callable[[int], Any]
MakeParams = Callable[..., Params]
Spoiled = tuple[Any, Workspace]


@pytest.fixture(scope="module", autouse=True)
def _small_face_model(small_face_model: MorphableModel) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "load_face_model", lambda params, workspace: small_face_model)
        yield


def spoil_landmark(field: str, change: Callable[[Any], Any]) -> Callable[[Any, int], None]:
    def spoil(data: Any, number: int) -> None:
        row = data.landmarks[number]
        row[field] = change(np.array(row[field]).copy())

    return spoil


def spoil_sample(field: str, value: Any) -> Callable[[Any, int], None]:
    def spoil(data: Any, number: int) -> None:
        data.samples[number][field] = value

    return spoil


def spoil_mesh(field: str, change: Callable[[Any], Any]) -> Callable[[Any, int], None]:
    def spoil(data: Any, number: int) -> None:
        mesh = data.mesh(number)
        mesh[field] = change(mesh[field])

    return spoil


def with_value(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return change


def drop_sample(data: Any, number: int) -> None:
    data.samples = [row for row in data.samples if row["sample_id"] != f"sample{number:02d}"]


def drop_image(data: Any, number: int) -> None:
    data.images = [row for row in data.images if row["sample_id"] != f"sample{number:02d}"]


def drop_mesh(data: Any, number: int) -> None:
    data.meshes.remove(data.mesh(number))


def unlink_mesh(data: Any, number: int) -> None:
    data.samples[number]["mesh_id"] = None


def repeat_landmarks(data: Any, number: int) -> None:
    data.landmarks.append(dict(data.landmarks[number]))


def leak_person(data: Any, number: int) -> None:
    """A photo in the test split of a person of whom two photos are in the training split."""
    data.samples[number]["split"] = "test"
    for row in (data.samples[number], data.samples[0], data.samples[2]):
        row["person"] = "photos/twice"


def leak_mesh(data: Any, number: int) -> None:
    """Another person's photo in the test split that carries a mesh of the training split, where it is seen twice."""
    data.samples[number] |= {"split": "test", "mesh_id": "mesh1"}
    data.samples[4] |= {"mesh_id": "mesh1", "labelled": True}


def annotate_badly(data: Any, number: int) -> None:
    data.samples[number]["landmarks"] = np.arange(10.0)


# Odd numbers have a mesh; 0 to 5 stay good.
FAULTS: dict[int, tuple[str, Callable[[Any, int], None]]] = {
    6: ("landmarks_not_finite", spoil_landmark("landmarks", with_value(7, np.nan))),
    8: ("landmarks_not_finite", spoil_landmark("landmarks", with_value(7, -np.inf))),
    10: ("landmark_count", spoil_landmark("landmarks", lambda points: points[:134])),
    11: ("landmark_count", spoil_landmark("landmarks", lambda points: None)),
    12: ("points_outside_photo", spoil_landmark("landmarks", lambda points: points + 40.0)),
    13: ("points_outside_photo", spoil_landmark("landmarks", lambda points: points - 40.0)),
    14: ("box_collapsed", spoil_landmark("landmarks", lambda points: points * 0 + 40.0)),
    15: ("box_collapsed", spoil_landmark("landmarks", lambda points: np.where(np.arange(136) % 2, points, 40.0))),
    16: ("points_coincide", spoil_landmark("landmarks", lambda points: np.where(np.arange(136) < 80, 40.0, points))),
    18: ("confidence_low", spoil_landmark("confidence", lambda values: values * 0.2)),
    19: ("confidence_low", spoil_landmark("confidence", lambda values: values * 0)),
    20: ("confidence_not_finite", spoil_landmark("confidence", with_value(0, np.nan))),
    22: ("confidence_range", spoil_landmark("confidence", with_value(0, 1.5))),
    23: ("confidence_range", spoil_landmark("confidence", with_value(0, -0.5))),
    24: ("confidence_count", spoil_landmark("confidence", lambda values: values[:5])),
    26: ("yaw_range", spoil_landmark("yaw_deg", lambda value: -170.0)),
    28: ("pitch_range", spoil_landmark("pitch_deg", lambda value: 75.0)),
    30: ("roll_range", spoil_landmark("roll_deg", lambda value: 120.0)),
    32: ("pose_not_finite", spoil_landmark("roll_deg", lambda value: math.nan)),
    34: ("pose_not_finite", spoil_landmark("yaw_deg", lambda value: None)),
    36: ("box_malformed", spoil_landmark("box", lambda box: box[[2, 3, 0, 1]])),
    37: ("box_malformed", spoil_landmark("box", lambda box: None)),
    38: ("duplicate_sample", repeat_landmarks),
    40: ("not_one_manifest_row", drop_sample),
    42: ("not_one_image", drop_image),
    44: ("person_in_two_splits", leak_person),
    46: ("mesh_in_two_splits", leak_mesh),
    47: ("manifest_incomplete", spoil_sample("person", None)),
    49: ("manifest_incomplete", spoil_sample("split", "holdout")),
    48: ("annotation_malformed", annotate_badly),
    51: ("not_one_mesh", drop_mesh),
    53: ("not_one_mesh", unlink_mesh),
    55: ("mesh_vertex_count", spoil_mesh("vertices", lambda vertices: vertices[:30])),
    57: ("mesh_vertex_count", spoil_mesh("neutral", lambda neutral: [1.0, 2.0, 3.0])),
    59: ("mesh_not_finite", spoil_mesh("vertices", lambda vertices: with_value(3, np.nan)(vertices))),
    61: ("mesh_not_finite", spoil_mesh("coverage", lambda coverage: math.nan)),
    63: ("mesh_size", spoil_mesh("vertices", lambda vertices: vertices * 0.1)),
    65: ("mesh_size", spoil_mesh("vertices", lambda vertices: vertices * 0)),
    67: ("mesh_coverage", spoil_mesh("coverage", lambda coverage: 1.2)),
    69: ("label_quality_low", spoil_mesh("fit_error_mm", lambda error: 9.0)),
}
COUNT = 70


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory, label_data: MakeData, label_params: MakeParams) -> Spoiled:
    data = label_data(COUNT)
    # Rows are dropped last, so that numbers hold until then.
    for number, (_, spoil) in sorted(FAULTS.items(), key=lambda item: item[1][1] is drop_sample):
        spoil(data, number)
    workspace = data.write(tmp_path_factory.mktemp("spoiled"))
    validate_labels(label_params(max_failed_share=0.99, min_label_quality=0.01), workspace)
    return data, workspace


def rows_of(workspace: Workspace, name: str, schema: Any) -> list[dict[str, Any]]:
    return read_table(workspace.folder("validate_labels") / name, schema).to_pylist()


@pytest.mark.parametrize("number", FAULTS, ids=[f"{number}-{reason}" for number, (reason, _) in FAULTS.items()])
def test_each_fault_is_quarantined_with_its_reason(spoiled: Spoiled, number: int) -> None:
    refused = [
        row
        for row in rows_of(spoiled[1], "quarantine.parquet", QUARANTINE)
        if row["sample_id"] == f"sample{number:02d}"
    ]
    assert {row["reason"] for row in refused} == {FAULTS[number][0]}
    assert len(refused) == (2 if FAULTS[number][0] == "duplicate_sample" else 1)
    known = FAULTS[number][1] is not drop_sample
    assert refused[0]["path"] == (f"folder/{number}.png" if known else None)


def test_every_row_is_either_clean_or_quarantined(spoiled: Spoiled) -> None:
    data, workspace = spoiled
    clean = [row["sample_id"] for row in rows_of(workspace, "clean.parquet", CLEAN)]
    refused = [row["sample_id"] for row in rows_of(workspace, "quarantine.parquet", QUARANTINE)]
    assert sorted(clean + refused) == sorted(row["sample_id"] for row in data.landmarks)
    assert not set(clean) & set(refused)
    assert clean == [f"sample{number:02d}" for number in range(COUNT) if number not in FAULTS]


def test_summary_counts(spoiled: Spoiled) -> None:
    data, workspace = spoiled
    summary = read_json(workspace.folder("validate_labels") / "summary.json")
    total = len(data.landmarks)
    assert (summary["in"], summary["clean"], summary["quarantined"]) == (total, COUNT - len(FAULTS), len(FAULTS) + 1)
    assert summary["reasons"]["points_outside_photo"] == 2
    assert sum(summary["reasons"].values()) == summary["quarantined"]
    assert summary["gate"] == {"passed": True, "max_failed_share": 0.99}
    for key in ("in", "clean", "quarantined"):
        assert sum(numbers[key] for numbers in summary["sources"].values()) == summary[key]
    assert summary["sources"]["unknown"] == {
        "in": 1, "clean": 0, "quarantined": 1, "labelled": 0, "mean_label_quality": None
    }  # fmt: skip


def test_no_person_and_no_mesh_stands_in_two_splits(spoiled: Spoiled) -> None:
    clean = rows_of(spoiled[1], "clean.parquet", CLEAN)
    for key in ("person", "mesh_id"):
        places = {(row[key], row["split"]) for row in clean if row[key] is not None}
        assert len(places) == len({name for name, _ in places})


def test_data_docs_name_the_quarantined_rows(spoiled: Spoiled) -> None:
    folder = spoiled[1].folder("validate_labels") / "data_docs"
    assert {page.name for page in folder.iterdir()} == {"index.html", "results.html", "suite.html"}
    results = (folder / "results.html").read_text()
    for number in FAULTS:
        assert f"sample{number:02d}" in results
    assert "sample00" not in results
    for page in folder.iterdir():
        assert "http" not in page.read_text()
        assert str(spoiled[1].root) not in page.read_text()


def test_clean_rows_carry_everything(tmp_path: Path, label_data: MakeData, label_params: MakeParams) -> None:
    data = label_data(6)
    data.landmarks.reverse()
    # Dense points stay in the tables that they come in, and are no fault.
    data.samples[1]["dense"] = np.zeros(8)
    data.landmarks[2] |= {"dense": np.zeros(8), "dense_confidence": np.full(4, 0.5)}
    workspace = data.write(tmp_path)
    validate_labels(label_params(), workspace)
    clean = rows_of(workspace, "clean.parquet", CLEAN)
    assert [row["sample_id"] for row in clean] == [row["sample_id"] for row in data.samples]
    for number, row in enumerate(clean):
        detected = data.landmarks[len(clean) - 1 - number]
        for field in (name for name in LANDMARKS.names[1:] if name not in POINT_COLUMNS):
            assert row[field] == pytest.approx(detected[field], rel=1e-6)
        sample = data.samples[number]
        if sample["landmarks"] is None:
            assert row["annotation"] is None
        else:
            assert row["annotation"] == pytest.approx(sample["landmarks"], rel=1e-6)
        assert (row["person"], row["mesh_id"], row["labelled"]) == (
            sample["person"],
            sample["mesh_id"],
            sample["labelled"],
        )
        points = torch.from_numpy(detected["landmarks"].reshape(1, 68, 2))
        affine = crop_affine(points, size_px=CROP_PX, scale=1.35)
        assert row["affine"] == pytest.approx(affine.flatten().tolist(), abs=1e-4)


def test_label_quality_by_hand(tmp_path: Path, label_data: MakeData, label_params: MakeParams) -> None:
    """The landmarks are projections of the mesh, so only registration (0.25 mm) and coverage (0.8) count."""
    data = label_data(4)
    workspace = data.write(tmp_path)
    validate_labels(label_params(), workspace)
    quality = [row["label_quality"] for row in rows_of(workspace, "clean.parquet", CLEAN)]
    assert quality[0] is None
    assert quality[2] is None
    assert [quality[1], quality[3]] == pytest.approx([0.8 * math.exp(-0.25)] * 2, rel=0.01)
    summary = read_json(workspace.folder("validate_labels") / "summary.json")
    assert summary["mean_label_quality"] == pytest.approx((quality[1] + quality[3]) / 2, abs=1e-5)
    assert summary["labelled"] == 2


def test_label_quality_falls_with_landmarks_that_miss_the_mesh(
    tmp_path: Path, label_data: MakeData, label_params: MakeParams
) -> None:
    data = label_data(4)
    noise = np.random.default_rng(1).normal(0, 1.0, 136)
    data.landmarks[3]["landmarks"] = data.landmarks[3]["landmarks"] + noise
    workspace = data.write(tmp_path)
    validate_labels(label_params(), workspace)
    row = rows_of(workspace, "clean.parquet", CLEAN)[3]
    # Noise of a photo pixel, in pixels of a crop of 224, less what the six degrees of the pose take up.
    spread = math.sqrt(2 * np.mean(noise**2) * (1 - 6 / 136)) * 224 / (row["affine"][0] * CROP_PX)
    assert row["label_quality"] == pytest.approx(0.8 * math.exp(-0.25 - spread / 4), rel=0.1)


def test_crops_are_cut_with_the_stored_affine(tmp_path: Path, label_data: MakeData, label_params: MakeParams) -> None:
    data = label_data(6)
    workspace = data.write(tmp_path)
    validate_labels(label_params(), workspace)
    shards = sorted(workspace.folder("validate_labels").glob("crops-*.parquet"))
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [4, 2]
    crops = {row["sample_id"]: row["crop"] for shard in shards for row in read_table(shard, CROPS).to_pylist()}
    clean = rows_of(workspace, "clean.parquet", CLEAN)
    assert set(crops) == {row["sample_id"] for row in clean}
    for number, row in enumerate(clean):
        expected = warp_crop(data.pixels[number], np.array(row["affine"]).reshape(3, 3), CROP_PX)
        assert crops[row["sample_id"]] == expected.tobytes()


def test_gate_stops_and_leaves_the_earlier_output(
    tmp_path: Path, label_data: MakeData, label_params: MakeParams
) -> None:
    data = label_data(4)
    workspace = data.write(tmp_path)
    params = label_params(max_failed_share=0.3)
    validate_labels(params, workspace)
    before = {path: path.read_bytes() for path in workspace.folder("validate_labels").rglob("*") if path.is_file()}
    for number in (1, 2):
        data.landmarks[number]["yaw_deg"] = 130.0
    data.write(tmp_path)
    with pytest.raises(GateError) as error:
        validate_labels(params, workspace)
    failed = failed_folder(workspace)
    assert str(error.value) == (
        "validate_labels: 50.0% of 4 rows failed, expected at most 30.0% (validate_labels.max_failed_share) and a row "
        f"left; mostly yaw_range (2); see {failed}/data_docs/index.html and {failed}/quarantine.parquet"
    )
    assert before == {path: path.read_bytes() for path in before}
    assert [row["sample_id"] for row in read_table(failed / "quarantine.parquet", QUARANTINE).to_pylist()] == [
        "sample01",
        "sample02",
    ]
    assert read_json(failed / "summary.json")["gate"] == {"passed": False, "max_failed_share": 0.3}
    assert "Stopped the pipeline" in (failed / "data_docs" / "index.html").read_text()

    label_data(4).write(tmp_path)
    validate_labels(params, workspace)
    assert not failed.exists()


def test_the_share_of_the_gate_itself_is_allowed(
    tmp_path: Path, label_data: MakeData, label_params: MakeParams
) -> None:
    data = label_data(4)
    data.landmarks[0]["yaw_deg"] = 130.0
    workspace = data.write(tmp_path)
    validate_labels(label_params(max_failed_share=0.25), workspace)
    assert len(rows_of(workspace, "clean.parquet", CLEAN)) == 3


def test_gate_refuses_an_empty_result(tmp_path: Path, label_data: MakeData, label_params: MakeParams) -> None:
    data = label_data(2)
    for row in data.landmarks:
        row["yaw_deg"] = 130.0
    with pytest.raises(GateError, match=r"100\.0% of 2 rows failed"):
        validate_labels(label_params(max_failed_share=1.0), data.write(tmp_path))


def test_no_rows_at_all(tmp_path: Path, label_data: MakeData, label_params: MakeParams) -> None:
    data = label_data(2)
    data.landmarks = []
    with pytest.raises(ValueError, match=r"landmarks\.parquet: no rows, expected at least one face"):
        validate_labels(label_params(), data.write(tmp_path))


@pytest.mark.parametrize("name", ["images-00000.parquet", "meshes.parquet", "samples.parquet"])
def test_missing_input_is_named(tmp_path: Path, name: str, label_data: MakeData, label_params: MakeParams) -> None:
    workspace = label_data(2).write(tmp_path)
    (workspace.folder("ingest") / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name.split('-')[0]}.*missing; run the stage ingest first"):
        validate_labels(label_params(), workspace)


def test_photo_of_another_size_stops(tmp_path: Path, label_data: MakeData, label_params: MakeParams) -> None:
    data = label_data(2)
    data.samples[1]["width"] = 200
    workspace = data.write(tmp_path)
    with pytest.raises(ValueError, match=r"photo sample01: 96 x 96 pixels, expected 200 x 96 .* run ingest again"):
        validate_labels(label_params(), workspace)
    assert not workspace.folder("validate_labels").exists()


def test_same_data_same_bytes_and_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_data: MakeData, label_params: MakeParams
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    contents = []
    for name in ("first", "second"):
        data = label_data(6)
        data.landmarks[0]["yaw_deg"] = 130.0
        workspace = data.write(tmp_path / name)
        validate_labels(label_params(), workspace)
        folder = workspace.folder("validate_labels")
        contents.append(
            {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        )
        assert {path.name for path in workspace.root.iterdir()} == {"artifacts"}
    assert contents[0] == contents[1]
    assert not list(home.iterdir())
    assert not list(here.iterdir())


def test_examples_that_the_disk_does_not_hold_are_an_error(tmp_path: Path) -> None:
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        validate._write_examples(tmp_path / "examples.png", CLEAN.empty_table(), np.zeros((0, 3, 3)), {})
