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
from models.landmarks.framing import cut_frames, frame_affine, tight_frame
from tasks.images import decode
from tasks.served_model import FaceFinder, PhotoError, crop_affine, cut_crop, cut_frame, decode_photo
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
    finder = FaceFinder.__new__(FaceFinder)
    finder.mean_shape, finder.frame_scale = shape, 1.25
    centre, side, angle = finder._tight_frame(points @ turn.T)
    expected = tight_frame((points @ turn.T)[None], shape)
    assert angle == pytest.approx(0.5)
    assert (side, angle) == pytest.approx((expected[1][0], expected[2][0]))
    assert centre == pytest.approx(expected[0][0])


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
