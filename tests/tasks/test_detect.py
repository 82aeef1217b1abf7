"""The stages train_detector and detect_landmarks on drawn faces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tasks import train_detector as stage
from tasks.annotated_photos import neighbourhood
from tasks.artifacts import (
    IMAGES,
    LANDMARKS,
    QUARANTINE,
    SAMPLES,
    Workspace,
    load_checkpoint,
    read_json,
    read_table,
    write_table,
)
from tasks.detect import detect_landmarks, detect_shard, merge, open_detector, shards
from tasks.detector_errors import normalized_error
from tasks.images import encode, read_images
from tasks.params import Params, parse_params
from tasks.train_detector import train_detector

TRAINING = {
    "init": "train_geometry",
    "steps": 1,
    "sources": [{"source": "photos", "share": 1.0, "losses": {"photo": 1.0}}],
}


def make_params(
    detector: str, *, ingest: dict[str, Any] | None = None, min_face_score: float = 0.5, **section: Any
) -> Params:
    return parse_params(
        {
            "project": {"precision": "32-true"},
            "ingest": {"sources": [{"kind": "synthetic", "name": "photos", "persons": 3}], **(ingest or {})},
            "train_detector": {"input_size_px": 64, "epochs": 2, "batch_size": 8, "finder_steps": 4, **section},
            "detect_landmarks": {"detector": detector, "min_face_score": min_face_score},
            **{f"train_{stage}": TRAINING for stage in ("self_supervised", "supervised", "fused")},
        }
    )


def ellipse_points(centre: Sequence[float], side: float) -> np.ndarray:
    turn = np.arange(68) * (2 * np.pi / 68)
    return np.array(centre) + 0.5 * side * np.stack([0.8 * np.cos(turn), np.sin(turn)], 1)


def write_ingest(workspace: Workspace, count: int, *, annotated: int, dense: int = 0, outlined: bool = False) -> None:
    """Photos of an ellipse each; the first ones are annotated, every fifth is for validation.

    `dense`: so many further points of every second annotated photo; `outlined`: and its outline, beside the jaw.
    """
    random = np.random.default_rng(0)
    samples, images = [], []
    for number in range(count):
        centre, side = 40 + random.uniform(-5, 5, 2), random.uniform(38, 50)
        image = np.full((80, 80, 3), 40, np.uint8)
        points = ellipse_points(centre, side)
        cv2.fillPoly(image, [np.rint(points).astype(np.int32)], (200, 150, 120), cv2.LINE_AA)
        known = number < annotated
        samples.append(
            {
                "sample_id": f"sample{number:03d}",
                "source": "photos",
                "path": f"{number}.png",
                "person": f"photos/{number}",
                "split": "validation" if number % 5 == 4 else "train",
                "labelled": False,
                "mesh_id": None,
                "width": 80,
                "height": 80,
                "shard": f"images-{number % 2:05d}.parquet",
                "landmarks": points.ravel().tolist() if known else None,
                "rotation": [0.0, random.uniform(-1.3, 1.3), 0.0] if known else None,
                "dense": points[:dense].ravel().tolist() if dense and known and number % 2 else None,
                "outline": (points[:17] + 1.0).ravel().tolist() if outlined and known and number % 2 else None,
            }
        )
        images.append({"sample_id": f"sample{number:03d}", "image": encode(image)})
    folder = workspace.folder("ingest")
    write_table(folder / "samples.parquet", samples, SAMPLES)
    for part in range(2):
        write_table(folder / f"images-{part:05d}.parquet", images[part::2], IMAGES)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


class TestTrainDetector:
    def test_leaves_what_later_stages_read(self, workspace: Workspace) -> None:
        write_ingest(workspace, 60, annotated=60)
        params = make_params("hierarchical")
        train_detector(params, workspace)
        folder = workspace.folder("train_detector")
        assert {path.name for path in folder.iterdir()} == {
            "checkpoint.pt",
            "landmarks.onnx",
            "finder.onnx",
            "noise.npz",
            "balance.csv",
            "balance.png",
            "curve.csv",
            "metrics.json",
        }
        with np.load(folder / "noise.npz", allow_pickle=False) as noise:
            assert noise["covariance"].shape == (2, 136, 136)
            assert noise["bias"].shape == (2, 136)
            assert noise["response"].shape == (2, 136, 136)
            assert np.linalg.eigvalsh(noise["covariance"]).min() > 0
            assert noise["sigma"].shape == (len(noise["large"]), 68)
            assert noise["sigma"].min() > 0
        metrics = read_json(folder / "metrics.json")
        assert metrics["training_photos"] == 48
        assert metrics["imbalance_after"] <= params.train_detector.balance_tolerance
        # 48 photos twice in steps of 8.
        assert metrics["steps"] == 12
        assert not {"validation_dense_nme", "validation_outline_nme"} & set(metrics)
        # What a killed run goes on from; its folders may stay.
        assert not any(path.is_file() for path in workspace.progress("train_detector").rglob("*"))
        detect_landmarks(params, workspace)
        summary = read_json(workspace.folder("detect_landmarks") / "summary.json")
        assert summary["photos"] == summary["found"] + summary["quarantined"] == 60
        for row in read_table(workspace.folder("detect_landmarks") / "landmarks.parquet", LANDMARKS).to_pylist():
            assert row["dense"] is row["dense_confidence"] is None

    def test_dense_points_reach_the_table_of_landmarks(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # What is exported has tests of its own.
        monkeypatch.setattr(stage, "export_detector", lambda content, folder: {})
        write_ingest(workspace, 50, annotated=50, dense=8)
        params = make_params("hierarchical", ingest={"dense_points": 8}, finder_steps=0, min_face_score=0.0)
        train_detector(params, workspace)
        metrics = read_json(workspace.folder("train_detector") / "metrics.json")
        detect_landmarks(params, workspace)
        rows = read_table(workspace.folder("detect_landmarks") / "landmarks.parquet", LANDMARKS).to_pylist()
        assert len(rows) == 50
        for row in rows:
            assert len(row["dense"]) == 16
            assert len(row["dense_confidence"]) == 8
            assert 0.0 < min(row["dense_confidence"]) <= max(row["dense_confidence"]) < 1.0
        found = {row["sample_id"]: row["dense"] for row in rows}
        errors = [
            normalized_error(
                *(np.reshape(one, (1, 8, 2)) for one in (found[row["sample_id"]], row["dense"])), box_of=box
            )
            for row in samples(workspace)
            if row["dense"] and row["split"] == "validation"
            for box in (np.reshape(row["landmarks"], (1, 68, 2)),)
        ]
        assert len(errors) == 5
        assert metrics["validation_dense_nme"] == pytest.approx(np.mean(errors), rel=1e-3)

    def test_outlines_are_learned_and_measured(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stage, "export_detector", lambda content, folder: {})
        write_ingest(workspace, 50, annotated=50, outlined=True)
        params = make_params("hierarchical", ingest={"outlines": True}, finder_steps=0, min_face_score=0.0)
        train_detector(params, workspace)
        folder = workspace.folder("train_detector")
        content = load_checkpoint(folder / "checkpoint.pt")
        assert content["outline"]
        assert content["weights"]["outline_head.guess.bias"].abs().max() > 0.0
        detector = open_detector(params, workspace, convention="handmade")
        errors = []
        for row in samples(workspace):
            if row["outline"] and row["split"] == "validation":
                found = detector.detect([read_images(workspace, [row["sample_id"]])[row["sample_id"]]])[0]
                assert found is not None
                outline, points = (np.reshape(row[name], (1, -1, 2)) for name in ("outline", "landmarks"))
                errors.append(normalized_error(found.landmarks[None, :17], outline, box_of=points))
        assert len(errors) == 5
        assert read_json(folder / "metrics.json")["validation_outline_nme"] == pytest.approx(np.mean(errors), rel=1e-2)

    def test_dense_points_of_another_number_are_refused(self, workspace: Workspace) -> None:
        write_ingest(workspace, 40, annotated=40, dense=9)
        with pytest.raises(ValueError, match=r"9 dense points per photo, expected 8 as ingest.dense_points says; run"):
            train_detector(make_params("hierarchical", ingest={"dense_points": 8}), workspace)

    def test_too_few_annotations(self, workspace: Workspace) -> None:
        write_ingest(workspace, 40, annotated=20)
        with pytest.raises(ValueError, match=r"16 annotated training photos, expected at least 30; use .*provided"):
            train_detector(make_params("hierarchical"), workspace)
        assert not workspace.folder("train_detector").exists()

    def test_other_detector_needs_only_its_noise(self, workspace: Workspace) -> None:
        train_detector(make_params("provided"), workspace)
        folder = workspace.folder("train_detector")
        with np.load(folder / "noise.npz", allow_pickle=False) as noise:
            np.testing.assert_allclose(noise["covariance"][1], np.eye(136))
            np.testing.assert_allclose(noise["sigma"], 0.01)
            assert set(noise["large"].tolist()) == {False, True}
        assert read_json(folder / "metrics.json")["skipped"] == 1


class TestDetect:
    def test_provided(self, workspace: Workspace) -> None:
        write_ingest(workspace, 12, annotated=9)
        params = make_params("provided")
        detect_landmarks(params, workspace)
        folder = workspace.folder("detect_landmarks")
        rows = read_table(folder / "landmarks.parquet", LANDMARKS).to_pylist()
        refused = read_table(folder / "quarantine.parquet", QUARANTINE).to_pylist()
        assert len(rows) == 9
        assert [row["reason"] for row in refused] == ["no_annotation"] * 3
        given = {row["sample_id"]: row["landmarks"] for row in samples(workspace)}
        for row in rows:
            np.testing.assert_allclose(row["landmarks"], given[row["sample_id"]])
            np.testing.assert_allclose(row["confidence"], 0.8, rtol=1e-6)
            assert np.isfinite([row["yaw_deg"], row["pitch_deg"], row["roll_deg"]]).all()
        assert read_json(folder / "summary.json")["mean_nme"] == 0.0

    def test_no_face_is_quarantined(self, workspace: Workspace) -> None:
        write_ingest(workspace, 6, annotated=6)

        class Blind:
            def detect(self, images: Sequence[np.ndarray], *, annotations: Any = None) -> list[None]:
                return [None] * len(images)

        params = make_params("hierarchical")
        merge(params, workspace, [detect_shard(params, workspace, shard, Blind()) for shard in shards(workspace)])
        folder = workspace.folder("detect_landmarks")
        refused = read_table(folder / "quarantine.parquet", QUARANTINE).to_pylist()
        assert {row["sample_id"] for row in refused} == {row["sample_id"] for row in samples(workspace)}
        assert {row["reason"] for row in refused} == {"no_face"}
        assert read_table(folder / "landmarks.parquet", LANDMARKS).num_rows == 0
        assert read_json(folder / "summary.json")["mean_nme"] is None

    def test_photos_of_another_face_model_are_skipped_and_counted(self, workspace: Workspace) -> None:
        write_ingest(workspace, 12, annotated=9)
        path = workspace.folder("ingest") / "samples.parquet"
        rows = samples(workspace)
        for row in rows[::2] + rows[1:2]:
            row["source"] = "other"
        write_table(path, rows, SAMPLES)
        params = make_params("provided")
        photos = params.ingest.sources[0]
        other = photos.model_copy(update={"name": "other", "face_model": params.face_model})
        ingest = params.ingest.model_copy(update={"sources": (photos, other)})
        # A shard that holds nothing else needs no detector.
        detect_landmarks(params.model_copy(update={"ingest": ingest}), workspace)
        folder = workspace.folder("detect_landmarks")
        summary = read_json(folder / "summary.json")
        assert (summary["photos"], summary["found"], summary["quarantined"], summary["skipped"]) == (12, 3, 2, 7)
        found = {row["sample_id"] for row in read_table(folder / "landmarks.parquet", LANDMARKS).to_pylist()}
        assert found == {row["sample_id"] for row in rows if row["source"] == "photos" and row["landmarks"]}

    def test_order_of_shards_does_not_matter(self, workspace: Workspace) -> None:
        write_ingest(workspace, 8, annotated=8)
        params = make_params("provided")
        parts = [detect_shard(params, workspace, shard) for shard in shards(workspace)]
        written = []
        for order in (parts, parts[::-1]):
            merge(params, workspace, order)
            written.append((workspace.folder("detect_landmarks") / "landmarks.parquet").read_bytes())
        assert written[0] == written[1]

    def test_missing_checkpoint_names_the_stage(self, workspace: Workspace) -> None:
        write_ingest(workspace, 4, annotated=4)
        with pytest.raises(FileNotFoundError, match="run the stage train_detector first"):
            detect_landmarks(make_params("hierarchical"), workspace)


def samples(workspace: Workspace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES).to_pylist()
    return rows


class TestNeighbourhood:
    def test_large_faces_are_reduced(self) -> None:
        image = np.zeros((900, 1000, 3), np.uint8)
        points = ellipse_points((500, 400), 400).astype(np.float32)
        reduced, moved = neighbourhood(image, points, size_px=100)
        assert np.ptp(moved, axis=0).max() == pytest.approx(100, rel=0.01)
        assert max(reduced.shape[:2]) <= 260
        image[396:404, 496:504] = 255
        reduced, moved = neighbourhood(image, points, size_px=100)
        rows, columns = np.nonzero(reduced[..., 0] > 60)
        np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], moved.mean(0), atol=0.3)

    def test_small_faces_are_cut_out(self) -> None:
        image = np.arange(300 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 300, 3)
        points = ellipse_points((150, 150), 40).astype(np.float32)
        part, moved = neighbourhood(image, points, size_px=100)
        left, top = np.rint(points[0] - moved[0]).astype(int)
        np.testing.assert_array_equal(part, image[top : top + part.shape[0], left : left + part.shape[1]])
        assert part.shape[0] < 150


def test_normalized_error_value() -> None:
    points = ellipse_points((0, 0), 10)[None]
    # The box is 8 x 10; every point 1 px off.
    assert normalized_error(points + [1.0, 0.0], points)[0] == pytest.approx(1 / np.sqrt(80), rel=1e-2)
