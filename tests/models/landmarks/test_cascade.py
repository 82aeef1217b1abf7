"""From boxes to points and back: frames, mirrors, duplicates, several faces; and checkpoints of older networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.landmarks.cascade import (
    LIKELY_BOX_SCORE,
    MIN_BOX_SCORE,
    REFINEMENTS,
    UNBOXED_REFINEMENTS,
    HierarchicalDetector,
    detector_content,
    load_hierarchical,
)
from models.landmarks.detector import Detection, detect_faces
from models.landmarks.finder import FaceFinder, finder_content
from models.landmarks.framing import tight_frame
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths
from models.landmarks.windows import grid_windows
from tests.coordinate_photo import (
    ANNOTATION_SHIFT,
    OUTLINE_SHIFT,
    BoxFinder,
    CoordinateReader,
    circle_shape,
    coordinate_photo,
    face_points,
)

LARGE = face_points((80, 90), 110, 0.3)
SMALL = face_points((195, 60), 50, -0.5)
LARGE_BOX, SMALL_BOX = (84, 86, 120, 0.1, 3.0), (193, 63, 45, -0.3, 2.0)
SMALL_WIDTHS = NetworkWidths(stem=8, patch=16, second=24, third=32, level_two=32, fused=24, hidden=64)


def detector(reader: CoordinateReader, finder: BoxFinder | None = None, **options: object) -> HierarchicalDetector:
    return HierarchicalDetector(reader, input_size_px=64, mean_shape=circle_shape(), finder=finder, **options)


def assert_points(found: Detection, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.landmarks, expected, atol=0.6)


def tight_box(points: np.ndarray) -> tuple[float, float, float, float]:
    """Centre x, y, side and angle of the frame that a face gets by its points."""
    centre, side, angle = tight_frame(points[None], circle_shape())
    return float(centre[0, 0]), float(centre[0, 1]), float(side[0]), float(angle[0])


class UnsureOfSmall(CoordinateReader):
    """Expects other errors of the first face than of the rest."""

    def __init__(self, faces: list[np.ndarray], *, log_sigma: float) -> None:
        super().__init__(faces)
        self.log_sigma = log_sigma

    def _read(self, crop: np.ndarray) -> tuple[np.ndarray, ...]:
        values = list(super()._read(crop))
        # Green is y: the small face lies above the large one.
        if crop[..., 1][crop[..., 2] == 255].mean() < 75:
            values[2] = np.full(68, self.log_sigma)
        return tuple(values)


class ShortSighted(CoordinateReader):
    """Takes the middle for the face where it sees none, so that further looks do not lead to one."""

    def _read(self, crop: np.ndarray) -> tuple[np.ndarray, ...]:
        values = list(super()._read(crop))
        if values[3] < 0.0:
            values[0] = face_points((len(crop) / 2, len(crop) / 2), len(crop))
        return tuple(values)


class TestWithFinder:
    def test_every_face_largest_first(self) -> None:
        ours = detector(CoordinateReader([SMALL, LARGE]), BoxFinder(SMALL_BOX, LARGE_BOX))
        (faces,) = ours.detect_all([coordinate_photo()])
        assert len(faces) == 2
        assert_points(faces[0], LARGE)
        assert_points(faces[1], SMALL)
        np.testing.assert_allclose(faces[0].box, [*LARGE.min(0), *LARGE.max(0)], atol=0.6)
        assert faces[0].face_score == pytest.approx(1 / (1 + np.exp(-4.0)), rel=1e-5)

    def test_the_largest_is_the_one(self) -> None:
        ours = detector(CoordinateReader([SMALL, LARGE]), BoxFinder(SMALL_BOX, LARGE_BOX))
        found = ours.detect([coordinate_photo(), coordinate_photo()])
        for one in found:
            assert one is not None
            assert_points(one, LARGE)

    def test_two_boxes_on_one_face(self) -> None:
        beside = (80 + 70, 90 - 20, 70, 0.0, 4.0)
        ours = detector(CoordinateReader([LARGE]), BoxFinder(LARGE_BOX, beside))
        (faces,) = ours.detect_all([coordinate_photo()])
        assert len(faces) == 1
        assert_points(faces[0], LARGE)

    def test_a_box_without_a_face(self) -> None:
        ours = detector(CoordinateReader([SMALL]), BoxFinder((60, 120, 60, 0.0, 5.0), SMALL_BOX))
        (faces,) = ours.detect_all([coordinate_photo()])
        assert len(faces) == 1
        assert_points(faces[0], SMALL)

    def test_no_face_is_an_empty_list(self) -> None:
        ours = detector(CoordinateReader([]), BoxFinder(LARGE_BOX))
        assert ours.detect_all([coordinate_photo()]) == [[]]
        assert ours.detect([coordinate_photo()]) == [None]
        assert ours.detect_all([]) == []

    def test_nothing_found_means_a_look_at_the_whole_photo(self) -> None:
        centred = face_points((125, 96), 150)
        photo = coordinate_photo()
        assert_points(detector(CoordinateReader([centred]), BoxFinder()).detect_all([photo])[0][0], centred)
        only = detector(CoordinateReader([centred]), BoxFinder(), boxes="finder")
        assert only.detect_all([photo]) == [[]]

    def test_looks_per_face(self) -> None:
        reader = CoordinateReader([LARGE])
        detector(reader, BoxFinder(LARGE_BOX), sigma_scale=0.5).detect([coordinate_photo()])
        # One look at the box, then the refinements, the last of them with its mirror image in the same batch.
        assert reader.batches == [1] * REFINEMENTS + [2]

    def test_a_face_that_is_framed_as_before_gets_its_last_look_at_once(self) -> None:
        exact = (*tight_box(LARGE), 3.0)
        reader = CoordinateReader([LARGE])
        (faces,) = detector(reader, BoxFinder(exact), sigma_scale=0.5).detect_all([coordinate_photo()])
        assert reader.batches == [1, 2]
        assert_points(faces[0], LARGE)
        # Beside one that is not, each gets the looks that it needs.
        reader = CoordinateReader([SMALL, LARGE])
        (faces,) = detector(reader, BoxFinder(SMALL_BOX, exact), sigma_scale=0.5).detect_all([coordinate_photo()])
        assert reader.batches == [2, 1, 4]
        assert_points(faces[0], LARGE)
        assert_points(faces[1], SMALL)

    def test_boxes_that_are_far_less_certain_get_no_second_look(self) -> None:
        doubtful = UnsureOfSmall([SMALL, LARGE], log_sigma=4.0)
        (faces,) = detector(doubtful, BoxFinder(SMALL_BOX, LARGE_BOX), sigma_scale=0.5).detect_all([coordinate_photo()])
        assert len(faces) == 1
        assert_points(faces[0], LARGE)
        assert doubtful.batches == [2, *[1] * (REFINEMENTS - 1), 2]
        fair = UnsureOfSmall([SMALL, LARGE], log_sigma=0.5)
        (faces,) = detector(fair, BoxFinder(SMALL_BOX, LARGE_BOX), sigma_scale=0.5).detect_all([coordinate_photo()])
        assert len(faces) == 2

    def test_an_unsure_face_means_a_look_at_the_whole_photo(self) -> None:
        reader = CoordinateReader([LARGE])
        detector(reader, BoxFinder(LARGE_BOX), sigma_scale=1.5).detect([coordinate_photo()])
        in_box = [1] * REFINEMENTS + [2]
        # The stand-in knows the face at once, so the second look from the whole photo is framed as the first.
        whole = [1] * (UNBOXED_REFINEMENTS - 1) + [2]
        assert reader.batches[: len(in_box + whole)] == in_box + whole
        # Nor was it sure then: windows, then those that showed the face.
        assert reader.batches[len(in_box + whole)] == len(grid_windows(coordinate_photo()))
        only = CoordinateReader([LARGE])
        detector(only, BoxFinder(LARGE_BOX), boxes="finder", sigma_scale=1.5).detect([coordinate_photo()])
        assert only.batches == in_box

    def test_a_face_that_the_finder_misses_is_found_in_a_window(self) -> None:
        photo = coordinate_photo()
        (faces,) = detector(ShortSighted([SMALL]), BoxFinder(), sigma_scale=0.5).detect_all([photo])
        assert len(faces) == 1
        assert_points(faces[0], SMALL)
        # Windows show much that resembles a face; only what is sure counts there.
        assert detector(ShortSighted([SMALL]), BoxFinder(), sigma_scale=1.5).detect_all([photo]) == [[]]
        assert detector(ShortSighted([SMALL]), BoxFinder(), boxes="finder").detect_all([photo]) == [[]]

    def test_unlikely_boxes_are_looked_at_where_nothing_else_is_sure(self) -> None:
        unlikely = (*SMALL_BOX[:4], -0.8)
        assert MIN_BOX_SCORE < 1.0 / (1.0 + np.exp(0.8)) < LIKELY_BOX_SCORE
        beside = CoordinateReader([SMALL, LARGE])
        (faces,) = detector(beside, BoxFinder(unlikely, LARGE_BOX), sigma_scale=0.5).detect_all([coordinate_photo()])
        assert len(faces) == 1
        assert_points(faces[0], LARGE)
        assert beside.batches == [1] * REFINEMENTS + [2]
        alone = detector(CoordinateReader([SMALL]), BoxFinder(unlikely, LARGE_BOX), boxes="finder", sigma_scale=0.5)
        (faces,) = alone.detect_all([coordinate_photo()])
        assert len(faces) == 1
        assert_points(faces[0], SMALL)

    def test_small_batches_give_the_same(self) -> None:
        finder = BoxFinder(SMALL_BOX, LARGE_BOX)
        photos = [coordinate_photo(), coordinate_photo(180, 240)]
        whole = detector(CoordinateReader([SMALL, LARGE]), finder).detect_all(photos)
        parts = detector(CoordinateReader([SMALL, LARGE]), finder, batch_size=1).detect_all(photos)
        for expected, found in zip(whole, parts, strict=True):
            np.testing.assert_array_equal([one.landmarks for one in expected], [one.landmarks for one in found])

    def test_annotated_points(self) -> None:
        ours = detector(CoordinateReader([LARGE]), BoxFinder(LARGE_BOX), convention="annotated")
        assert_points(ours.detect_all([coordinate_photo()])[0][0], LARGE + ANNOTATION_SHIFT)

    def test_handmade_points_have_their_jaw_on_the_outline(self) -> None:
        ours = detector(CoordinateReader([LARGE]), BoxFinder(LARGE_BOX), convention="handmade", outlined=True)
        (face,) = ours.detect_all([coordinate_photo()])[0]
        expected = LARGE.copy()
        expected[:17] += OUTLINE_SHIFT
        assert_points(face, expected)
        np.testing.assert_allclose(face.box, [*face.landmarks.min(0), *face.landmarks.max(0)], atol=1e-4)
        assert face.outline is not None
        np.testing.assert_array_equal(face.outline, face.landmarks[:17])

    def test_the_outline_comes_with_any_convention(self) -> None:
        for outlined in (True, False):
            ours = detector(CoordinateReader([LARGE]), BoxFinder(LARGE_BOX), outlined=outlined)
            (face,) = ours.detect_all([coordinate_photo()])[0]
            assert_points(face, LARGE)
            if not outlined:
                assert face.outline is None
                continue
            assert face.outline is not None
            np.testing.assert_allclose(face.outline, LARGE[:17] + OUTLINE_SHIFT, atol=0.6)

    def test_no_outline_no_handmade_points(self) -> None:
        with pytest.raises(ValueError, match=r"knows no outline.*take annotated or model, or train it.*outlines: true"):
            detector(CoordinateReader([LARGE]), BoxFinder(LARGE_BOX), convention="handmade")

    def test_dense_points_come_back_to_the_photo(self) -> None:
        ours = detector(CoordinateReader([LARGE], dense_points=20), BoxFinder(LARGE_BOX))
        (face,) = ours.detect_all([coordinate_photo()])[0]
        assert face.dense is not None
        assert face.dense_confidence is not None
        np.testing.assert_allclose(face.dense, LARGE[:20], atol=0.6)
        np.testing.assert_allclose(face.dense_confidence, face.confidence[:20], rtol=0.05)
        without = detector(CoordinateReader([LARGE]), BoxFinder(LARGE_BOX)).detect_all([coordinate_photo()])[0][0]
        assert without.dense is None

    def test_confidence_is_relative_to_the_face(self) -> None:
        ours = detector(CoordinateReader([SMALL, LARGE]), BoxFinder(SMALL_BOX, LARGE_BOX), sigma_scale=2.0)
        (faces,) = ours.detect_all([coordinate_photo()])
        # The network expects an error of one pixel of the crop, which shows a face of 64 / 1.25 pixels; twice that.
        sigma = 2.0 * 1.25 / 64
        for face in faces:
            np.testing.assert_allclose(face.confidence, 1 / (1 + (sigma / 0.02) ** 2), rtol=0.05)


class TestWithoutFinder:
    def test_every_face(self) -> None:
        ours = detector(CoordinateReader([SMALL, LARGE]))
        (faces,) = ours.detect_all([coordinate_photo()])
        assert len(faces) == 2
        assert_points(faces[0], LARGE)
        assert_points(faces[1], SMALL)

    def test_no_face(self) -> None:
        assert detector(CoordinateReader([])).detect_all([coordinate_photo()]) == [[]]

    def test_boxes_of_a_finder_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match="boxes: finder, but no finder was trained"):
            detector(CoordinateReader([]), boxes="finder")

    def test_opencv_sees_no_face_in_a_gradient(self) -> None:
        ours = detector(CoordinateReader([LARGE]), boxes="opencv")
        assert ours.detect_all([coordinate_photo()]) == [[]]

    def test_faces_of_a_detector_that_looks_for_one(self) -> None:
        class One:
            def detect(self, images: list[np.ndarray], *, annotations: object = None) -> list[Detection | None]:
                return [None, Detection(np.zeros((68, 2)), np.ones(68), np.zeros(4), 0.5)]

        assert [len(faces) for faces in detect_faces(One(), [coordinate_photo()] * 2)] == [0, 1]


class TestContent:
    @staticmethod
    def network(**options: int) -> HierarchicalNetwork:
        torch.manual_seed(0)
        mean = torch.from_numpy(circle_shape()).float().flatten() / 1.25
        network = HierarchicalNetwork(64, widths=SMALL_WIDTHS, modes=(mean, 0.02 * torch.eye(136)), **options)
        return network.eval()

    def test_of_a_network_without_what_was_added_later(self) -> None:
        content = detector_content(self.network(), mean_shape=circle_shape(), sigma_scale=1.5)
        old = {key: content[key] for key in ("kind", "widths", "input_size_px", "mean_shape", "sigma_scale")}
        old["weights"] = {
            name: value for name, value in content["weights"].items() if not name.startswith("conventions.")
        }
        photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
        first, second = (load_hierarchical(one, min_face_score=0.0).detect([photo])[0] for one in (content, old))
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.landmarks, second.landmarks)

    def test_of_a_network_with_everything(self) -> None:
        finder = finder_content(FaceFinder())
        content = detector_content(
            self.network(dense_points=7, conventions=2), mean_shape=circle_shape(), sigma_scale=1.0, finder=finder
        )
        ours = load_hierarchical(content, min_face_score=0.0)
        assert isinstance(ours.finder, FaceFinder)
        (face, *_) = ours.detect_all([np.full((70, 90, 3), 90, np.uint8)])[0]
        assert face.dense is not None
        assert face.dense.shape == (7, 2)

    def test_a_weight_that_is_missing_is_no_addition(self) -> None:
        content = detector_content(self.network(), mean_shape=circle_shape(), sigma_scale=1.0)
        del content["weights"]["log_sigma.bias"]
        with pytest.raises(RuntimeError, match=r"log_sigma\.bias"):
            load_hierarchical(content)
