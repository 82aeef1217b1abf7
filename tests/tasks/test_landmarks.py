"""Photos to pictures, `.pts` files and the table."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.landmarks.cascade import HierarchicalDetector
from models.landmarks.detector import Detection
from tasks import landmarks
from tasks.annotations import Annotations, read_landmark_table, read_pts
from tasks.artifacts import Workspace
from tasks.landmarks import LandmarkError, draw_landmarks, find_landmarks, open_landmark_detector
from tests.tasks.trained_workspace import front_points, write_photo


def face(centre: Sequence[float], scale: float, confidence: float) -> Detection:
    points = ((front_points() - 75.0) * scale + centre).astype(np.float32)
    box = np.array([*points.min(0), *points.max(0)], np.float32)
    return Detection(points, np.full(68, confidence, np.float32), box, 0.9)


class Known:
    """Two faces in photos of 200 pixels, none in others."""

    def detect(self, images: Sequence[np.ndarray], *, annotations: object = None) -> list[Detection | None]:
        return [faces[0] if faces else None for faces in self.detect_all(images)]

    def detect_all(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        both = [face((70, 90), 1.0, 0.8), face((160, 60), 0.4, 0.3)]
        return [both if image.shape[1] == 200 else [] for image in images]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmarks, "open_landmark_detector", lambda *_, **__: Known())


def photo(path: Path, width: int) -> Path:
    Image.fromarray(np.full((150, width, 3), 70, np.uint8)).save(path)
    return path


@pytest.mark.usefixtures("known")
class TestFiles:
    def test_every_face_of_every_photo(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        photos = [photo(tmp_path / "two.png", 200), photo(tmp_path / "none.jpg", 120)]
        out = tmp_path / "out"
        written = find_landmarks(photos, out, workspace=Workspace(tmp_path))
        names = ["two_landmarks.png", "two.pts", "two-2.pts", "none_landmarks.png", "landmarks.csv"]
        assert [path.name for path in written] == names
        assert sorted(path.name for path in out.iterdir()) == sorted(names)
        assert capsys.readouterr().err == f"{photos[1]}: no face was found\n"
        expected = Known().detect_all([np.zeros((1, 200, 3))])[0]
        for name, one in zip(("two.pts", "two-2.pts"), expected, strict=True):
            np.testing.assert_allclose(read_pts(out / name), one.landmarks, atol=1e-3)
        with (out / "landmarks.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["file"], row["face"], row["confidence"]) for row in rows] == [
            ("two.png", "1", "0.8000"),
            ("two.png", "2", "0.3000"),
        ]
        assert float(rows[1]["y67"]) == pytest.approx(expected[1].landmarks[67, 1], abs=1e-3)

    def test_a_folder_and_a_broken_photo(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "photos"
        folder.mkdir()
        photo(folder / "a.png", 200)
        (folder / "b.png").write_bytes(b"no photo")
        with pytest.raises(LandmarkError, match="1 of 2 photos could not be used, see above"):
            find_landmarks([folder], tmp_path / "out", workspace=Workspace(tmp_path))
        message = capsys.readouterr().err
        assert message.startswith(f"{folder / 'b.png'}: not_an_image")
        assert len(message.splitlines()) == 1
        assert (tmp_path / "out" / "a-2.pts").exists()
        assert (tmp_path / "out" / "landmarks.csv").exists()

    def test_results_do_not_replace_each_other(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        photos = [photo(tmp_path / "a.png", 200), photo(tmp_path / "a-2.png", 200)]
        with pytest.raises(LandmarkError, match="1 of 2"):
            find_landmarks(photos, tmp_path / "out", workspace=Workspace(tmp_path))
        assert f"{photos[1]}: its results would replace those of {photos[0]}" in capsys.readouterr().err
        np.testing.assert_allclose(
            read_pts(tmp_path / "out" / "a-2.pts"), face((160, 60), 0.4, 0.3).landmarks, atol=1e-3
        )

    def test_the_table_is_one_that_ingest_reads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class One:
            def detect(self, images: Sequence[np.ndarray], *, annotations: object = None) -> list[Detection]:
                return [face((70, 90), 1.0, 0.8) for _ in images]

        monkeypatch.setattr(landmarks, "open_landmark_detector", lambda *_, **__: One())
        find_landmarks([photo(tmp_path / "one.png", 150)], tmp_path / "out", workspace=Workspace(tmp_path))
        read = Annotations()
        read_landmark_table(tmp_path / "out" / "landmarks.csv", read)
        np.testing.assert_allclose(read.landmarks["one.png"], face((70, 90), 1.0, 0.8).landmarks, atol=1e-3)

    def test_out_is_a_file(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.write_text("mine")
        with pytest.raises(ValueError, match="is a file, expected a folder; name another one with --out"):
            find_landmarks([photo(tmp_path / "a.png", 200)], out, workspace=Workspace(tmp_path))
        assert out.read_text() == "mine"


class TestDetector:
    def test_of_the_workspace_takes_anything_for_a_face(self, registered: Workspace, tmp_path: Path) -> None:
        picture = write_photo(tmp_path / "face.png")
        out = tmp_path / "out"
        find_landmarks([picture], out, workspace=registered, min_score=0.0)
        points = read_pts(out / "face.pts")
        assert np.isfinite(points).all()
        assert np.ptp(points, axis=0).max() > 1.0

    def test_weights_are_a_checkpoint_its_folder_or_an_export(self, registered: Workspace, tmp_path: Path) -> None:
        folder = registered.folder("train_detector")
        (exported,) = (registered.root / "mlruns").rglob("landmarks.onnx")
        shutil.copy(exported, tmp_path)
        pixels = np.asarray(Image.open(write_photo(tmp_path / "face.png")))
        found = []
        for place in (None, folder, folder / "checkpoint.pt", tmp_path, tmp_path / "landmarks.onnx"):
            ours = open_landmark_detector("hierarchical", workspace=registered, weights=place, min_score=0.0)
            assert isinstance(ours, HierarchicalDetector)
            assert ours.convention == "annotated"
            found.append(ours.detect([pixels])[0])
        for one in found[1:]:
            assert one is not None
            np.testing.assert_allclose(one.landmarks, found[0].landmarks, atol=1e-3)  # type: ignore[union-attr]

    def test_nothing_trained(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no trained detector; run `mien run` first or name one with"):
            open_landmark_detector("hierarchical", workspace=Workspace(tmp_path))

    def test_a_checkpoint_of_something_else(self, registered: Workspace) -> None:
        with pytest.raises(ValueError, match=r"kind .* expected 'hierarchical'"):
            open_landmark_detector("hierarchical", workspace=registered, weights=registered.folder("refusion"))

    @pytest.mark.parametrize(
        ("detector", "weights", "message"),
        [
            ("provided", None, "detector provided: it finds no faces"),
            ("dlib", None, "detector 'dlib' is unknown"),
            ("face_alignment", Path("x"), "--weights x: detector face_alignment has weights of its own"),
        ],
    )
    def test_wrong_choices(self, tmp_path: Path, detector: str, weights: Path | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            open_landmark_detector(detector, workspace=Workspace(tmp_path), weights=weights)


class TestPicture:
    def test_colour_says_how_sure_a_point_is(self) -> None:
        pixels = np.full((600, 600, 3), 70, np.uint8)
        for confidence, channel in ((0.95, 1), (0.05, 0)):
            one = face((300, 300), 4.0, confidence)
            drawn = draw_landmarks(pixels, [one])
            # The tip of the nose, where no line crosses another.
            x, y = one.landmarks[30].astype(int)
            assert int(drawn[y, x].argmax()) == channel
            assert int(drawn[y, x].max()) > 200
        assert (draw_landmarks(pixels, []) == pixels).all()

    def test_small_photos_are_enlarged(self) -> None:
        assert draw_landmarks(np.zeros((100, 160, 3), np.uint8), []).shape == (300, 480, 3)

    def test_points_far_outside_do_not_break_it(self) -> None:
        one = face((1e7, -1e7), 1.0, 0.5)
        assert draw_landmarks(np.zeros((600, 600, 3), np.uint8), [one]).shape == (600, 600, 3)
