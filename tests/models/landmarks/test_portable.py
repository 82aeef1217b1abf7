"""Exported files against the networks that they were made from."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from models.landmarks.cascade import HierarchicalDetector, detector_content, load_hierarchical
from models.landmarks.detector import build_detector
from models.landmarks.finder import FaceFinder, FinderWidths, find_faces, finder_content, load_finder
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths
from models.landmarks.portable import FINDER_FILE, LANDMARK_FILE, export_detector, load_portable
from tests.coordinate_photo import circle_shape

SMALL = NetworkWidths(stem=8, patch=16, second=24, third=32, level_two=32, fused=24, hidden=64)
TINY = FinderWidths(stem=4, shallow=8, fine=8, coarse=8, head=8)


def random_content(**options: Any) -> dict[str, Any]:
    """A detector of random weights that finds something everywhere."""
    torch.manual_seed(0)
    mean = torch.from_numpy(circle_shape()).float().flatten() / 1.25
    network = HierarchicalNetwork(64, widths=SMALL, modes=(mean, 0.02 * torch.eye(136)), **options).eval()
    finder = FaceFinder(widths=TINY).eval()
    further = [] if network.outline_head is None else network.outline_head.parameters()
    with torch.no_grad():
        for parameter in [network.log_sigma.weight, *network.conventions.parameters(), finder.read.weight, *further]:
            torch.nn.init.normal_(parameter, std=0.05)
        finder.read.bias[0] = -0.5
    return detector_content(network, mean_shape=circle_shape(), sigma_scale=1.5, finder=finder_content(finder))


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return random_content(dense_points=6, outline=True)


@pytest.fixture(scope="module")
def folder(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    deviations = export_detector(content, folder)
    assert set(deviations) == {LANDMARK_FILE, FINDER_FILE} == {path.name for path in folder.iterdir()}
    assert max(deviations.values()) < 1e-4
    return folder


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    sizes = ((96, 96), (150, 200), (150, 200), (700, 500))
    return [random.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


@pytest.mark.parametrize("count", [1, 5])
def test_landmarks_are_those_of_torch(folder: Path, content: dict[str, Any], count: int) -> None:
    crops = np.random.default_rng(2).integers(0, 256, (count, 64, 64, 3)).astype(np.uint8)
    expected, found = load_hierarchical(content).read_crops(crops), load_portable(folder).read_crops(crops)
    for name in ("points", "annotated", "dense", "outline"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-3, rtol=0)
    for name in ("log_sigma", "presence", "dense_log_sigma"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-3, rtol=1e-3)
    assert np.abs(found.annotated - found.points).max() > 0.1
    assert np.abs(found.outline - found.points[:, :17]).max() > 0.1


@pytest.mark.parametrize("outline", [True, False])
def test_handmade_points_need_an_outline(tmp_path: Path, photos: list[np.ndarray], outline: bool) -> None:
    content = random_content(outline=outline)
    export_detector(content, tmp_path)
    options = {"convention": "handmade", "min_face_score": 0.0}
    if outline:
        expected, found = (
            one.detect(photos[:2])
            for one in (load_hierarchical(content, **options), load_portable(tmp_path, **options))
        )
        for ours, theirs in zip(found, expected, strict=True):
            assert ours is not None
            assert theirs is not None
            np.testing.assert_allclose(ours.landmarks, theirs.landmarks, atol=1e-3, rtol=1e-5)
        return
    message = "this landmark network knows no outline, which points of convention handmade need"
    with pytest.raises(ValueError, match=f"landmark detector: {message}"):
        load_hierarchical(content, **options)
    with pytest.raises(ValueError, match=rf"landmarks\.onnx: {message}"):
        load_portable(tmp_path, **options)
    assert load_portable(tmp_path, min_face_score=0.0).detect(photos[:1])[0].outline is None  # type: ignore[union-attr]


def test_boxes_are_those_of_torch(folder: Path, content: dict[str, Any], photos: list[np.ndarray]) -> None:
    finder = load_finder(content["finder"])
    portable = load_portable(folder, threads=1).finder
    assert portable is not None
    found = [find_faces(run, photos, min_score=0.3) for run in (finder, portable)]
    assert sum(len(boxes) for boxes in found[0]) > 5
    for expected, boxes in zip(*found, strict=True):
        np.testing.assert_allclose(boxes.centre, expected.centre, atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(boxes.side, expected.side, rtol=1e-4)


def test_faces_are_those_of_torch(folder: Path, content: dict[str, Any], photos: list[np.ndarray]) -> None:
    expected, found = (
        detector.detect_all(photos)
        for detector in (
            load_hierarchical(content, min_face_score=0.0, convention="annotated"),
            load_portable(folder, min_face_score=0.0, convention="annotated", batch_size=7),
        )
    )
    assert [len(faces) for faces in found] == [len(faces) for faces in expected]
    assert sum(len(faces) for faces in found) >= len(photos)
    for ours, theirs in zip(chain(*found), chain(*expected), strict=True):
        np.testing.assert_allclose(ours.landmarks, theirs.landmarks, atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(ours.dense, theirs.dense, atol=1e-3, rtol=1e-5)


class TestRuntime:
    @staticmethod
    def runs_on_torch(detector: object) -> bool:
        assert isinstance(detector, HierarchicalDetector)
        return isinstance(detector.finder, FaceFinder)

    def test_auto_takes_the_files_where_there_are_some(
        self, folder: Path, content: dict[str, Any], tmp_path: Path
    ) -> None:
        assert not self.runs_on_torch(build_detector("hierarchical", content=content, exported=folder))
        assert self.runs_on_torch(build_detector("hierarchical", content=content, exported=tmp_path))
        assert self.runs_on_torch(build_detector("hierarchical", content=content))
        assert self.runs_on_torch(build_detector("hierarchical", content=content, exported=folder, runtime="torch"))
        assert self.runs_on_torch(build_detector("hierarchical", content=content, exported=folder, half_precision=True))

    def test_files_without_the_finder_are_not_all(self, folder: Path, content: dict[str, Any], tmp_path: Path) -> None:
        shutil.copy(folder / LANDMARK_FILE, tmp_path)
        assert self.runs_on_torch(build_detector("hierarchical", content=content, exported=tmp_path))

    def test_wrong_choices(self, content: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no exported network; run train_detector again"):
            build_detector("hierarchical", content=content, exported=tmp_path, runtime="onnx")
        with pytest.raises(ValueError, match="runtime 'tflite', expected auto, torch or onnx"):
            build_detector("hierarchical", content=content, runtime="tflite")


class TestWrongFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"landmarks.onnx: no exported landmark network; run"):
            load_portable(tmp_path)

    def test_no_graph(self, tmp_path: Path) -> None:
        (tmp_path / LANDMARK_FILE).write_bytes(b"no graph")
        with pytest.raises(ValueError, match=r"landmarks\.onnx: not a graph that onnxruntime runs") as error:
            load_portable(tmp_path)
        assert "\n" not in str(error.value)

    def test_another_graph(self, folder: Path, tmp_path: Path) -> None:
        shutil.copy(folder / FINDER_FILE, tmp_path / LANDMARK_FILE)
        with pytest.raises(ValueError, match="not our exported landmarks network"):
            load_portable(tmp_path)

    @pytest.mark.parametrize(
        ("file", "changed", "message"),
        [
            (LANDMARK_FILE, {"mean_shape": "round"}, "mean_shape in its metadata is missing or broken"),
            (LANDMARK_FILE, {"sigma_scale": None}, "sigma_scale in its metadata is missing or broken"),
            (FINDER_FILE, {"stride": 4}, "stride is 4, expected 8; run train_detector again"),
        ],
    )
    def test_settings_of_another_version(
        self, folder: Path, tmp_path: Path, file: str, changed: dict[str, Any], message: str
    ) -> None:
        for path in folder.iterdir():
            model = onnx.load(path)
            for entry in model.metadata_props:
                if path.name == file and entry.key == "settings":
                    entry.value = json.dumps(json.loads(entry.value) | changed)
            onnx.save(model, tmp_path / path.name)
        with pytest.raises(ValueError, match=message):
            load_portable(tmp_path)
