"""Strong randomisation as a whole: photos of every kind, whose truth is still true."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from models.face.camera import angles_from_rotation
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from tasks import synthesize as studio
from tasks.backdrops import Backdrops
from tasks.images import decode_stored
from tasks.randomize import StrongLook
from tasks.source_params import SyntheticSource
from tasks.subjects import draw_shot, draw_varied_shot, person_stream
from tasks.synthesize import Photo, synthesize
from tests.tiny_face import tiny_face


@pytest.fixture(scope="module")
def face_model() -> MorphableModel:
    return procedural_face(identity_modes=4)


def source(**changes: object) -> SyntheticSource:
    values = {"kind": "synthetic", "name": "strong", "persons": 6, "photos_per_person": 1, "size_px": 80}
    return SyntheticSource.model_validate(values | {"randomization": "strong"} | changes)


@pytest.fixture(scope="module")
def photos(face_model: MorphableModel) -> list[Photo]:
    return list(synthesize(source(), face_model, seed=1))


def test_photos_have_the_size_asked_for_and_points_in_their_pixels(photos: list[Photo]) -> None:
    for photo in photos:
        assert decode_stored(photo.content).shape == (80, 80, 3)
        low, high = photo.landmarks.min(0), photo.landmarks.max(0)
        assert 0.15 * 80 < (high - low).max() < 1.4 * 80
        middle = photo.landmarks.mean(0)
        assert ((middle > -8) & (middle < 88)).all()


def test_photos_repeat_and_do_not_depend_on_the_batch(
    photos: list[Photo], face_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "BATCH_SIZE", 3)
    again = list(synthesize(source(persons=4), face_model, seed=1))
    for photo, first in zip(again, photos, strict=False):
        assert photo.content == first.content
        np.testing.assert_array_equal(photo.landmarks, first.landmarks)


def test_truth_is_that_of_the_plain_renderer(face_model: MorphableModel) -> None:
    """A face drawn at twice the size has its landmarks where the small one has them."""
    shots = [draw_varied_shot(person_stream(0, "a", 0), expression_names=(), max_yaw_deg=30.0, occluder_share=0.0)]
    points = face_model.landmark_mean[None].expand(1, -1, -1)
    rotation = torch.tensor([[0.1, 0.2, 0.0]])
    placed = {}
    for look in (None, StrongLook(face_model)):
        room = studio._Studio(face_model, 80, look)
        camera, translation = room._place(points, rotation, shots)
        seen = studio.project(studio.to_camera_space(points, rotation=rotation, translation=translation), camera)
        placed[room.scale] = seen / room.scale
    torch.testing.assert_close(placed[1], placed[2], atol=1e-3, rtol=0)


def test_some_faces_are_cut_off_and_tilted(face_model: MorphableModel) -> None:
    stream = person_stream(0, "strong", 0)
    shots = [draw_varied_shot(stream, expression_names=(), max_yaw_deg=90.0, occluder_share=0.3) for _ in range(400)]
    yaw, pitch, roll = np.degrees([shot.angles for shot in shots]).T
    assert 30 < np.abs(roll).max() <= 40
    assert 20 < np.abs(pitch).max() <= 30
    assert np.abs(yaw).max() > 85
    fill = np.array([shot.fill for shot in shots])
    assert fill.min() < 0.3
    assert fill.max() > 0.9
    assert 0.1 < np.mean([shot.may_leave for shot in shots]) < 0.3
    assert 0.25 < np.mean([shot.lamp is not None and shot.lamp.softness < 0.35 for shot in shots]) < 0.55
    rotations = studio.rotation_from_angles(*torch.from_numpy(np.array([shot.angles for shot in shots[:5]])).unbind(1))
    found = angles_from_rotation(rotations)[:, 0].rad2deg().numpy()
    np.testing.assert_allclose(found, yaw[:5], atol=1e-3)


def test_faces_are_neither_black_nor_white(photos: list[Photo]) -> None:
    levels = []
    for photo in photos:
        inner = photo.landmarks[[27, 29, 30, 31, 35]].round().astype(int).clip(0, 79)
        levels.append(decode_stored(photo.content)[inner[:, 1], inner[:, 0]].mean())
    assert min(levels) > 5
    assert max(levels) < 250
    assert np.std(levels) > 15


def test_models_without_eyes_get_some(face_model: MorphableModel) -> None:
    hollow = tiny_face()
    hollow.parts[:] = 0
    assert len(list(synthesize(source(persons=2), hollow, seed=0))) == 2


def test_backdrops_show_behind_the_face(face_model: MorphableModel) -> None:
    green = np.zeros((120, 120, 3), np.uint8)
    green[..., 1] = 230
    turn = np.linspace(0, 2 * math.pi, 68)
    backdrops = Backdrops([(green, 60 + 20 * np.stack([np.cos(turn), np.sin(turn)], 1))])
    shown = list(synthesize(source(persons=12, size_px=64), face_model, seed=3, backdrops=backdrops))
    pixels = [decode_stored(photo.content).astype(int) for photo in shown]
    shares = [(image[..., 1] > image[..., [0, 2]].max(2) + 25).mean() for image in pixels]
    # Grey photos have no green, and drawn backgrounds come in between.
    assert 2 <= sum(share > 0.1 for share in shares) <= 11, shares


def test_plain_draws_are_those_of_old() -> None:
    """Results of the default run depend on these numbers; the streams of numpy do not change."""
    stream = person_stream(0, "photos", 0)
    shot = draw_shot(stream, expression_names=("jawOpen",), max_yaw_deg=90.0, occluder_share=0.25)
    numbers = [*shot.angles, shot.focal_factor, shot.fill, *shot.offset, *shot.ambient, shot.exposure]
    text = " ".join(
        f"{number:.9f}" for number in [*numbers, *shot.light_directions.ravel(), *shot.light_colours.ravel()]
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "34652309a2f4a1e0"
    assert shot.lamp is None
    assert not shot.may_leave
