"""The benchmark of accuracy: what it reads, what it matches, what it writes. A stand-in detects."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import landmark_accuracy
from benchmarks.landmark_accuracy import (
    conventions_of,
    evaluate,
    join_evaluations,
    main,
    parse_edges,
    report,
    without_nan,
    write_rows,
)
from benchmarks.landmark_evaluation import detectors
from benchmarks.landmark_evaluation.detectors import find_faces, open_detector
from benchmarks.landmark_evaluation.photos import crop_around, fitted_yaw, open_photos
from models.face.procedural import procedural_face
from models.landmarks.accuracy import reliability_curve
from models.landmarks.detector import Detection
from models.landmarks.framing import landmark_box
from tasks.artifacts import IMAGES, SAMPLES, read_table, write_table
from tasks.images import encode
from tasks.landmark_pictures import worst_first, write_curves, write_sheet

KEYS = {"nme68", "nme51", "fr10", "auc10", "count", "missed"}


def face_points(centre: tuple[float, float] = (60.0, 50.0), size: float = 40.0) -> np.ndarray:
    angle = np.linspace(0.0, 2.0 * np.pi, 68, endpoint=False)
    return (np.stack([np.cos(angle), np.sin(angle)], 1) * size / 2.0 + centre).astype(np.float32)


def detection(points: np.ndarray, score: float = 0.9) -> Detection:
    return Detection(points, np.full(68, 0.5, np.float32), landmark_box(points[None])[0], score)


class StandIn:
    """Finds the same faces in every photo."""

    def __init__(self, *faces: np.ndarray) -> None:
        self.faces = faces
        self.shapes: list[tuple[int, ...]] = []

    def detect_all(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        self.shapes += [image.shape for image in images]
        return [[detection(face) for face in self.faces] for _ in images]

    def detect(self, images: Sequence[np.ndarray], *, annotations: object = None) -> list[Detection | None]:
        return [faces[0] for faces in self.detect_all(images)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos: by table, by a .pts file that goes before the table, and one without annotation."""
    place = tmp_path / "photos"
    (place / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "deep/c.png"):
        cv2.imwrite(str(place / name), np.full((100, 120, 3), 90, np.uint8))
    header = ["file", *(f"{axis}{point}" for point in range(68) for axis in "xy")]
    with (place / "landmarks.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, ["a.jpg", *face_points().ravel()], ["b.jpg", *(face_points() + 9.0).ravel()]]
        )
    write_pts(place / "b.pts", face_points())
    return place


def write_pts(path: Path, points: np.ndarray) -> None:
    lines = "\n".join(f"{x + 0.5:.6f} {y + 0.5:.6f}" for x, y in points)
    path.write_text(f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n")


class TestConventions:
    def test_pts_files_are_made_by_hand(self, folder: Path) -> None:
        photos = open_photos(folder)
        assert photos.names == ["a.jpg", "b.jpg"]
        assert conventions_of(photos, outlined=True) == {"annotated": [0], "handmade": [1]}
        assert conventions_of(photos, outlined=False) == {"annotated": [0, 1]}
        assert conventions_of(open_photos(folder, labels="csv"), outlined=True) == {"annotated": [0, 1]}

    def test_parts_are_joined_in_the_order_of_the_photos(self, folder: Path) -> None:
        photos = open_photos(folder)
        near, far = StandIn(face_points()), StandIn(face_points() + 3.0)
        joined = join_evaluations([evaluate(far, photos, chosen_rows=[1]), evaluate(near, photos, chosen_rows=[0])])
        assert joined.rows == [0, 1]
        np.testing.assert_allclose(joined.faces.found, [face_points(), face_points() + 3.0], rtol=1e-6)
        np.testing.assert_allclose(joined.faces.annotated, photos.points, rtol=1e-6)
        assert joined.candidates == [1, 1]


class TestPhotos:
    def test_pts_go_before_the_table_and_count_from_one(self, folder: Path) -> None:
        photos = open_photos(folder)
        assert photos.names == ["a.jpg", "b.jpg"]
        np.testing.assert_allclose(photos.points, [face_points(), face_points()], atol=1e-4)
        assert photos.read(1).shape == (100, 120, 3)

    def test_labels_choose_the_kind(self, folder: Path) -> None:
        assert open_photos(folder, labels="pts").names == ["b.jpg"]
        np.testing.assert_allclose(open_photos(folder, labels="csv").points[1], face_points() + 9.0, atol=1e-4)

    def test_pts_in_folders_below_are_found(self, folder: Path) -> None:
        write_pts(folder / "deep" / "c.pts", face_points())
        assert open_photos(folder).names == ["a.jpg", "b.jpg", "deep/c.png"]

    def test_splits_share_the_photos(self, folder: Path) -> None:
        # The SHA-256 of these names end in e and 8.
        assert open_photos(folder, split="train").names == ["a.jpg"]
        assert open_photos(folder, split="test").names == ["b.jpg"]

    def test_what_cannot_be_used_is_named(self, folder: Path) -> None:
        write_pts(folder / "a.pts", np.zeros((68, 2)))
        (folder / "lost.pts").write_text("{ 1 2 }")
        refused = dict(open_photos(folder).refused)
        assert "degenerate" in refused["a.jpg"]
        assert "without a photo" in refused["lost.pts"]

    def test_nothing_to_measure_is_said_in_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no annotated photo.*expected photos with landmarks\.csv"):
            open_photos(tmp_path)
        with pytest.raises(FileNotFoundError, match="no such folder"):
            open_photos(tmp_path / "absent")

    def test_yaw_of_projected_heads(self) -> None:
        points = procedural_face().landmark_mean.double()
        yaw = torch.deg2rad(torch.tensor([-40.0, 0.0, 55.0], dtype=torch.float64))
        projected = [
            np.stack([(points[:, 0] * a.cos() + points[:, 2] * a.sin()).numpy(), -points[:, 1].numpy()], 1) for a in yaw
        ]
        fitted = fitted_yaw(np.array(projected) * 2.0 + 500.0)
        # The camera of the fit has perspective and these heads have none.
        np.testing.assert_allclose(np.abs(fitted), [40.0, 0.0, 55.0], atol=6.0)
        assert fitted[0] * fitted[2] < 0

    def test_a_crop_of_the_truth_holds_the_face(self) -> None:
        image = np.arange(100 * 120 * 3, dtype=np.uint32).reshape(100, 120, 3).astype(np.uint8)
        crop, corner = crop_around(image, face_points())
        x, y = corner.astype(int)
        np.testing.assert_array_equal(crop, image[y : y + crop.shape[0], x : x + crop.shape[1]])
        assert crop.shape[:2] == (64, 64)


class TestStore:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        """What `ingest` writes of a rendered photo in the test split and of an annotated one in each split."""
        known = {"labelled": False, "width": 120, "height": 100, "shard": "images-00000.parquet"}
        rows = [
            ("p1", "portraits", "test", None),
            ("p2", "portraits", "train", None),
            ("r1", "renders", "test", [0.0, -0.5, 0.0]),
        ]
        samples = [
            {"sample_id": name, "source": source, "path": "", "person": name, "split": split, "rotation": rotation}
            | {"landmarks": face_points().ravel().tolist()}
            | known
            for name, source, split, rotation in rows
        ]
        images = [
            {"sample_id": name, "image": encode(np.full((100, 120, 3), 40 + place, np.uint8))}
            for place, (name, *_) in enumerate(rows)
        ]
        write_table(tmp_path / "samples.parquet", samples, SAMPLES)
        write_table(tmp_path / "images-00000.parquet", images, IMAGES)
        return tmp_path

    def test_splits_are_those_that_were_drawn(self, store: Path) -> None:
        assert open_photos(store, split="test").names == ["p1", "r1"]
        assert open_photos(store, split="train").names == ["p2"]
        assert open_photos(store).read(2).max() == 42

    def test_the_true_yaw_is_used_where_it_is_known(self, store: Path) -> None:
        photos = open_photos(store, split="test")
        assert abs(photos.yaw_deg[1]) == pytest.approx(np.rad2deg(0.5), abs=1e-3)
        assert photos.yaw_deg[0] == pytest.approx(fitted_yaw(face_points()[None])[0])

    def test_handmade_points_of_rendered_photos_have_their_jaw_on_the_outline(self, store: Path) -> None:
        assert open_photos(store, handmade=True).names == ["p1", "p2"]
        samples = read_table(store / "samples.parquet", SAMPLES).to_pylist()
        samples[2]["outline"] = (face_points()[:17] + 5.0).ravel().tolist()
        write_table(store / "samples.parquet", samples, SAMPLES)
        photos = open_photos(store, handmade=True)
        assert photos.names == ["p1", "p2", "r1"]
        np.testing.assert_array_equal(photos.points[:2], [face_points()] * 2)
        np.testing.assert_allclose(photos.points[2, :17], face_points()[:17] + 5.0)
        np.testing.assert_array_equal(photos.points[2, 17:], face_points()[17:])
        np.testing.assert_array_equal(open_photos(store).points[2], face_points())

    def test_rendered_photos_are_told_from_annotated_ones(self, store: Path) -> None:
        assert open_photos(store).rendered
        assert not open_photos(store, source="portraits").rendered
        with pytest.raises(ValueError, match="expected one of portraits, renders"):
            open_photos(store, source="absent")


class TestEvaluation:
    def test_the_annotated_face_counts_and_others_do_not(self, folder: Path) -> None:
        photos = open_photos(folder)
        result = evaluate(StandIn(face_points((20.0, 20.0), 20.0), face_points() + [1.0, 0.0]), photos)
        assert result.candidates == [2, 2]
        numbers = report(result, photos, edges_deg=[0.0, 30.0, 90.0])
        eyes = float(np.linalg.norm(face_points()[36] - face_points()[45]))
        assert numbers["nme68"] == pytest.approx(1.0 / eyes, rel=1e-4)
        assert numbers["nme68_box"] == pytest.approx(1.0 / 40.0, rel=1e-2)
        assert (numbers["count"], numbers["missed"], numbers["refused"]) == (2, 0, 0)

    def test_another_face_is_a_miss_and_a_failure(self, folder: Path) -> None:
        photos = open_photos(folder)
        numbers = report(evaluate(StandIn(face_points((15.0, 15.0), 20.0)), photos), photos, edges_deg=[0.0, 90.0])
        assert (numbers["missed"], numbers["fr10"], numbers["auc10"], numbers["nme68"]) == (2, 1.0, 0.0, None)
        json.dumps(numbers, allow_nan=False)

    def test_boxes_of_the_truth_move_points_back(self, folder: Path) -> None:
        photos = open_photos(folder)
        detector = StandIn(face_points() - [28.0, 18.0])
        result = evaluate(detector, photos, from_truth=True)
        np.testing.assert_allclose(result.faces.found, result.faces.annotated, atol=1e-3)
        assert detector.shapes == [(64, 64, 3)] * 2

    def test_a_broken_photo_is_refused_and_the_rest_measured(self, folder: Path) -> None:
        (folder / "a.jpg").write_bytes(b"no photo")
        photos = open_photos(folder)
        result = evaluate(StandIn(face_points()), photos)
        assert (result.rows, [name for name, _ in result.unreadable]) == ([1], ["a.jpg"])
        assert report(result, photos, edges_deg=[0.0, 90.0])["refused"] == 1

    def test_a_detector_of_one_face_serves_too(self) -> None:
        class One:
            def detect(self, images, *, annotations=None):
                return [detection(face_points()), None]

        found = find_faces(One(), [np.zeros((4, 4, 3), np.uint8)] * 2, annotations=[face_points()] * 2)
        assert [len(faces) for faces in found] == [1, 0]

    def test_rows_and_pictures(self, folder: Path, tmp_path: Path) -> None:
        photos = open_photos(folder)
        result = evaluate(StandIn(face_points() + [2.0, 0.0]), photos)
        result.faces.found[0] = np.nan
        write_rows(tmp_path / "rows.csv", result, photos)
        rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
        assert [(row["file"], row["found"], bool(row["nme68"])) for row in rows] == [
            ("a.jpg", "0", False),
            ("b.jpg", "1", True),
        ]
        assert worst_first(result.faces) == [0, 1]
        write_sheet(tmp_path / "sheet.png", result.faces, photos.names, photos.read)
        sheet = cv2.imread(str(tmp_path / "sheet.png"))
        green, red = (sheet == (60, 220, 60)).all(2), (sheet == (60, 60, 240)).all(2)
        # The missed photo shows the annotation alone, the other one both.
        assert green[:, :320].any()
        assert green[:, 320:].any()
        assert not red[:, :320].any()
        assert red[:, 320:].any()
        write_curves(tmp_path / "curves.png", result.faces, reliability_curve(result.faces))
        assert cv2.imread(str(tmp_path / "curves.png")).shape[1] == 1000


class TestCommand:
    def run(self, *words: str):
        app = typer.Typer()
        app.command()(main)
        return CliRunner().invoke(app, list(words))

    def test_provided_makes_no_error(self, folder: Path, tmp_path: Path) -> None:
        done = self.run(str(folder), "--detector", "provided", "--json", str(tmp_path / "out.json"))
        assert done.exit_code == 0, done.output
        numbers = json.loads((tmp_path / "out.json").read_text())
        assert numbers.keys() >= KEYS
        assert (numbers["count"], numbers["missed"], numbers["convention"]) == (2, 0, "annotated")
        assert numbers["nme68"] == pytest.approx(0.0, abs=1e-6)
        assert numbers["auc10"] == pytest.approx(1.0, abs=1e-4)
        assert sum(row["count"] for row in numbers["yaw_bins"]) == 2

    def test_the_convention_is_handed_on(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}

        def stand_in(name: str, **options: object) -> StandIn:
            asked.update(options, name=name)
            return StandIn(face_points())

        monkeypatch.setattr(landmark_accuracy, "open_detector", stand_in)
        assert self.run(str(folder), "--convention", "model", "--boxes", "opencv").exit_code == 0
        assert (asked["name"], asked["convention"], asked["boxes"]) == ("hierarchical", "model", "opencv")

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--detector", "nobody"], "expected hierarchical, face_alignment, provided"),
            (["--yaw-bins", "0,x"], "expected numbers with commas"),
            (["--yaw-bins", "30,0"], "expected two or more that rise"),
            (["--workspace", "absent"], "run the stage train_detector first"),
            (["--split", "validation"], "expected all, train or test"),
        ],
    )
    def test_errors_are_one_line(self, folder: Path, words: list[str], said: str) -> None:
        done = self.run(str(folder), *words)
        assert done.exit_code == 1
        assert said in " ".join(done.output.split())
        assert "Traceback" not in done.output


def test_weights_must_exist_and_suit_the_runtime(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no landmarks\.onnx.*--runtime torch"):
        open_detector("hierarchical", workspace=tmp_path, weights=tmp_path, runtime="onnx")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint\.pt"):
        open_detector(str(tmp_path), workspace=tmp_path)
    with pytest.raises(ValueError, match="takes none"):
        open_detector("provided", workspace=tmp_path, weights=tmp_path)


def test_exported_files_go_before_a_checkpoint_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("landmarks.onnx", "checkpoint.pt"):
        (tmp_path / name).touch()
    monkeypatch.setattr("models.landmarks.portable.load_portable", lambda place, **options: ("onnx", place, options))
    monkeypatch.setattr(detectors, "load_checkpoint", lambda path: path)
    monkeypatch.setattr(detectors, "build_detector", lambda kind, **options: ("torch", options["content"], options))

    def opened(**options: str) -> tuple:
        return open_detector(str(tmp_path), workspace=Path(), **options)

    runtime, place, options = opened(boxes="truth")
    assert (runtime, place) == ("onnx", tmp_path)
    # A photo that is cut around the face is its box.
    assert (options["convention"], options["boxes"]) == ("annotated", "windows")
    assert opened(runtime="torch")[:2] == ("torch", tmp_path / "checkpoint.pt")
    assert opened(device="cuda")[0] == "torch"
    alone = open_detector("hierarchical", workspace=Path(), weights=tmp_path / "landmarks.onnx", runtime="onnx")
    assert alone[:2] == ("onnx", tmp_path / "landmarks.onnx")


def test_not_a_number_becomes_null() -> None:
    assert without_nan({"a": [float("nan"), 1.0], "b": {"c": float("inf")}}) == {"a": [None, 1.0], "b": {"c": None}}


def test_edges_are_read_as_numbers() -> None:
    assert parse_edges("0,30,60.5") == [0.0, 30.0, 60.5]
