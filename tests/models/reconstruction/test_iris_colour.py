"""Irises in drawn photos: their colour comes out, and where nothing can be told they are brown."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from models.face.inner_shapes import IRIS
from models.face.procedural import procedural_face
from models.reconstruction.iris_colour import (
    BRIGHTNESS,
    IRISES,
    EyeLook,
    believable,
    darkest_disk,
    iris_colour,
    look_at_eye,
)
from models.reconstruction.photos import PhotoFace
from tests.photographed_face import photo_face

SKIN, WHITE = (0.78, 0.60, 0.51), (0.80, 0.77, 0.75)
BLUE, GREEN, DARK_BROWN = (0.34, 0.46, 0.62), (0.42, 0.46, 0.36), (0.22, 0.14, 0.10)
FINE = 4


def drawn_eyes(
    iris: tuple[float, float, float],
    *,
    width: float = 40.0,
    opening: float = 0.34,
    turn_deg: float = 0.0,
    light: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """A photo of two eyes with brows, lashes and glints, and its 68 landmarks."""
    height, breadth = round(3.0 * width), round(5.0 * width)
    size = np.array([breadth, height]) * FINE
    picture = np.empty((*size[::-1], 3), np.float32)
    picture[:] = SKIN
    landmarks = np.zeros((68, 2), np.float32)
    turn = np.deg2rad(turn_deg)
    axes = width * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    middle = np.array([breadth, height]) / 2.0
    shape = np.array([[-0.5, 0.0], [-0.2, -0.5], [0.2, -0.5], [0.5, 0.0], [0.2, 0.5], [-0.2, 0.5]]) * [1.0, opening]

    def fill(points: np.ndarray, colour: tuple[float, float, float]) -> None:
        cv2.fillPoly(picture, [np.rint(FINE * points).astype(np.int32)], colour)

    def disk(centre: np.ndarray, radius: float, colour: tuple[float, float, float]) -> None:
        cv2.circle(picture, tuple(np.rint(FINE * centre).astype(int).tolist()), round(FINE * radius), colour, -1)

    for start, aside in ((36, -0.95), (42, 0.95)):
        corners = middle + (shape + [aside, 0.0]) @ axes
        centre = middle + np.array([aside + 0.05, 0.0]) @ axes
        before = picture.copy()
        fill(corners, WHITE)
        inside = np.zeros(picture.shape[:2], np.uint8)
        cv2.fillPoly(inside, [np.rint(FINE * corners).astype(np.int32)], 1)
        disk(centre, 0.21 * width, iris)
        disk(centre, 0.08 * width, (0.03, 0.03, 0.03))
        disk(centre + [0.04 * width, -0.05 * width], 0.03 * width, (1.0, 1.0, 1.0))
        picture = np.where(inside[..., None] > 0, picture, before)
        lashes = np.rint(FINE * corners[:4]).astype(np.int32)
        cv2.polylines(picture, [lashes], False, (0.15, 0.1, 0.08), max(1, round(0.05 * width * FINE)))
        landmarks[start : start + 6] = corners
    small = cv2.resize(picture * np.array(light, np.float32), (breadth, height), interpolation=cv2.INTER_AREA)
    # Colours of photos are stored for pairs of pixels, which blurs them in small eyes.
    stored = cv2.imencode(".jpg", np.rint(255.0 * small[..., ::-1].clip(0.0, 1.0)).astype(np.uint8))[1]
    return np.ascontiguousarray(cv2.imdecode(stored, cv2.IMREAD_COLOR)[..., ::-1]), landmarks


@pytest.fixture(scope="module")
def anyone() -> PhotoFace:
    return photo_face(procedural_face(identity_modes=2))


def face_with(
    anyone: PhotoFace, photo: np.ndarray, landmarks: np.ndarray, light: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> PhotoFace:
    lighting = torch.zeros(1, 9, 3)
    lighting[:, 0] = torch.tensor(light)
    found = replace(anyone.reconstruction, coefficients=replace(anyone.coefficients, lighting=lighting))
    return replace(anyone, photo=photo, detection=replace(anyone.detection, landmarks=landmarks), reconstruction=found)


@pytest.mark.parametrize("colour", [BLUE, GREEN, DARK_BROWN], ids=["blue", "green", "brown"])
@pytest.mark.parametrize(("width", "turn_deg"), [(60.0, 0.0), (24.0, 20.0), (15.0, -10.0)])
def test_the_colour_of_the_iris_comes_out(
    anyone: PhotoFace, colour: tuple[float, float, float], width: float, turn_deg: float
) -> None:
    found = iris_colour([face_with(anyone, *drawn_eyes(colour, width=width, turn_deg=turn_deg))])
    assert found.confidence > 0.9
    assert np.abs(np.array(found.colour) - colour).max() < (0.08 if width > 20.0 else 0.12)
    assert np.abs(np.array(found.colour) - colour).sum() < 0.6 * np.abs(np.array(IRIS) - colour).sum()


def test_a_dim_and_yellow_light_is_taken_out(anyone: PhotoFace) -> None:
    light = (0.8, 0.7, 0.5)
    face = face_with(anyone, *drawn_eyes(BLUE, light=light), light)
    assert np.abs(np.array(iris_colour([face]).colour) - BLUE).max() < 0.08


@pytest.mark.parametrize("change", [{"width": 8.0}, {"opening": 0.08}], ids=["small", "shut"])
def test_where_nothing_can_be_told_eyes_are_brown(anyone: PhotoFace, change: dict[str, float]) -> None:
    found = iris_colour([face_with(anyone, *drawn_eyes(BLUE, **change))])
    assert found.colour == IRIS
    assert found.confidence == 0.0


def test_an_eye_that_is_skin_or_beyond_the_photo_is_brown(anyone: PhotoFace) -> None:
    photo, landmarks = drawn_eyes(BLUE)
    plain = np.full_like(photo, 180)
    assert iris_colour([face_with(anyone, plain, landmarks)]).colour == IRIS
    assert iris_colour([face_with(anyone, photo, landmarks + 10_000.0)]).colour == IRIS
    assert iris_colour([face_with(anyone, photo, np.zeros((68, 2), np.float32))]).colour == IRIS


def test_an_eye_that_is_turned_away_does_not_count(anyone: PhotoFace) -> None:
    photo, landmarks = drawn_eyes(BLUE)
    other, _ = drawn_eyes(DARK_BROWN)
    middle = photo.shape[1] // 2
    photo[:, :middle] = other[:, :middle]
    both = np.array(iris_colour([face_with(anyone, photo, landmarks)]).colour)
    # The brown eye as narrow as in half a profile.
    landmarks[36:42, 0] = landmarks[36:42, 0].mean() + 0.4 * (landmarks[36:42, 0] - landmarks[36:42, 0].mean())
    near = np.array(iris_colour([face_with(anyone, photo, landmarks)]).colour)
    assert both[2] - both[0] < 0.15
    assert near[2] - near[0] > 0.25


def test_photos_of_one_person_are_put_together_by_what_they_show(anyone: PhotoFace) -> None:
    blue = face_with(anyone, *drawn_eyes(BLUE, width=50.0))
    shut = face_with(anyone, *drawn_eyes(DARK_BROWN, opening=0.08))
    small = face_with(anyone, *drawn_eyes(DARK_BROWN, width=12.0))
    found = np.array(iris_colour([shut, small, blue]).colour)
    assert np.abs(found - iris_colour([blue]).colour).max() < 0.05


def test_believable_colours_stay_and_others_move_among_them() -> None:
    for colour in IRISES[:-1]:
        assert np.abs(believable(colour) - colour).max() < 0.08
    for wild in ((0.9, 0.1, 0.1), (0.1, 0.9, 0.2), (0.2, 0.1, 0.9), (1.0, 1.0, 1.0)):
        found = believable(np.array(wild))
        assert (found >= IRISES.min(0) - 1e-6).all()
        assert (found <= IRISES.max(0) + 1e-6).all()
    black = believable(np.array([0.03, 0.03, 0.04]))
    assert black[0] > black[1] > black[2], "what is black is brown"


def test_the_darkest_disk_is_where_it_was_drawn() -> None:
    bright = np.full((40, 64), 0.8)
    down, right = np.mgrid[:40, :64] + 0.5
    bright[np.hypot(right - 29.5, down - 21.5) < 10.5] = 0.3
    found = darkest_disk(bright, np.abs(down - 20.0) < 9.0, middle=np.array([32.0, 20.0]))
    assert found is not None
    assert np.allclose(found[:3], (29.5, 21.5, 10.5), atol=1.0)
    assert found[3] == pytest.approx(0.5, abs=0.05)
    assert darkest_disk(np.full((40, 64), 0.5), np.abs(down - 20.0) < 9.0, middle=np.array([32.0, 20.0])) is None


def test_a_glint_is_not_the_iris() -> None:
    photo, landmarks = drawn_eyes(DARK_BROWN, width=60.0)
    found = look_at_eye(photo, landmarks[42:48])
    assert isinstance(found, EyeLook)
    assert float(found.colour @ BRIGHTNESS) < 0.25
