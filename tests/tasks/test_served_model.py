"""The served model's own image code against the code that training uses."""

from __future__ import annotations

import base64
from io import BytesIO

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from models.face.crop import crop_affine as training_affine
from models.face.crop import warp_crop
from models.landmarks.cascade import (
    LIKELY_BOX_SCORE,
    MIN_BOX_SCORE,
    REFINEMENTS,
    UNBOXED_REFINEMENTS,
    HierarchicalDetector,
)
from models.landmarks.finder import find_faces
from models.landmarks.framing import FLIP_PERMUTATION, FRAME_SCALE, cut_frames, frame_affine, tight_frame
from models.landmarks.portable import finder_settings
from tasks.images import decode
from tasks.served_finder import FaceFinder, find_boxes
from tasks.served_photos import PhotoError, crop_affine, cut_crop, cut_frame, decode_photo
from tests.coordinate_photo import BoxFinder, CoordinateReader, circle_shape, coordinate_photo, face_points
from tests.tasks.trained_workspace import front_points

MAX_PIXELS = 10_000


def smooth_photo(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_crop_is_that_of_training(scale: float) -> None:
    photo = smooth_photo(200, 260)
    points = front_points() * scale + 20.0
    affine = crop_affine(points, size_px=64, scale=1.35)
    expected = training_affine(torch.from_numpy(points)[None], size_px=64, scale=1.35)[0].numpy()
    assert affine == pytest.approx(expected)
    # OpenCV rounds positions to a 32nd of a pixel.
    difference = np.abs(cut_crop(photo, affine, 64).astype(int) - warp_crop(photo, affine, 64).astype(int))
    assert difference.max() <= 4
    assert difference.mean() < 0.5


@pytest.mark.parametrize("side", [40.0, 150.0, 700.0])
def test_frame_is_that_of_training(side: float) -> None:
    photo = smooth_photo(300, 400)
    affine = frame_affine(np.array([[190.0, 140.0]]), np.array([side]), np.array([0.4]), size_px=64)
    expected = cut_frames([photo], np.array([0]), affine, size_px=64)[0]
    difference = np.abs(cut_frame(photo, affine[0], 64).astype(int) - expected.astype(int))
    assert difference.max() <= 6
    assert difference.mean() < 0.5


def test_tight_frame_is_that_of_training() -> None:
    points = front_points()
    shape = (points - points.mean(0)) / np.ptp(points, axis=0).max()
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    finder = FaceFinder(None, {"input_size_px": 64, "mean_shape": shape.tolist(), "frame_scale": 1.25})
    centre, side, angle = finder._tight_frame(points @ turn.T)
    expected = tight_frame((points @ turn.T)[None], shape)
    assert angle == pytest.approx(0.5)
    assert (side, angle) == pytest.approx((expected[1][0], expected[2][0]))
    assert centre == pytest.approx(expected[0][0])


LARGE, SMALL = face_points((80, 90), 110, 0.3), face_points((195, 60), 50, -0.5)
LARGE_BOX, SMALL_BOX = (84, 86, 120, 0.1, 3.0), (193, 63, 45, -0.3, 2.0)


class ReaderSession:
    """A landmark network as onnxruntime would run it."""

    def __init__(self, reader: CoordinateReader) -> None:
        self.reader = reader

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = self.reader(np.rint(feed["image"].transpose(0, 2, 3, 1) * 255).astype(np.uint8))
        return [getattr(found, name) for name in names]


class FinderSession:
    """The same of the face finder."""

    def __init__(self, finder: BoxFinder) -> None:
        self.finder = finder

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert names == ["score", "offset", "log_side", "turn"]
        return list(self.finder(feed["image"]))


def served_finder(faces: list[np.ndarray], boxes: BoxFinder | None) -> FaceFinder:
    settings = {
        "input_size_px": 64,
        "mean_shape": circle_shape().tolist(),
        "sigma_scale": 1.0,
        "frame_scale": FRAME_SCALE,
        "mirror_order": FLIP_PERMUTATION.tolist(),
        "refinements": REFINEMENTS,
        "unboxed_refinements": UNBOXED_REFINEMENTS,
        "confidence_sigma": 0.02,
        "min_face_score": 0.5,
        "finder": finder_settings() | {"min_score": MIN_BOX_SCORE, "likely_score": LIKELY_BOX_SCORE},
    }
    return FaceFinder(ReaderSession(CoordinateReader(faces)), settings, boxes and FinderSession(boxes))


@pytest.mark.parametrize(
    "boxes", [None, BoxFinder(), BoxFinder(SMALL_BOX, LARGE_BOX), BoxFinder((60, 150, 60, 0.0, 5.0), LARGE_BOX)]
)
def test_faces_are_those_of_the_detector(boxes: BoxFinder | None) -> None:
    centred = face_points((125, 96), 110)
    # Where there are no boxes, a face that the whole photo shows.
    faces = [SMALL, LARGE] if boxes is not None and boxes.boxes else [centred]
    reader = CoordinateReader(faces)
    ours = HierarchicalDetector(reader, input_size_px=64, mean_shape=circle_shape(), finder=boxes)
    expected = ours.detect([coordinate_photo()])[0]
    found = served_finder(faces, boxes).find(coordinate_photo())
    assert expected is not None
    assert found is not None
    np.testing.assert_allclose(found[0], expected.landmarks, atol=0.3)
    np.testing.assert_allclose(found[1], expected.confidence, rtol=0.05)
    assert found[2] == pytest.approx(expected.face_score, rel=1e-4)


def test_a_small_face_is_found_by_windows() -> None:
    found = served_finder([SMALL], None).find(coordinate_photo())
    assert found is not None
    np.testing.assert_allclose(found[0], SMALL, atol=0.6)


@pytest.mark.parametrize("boxes", [None, BoxFinder(), BoxFinder(LARGE_BOX)])
def test_no_face(boxes: BoxFinder | None) -> None:
    assert served_finder([], boxes).find(coordinate_photo()) is None


def test_boxes_are_those_of_the_finder() -> None:
    random = np.random.default_rng(0)
    boxes = [
        (random.uniform(40, 280), random.uniform(40, 200), np.exp(random.uniform(3.2, 5)), random.uniform(-3, 3), logit)
        for logit in random.uniform(-2.0, 4.0, 12)
    ]
    stand_in = BoxFinder(*boxes)
    settings = {**finder_settings(), "min_score": 0.3, "likely_score": 0.6}
    photo = smooth_photo(470, 640)
    found = find_boxes(FinderSession(stand_in), photo, settings)
    pixels = stand_in.seen
    (expected,) = find_faces(stand_in, [photo], min_score=0.3)
    # The photo reduced to half, and grey below it.
    np.testing.assert_allclose(pixels, stand_in.seen, atol=1.01 / 255)
    assert pixels.shape == (1, 3, 256, 320)
    np.testing.assert_allclose(pixels[:, :, 235:], 0.5)
    assert 3 <= len(found) == len(expected) < 12
    # The stand-in's boxes are those of the photo reduced to half.
    likely = found[:, 4] >= 0.6
    assert 0 < likely.sum() < len(found)
    assert likely[: likely.sum()].all()
    assert all((np.diff(found[group, 2]) <= 0).all() for group in (likely, ~likely))
    np.testing.assert_allclose(np.sort(found[:, 2])[::-1], expected.side, rtol=0.2)
    assert find_boxes(FinderSession(BoxFinder()), photo, settings).shape == (0, 5)
    one = find_boxes(FinderSession(BoxFinder((100, 90, 60, 0.4, 2.0))), photo, settings)
    np.testing.assert_allclose(one, [[200, 180, 120, 0.4, 1.0 / (1.0 + np.exp(-2.0))]], rtol=5e-3)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def test_decoding_is_that_of_ingest() -> None:
    pixels = smooth_photo(40, 60)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    images = [
        encoded(Image.fromarray(pixels)),
        encoded(Image.fromarray(pixels), "JPEG", exif=rotated),
        encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(pixels[..., 0])),
        encoded(Image.fromarray(np.dstack([pixels, pixels[..., :1]]))),
        encoded(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)),
    ]
    for content in images:
        expected = decode(content)
        assert np.array_equal(decode_photo(content, max_pixels=MAX_PIXELS), expected)
        assert np.array_equal(decode_photo(base64.b64encode(content).decode(), max_pixels=MAX_PIXELS), expected)
    assert np.array_equal(decode_photo(pixels.tolist(), max_pixels=MAX_PIXELS), pixels)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "without content"),
        (None, "NoneType without content"),
        (b"text", "not an image"),
        ("not base64!", "neither image bytes nor base64"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((4, 4, 3)), "expected uint8"),
        (np.full((4, 4, 3), 256), "expected uint8"),
        (np.zeros((200, 200, 3), np.uint8), "at most 10000 pixels"),
        (encoded(Image.new("RGB", (200, 200))), "at most 10000 pixels"),
        (encoded(Image.new("RGB", (50, 50), "red"), "JPEG")[:-100], "cannot be decoded"),
    ],
)
def test_bad_photos_are_refused(value: object, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        decode_photo(value, max_pixels=MAX_PIXELS)
