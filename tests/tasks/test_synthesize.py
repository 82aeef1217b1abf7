"""Rendered photos: their truth is true, they repeat, and they do not depend on company."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch

from models.face.camera import angles_from_rotation
from models.face.lighting import irradiance
from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.face.sampling import ACTIONS, draw_expression
from tasks import synthesize as module
from tasks.images import decode_stored
from tasks.source_params import RerenderedSource, SyntheticSource
from tasks.subjects import draw_angles, draw_shot, draw_subject, person_stream
from tasks.synthesize import LabelMesh, Photo, lighting, rerender, synthesize


@pytest.fixture(scope="module")
def face_model() -> MorphableModel:
    return procedural_face(identity_modes=6)


def source(**changes: object) -> SyntheticSource:
    return SyntheticSource.model_validate(
        {"kind": "synthetic", "name": "photos", "persons": 6, "photos_per_person": 2, "size_px": 96} | changes
    )


@pytest.fixture(scope="module")
def photos(face_model: MorphableModel) -> list[Photo]:
    return list(synthesize(source(), face_model, seed=3))


def test_every_photo_of_every_person(photos: list[Photo], face_model: MorphableModel) -> None:
    assert [photo.person for photo in photos] == [f"{number // 2:06d}" for number in range(12)]
    assert len({photo.mesh_id for photo in photos}) == 12
    for photo in photos:
        assert decode_stored(photo.content).shape == (96, 96, 3)
        assert photo.vertices.shape == (face_model.vertex_count, 3)


def test_same_seed_same_bytes_other_seed_other_photos(photos: list[Photo], face_model: MorphableModel) -> None:
    again = list(synthesize(source(), face_model, seed=3))
    assert [photo.content for photo in again] == [photo.content for photo in photos]
    np.testing.assert_array_equal(again[5].landmarks, photos[5].landmarks)
    other = next(synthesize(source(), face_model, seed=4))
    assert other.content != photos[0].content
    assert np.abs(other.neutral - photos[0].neutral).max() > 1


def test_photos_do_not_depend_on_the_batch(
    photos: list[Photo], face_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", 5)
    again = list(synthesize(source(persons=4), face_model, seed=3))
    for photo, first in zip(again, photos, strict=False):
        np.testing.assert_array_equal(photo.vertices, first.vertices)
        assert photo.content == first.content


def test_a_person_keeps_the_shape_and_changes_the_rest(photos: list[Photo]) -> None:
    first, second, stranger = photos[0], photos[1], photos[2]
    np.testing.assert_array_equal(first.neutral, second.neutral)
    assert np.abs(first.neutral - stranger.neutral).max() > 1
    assert np.abs(first.vertices - second.vertices).max() > 0.01
    assert np.abs(first.rotation - second.rotation).max() > 0.01


def test_landmarks_lie_in_the_photo_and_fill_it_as_asked(photos: list[Photo]) -> None:
    for photo in photos:
        low, high = photo.landmarks.min(0), photo.landmarks.max(0)
        assert (low > 0).all()
        assert (high < 96).all()
        # Perspective, which the placement neglects, changes the size a little.
        assert 0.42 < (high - low).max() / 96 < 0.82


def test_the_nose_points_where_the_rotation_says(photos: list[Photo], face_model: MorphableModel) -> None:
    for photo in photos:
        yaw = float(angles_from_rotation(torch.from_numpy(photo.rotation)[None])[0, 0])
        middle = photo.landmarks[[0, 16]].mean(0)
        if abs(yaw) > 0.35:
            assert np.sign(photo.landmarks[30, 0] - middle[0]) == np.sign(yaw)


def test_the_face_is_drawn_at_the_landmarks(face_model: MorphableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def black(stream: object, size_px: int) -> np.ndarray:
        return np.zeros((size_px, size_px, 3), np.uint8)

    for name in ("draw_behind", "draw_hair", "draw_glasses"):
        monkeypatch.setattr(module, name, lambda *arguments, **options: None)
    monkeypatch.setattr(module, "background", black)
    frontal = source(max_yaw_deg=5.0, occluder_share=0.0)
    for photo in synthesize(frontal, face_model, seed=0):
        image = decode_stored(photo.content).max(2)
        centre = photo.landmarks[27:36].mean(0).round().astype(int)
        brightness = image[centre[1] - 3 : centre[1] + 4, centre[0] - 3 : centre[0] + 4].mean()
        assert brightness > 25
        assert brightness > image[:4].mean() + 10


def test_vertices_lie_on_the_grid(photos: list[Photo]) -> None:
    steps = photos[0].vertices.astype(np.float64) * 1024
    np.testing.assert_array_equal(steps, np.rint(steps))


def test_brightness_spreads_but_stays_in_range(face_model: MorphableModel) -> None:
    levels = []
    for photo in synthesize(source(persons=24, photos_per_person=1), face_model, seed=1):
        inner = photo.landmarks[[30, 31, 35, 3, 13]].round().astype(int).clip(0, 95)
        levels.append(decode_stored(photo.content)[inner[:, 1], inner[:, 0]].mean() / 255)
    assert min(levels) > 0.02
    assert max(levels) < 0.98
    assert np.std(levels) > 0.08


def test_unknown_eyes_are_drawn(face_model: MorphableModel) -> None:
    from tests.tiny_face import tiny_face

    hollow = tiny_face()
    hollow.parts[:] = 0
    assert len(list(synthesize(source(persons=2), hollow, seed=0))) == 4


@pytest.mark.parametrize("randomization", ["plain", "strong"])
def test_further_vertices_are_where_the_landmarks_of_the_same_vertices_are(
    face_model: MorphableModel, randomization: str
) -> None:
    vertices = face_model.landmark_vertices.numpy()
    assert (face_model.landmark_weights.max(1).values == 1.0).all()
    chosen = source(persons=1, randomization=randomization)
    plain, beside = (list(synthesize(chosen, face_model, seed=5, dense=dense)) for dense in (None, vertices[10:50]))
    for photo, other in zip(plain, beside, strict=True):
        assert photo.dense is photo.outline is None
        np.testing.assert_allclose(other.dense, photo.landmarks[10:50], atol=1e-3)
        assert photo.content == other.content


@pytest.mark.parametrize("randomization", ["plain", "strong"])
def test_outlines_run_around_the_face(face_model: MorphableModel, randomization: str) -> None:
    chosen = source(persons=2, randomization=randomization)
    plain, outlined = (list(synthesize(chosen, face_model, seed=5, outlines=wanted)) for wanted in (False, True))
    for photo, other in zip(plain, outlined, strict=True):
        assert photo.content == other.content
        np.testing.assert_array_equal(photo.landmarks, other.landmarks)
        assert other.outline is not None
        assert other.outline.shape == (17, 2)
        middle = photo.landmarks.mean(0)
        reach = np.linalg.norm(other.outline - middle, axis=1) / np.ptp(photo.landmarks, axis=0).max()
        assert reach.max() < 0.9
        assert np.ptp(other.outline, axis=0).max() > 0.4 * np.ptp(photo.landmarks, axis=0).max()


# rerendered


def test_rerendered_photos_show_the_same_mesh(face_model: MorphableModel, photos: list[Photo]) -> None:
    again = RerenderedSource(kind="rerendered", name="again", of="scans", copies=3, size_px=96)
    meshes = [LabelMesh(f"scans/{number}", f"scans/p{number}", photos[number].vertices) for number in (0, 4)]
    rendered = list(rerender(again, face_model, meshes, seed=0))
    assert [photo.mesh_id for photo in rendered] == ["scans/0"] * 3 + ["scans/4"] * 3
    assert {photo.person for photo in rendered} == {"scans/p0", "scans/p4"}
    np.testing.assert_array_equal(rendered[1].vertices, photos[0].vertices)
    assert len({photo.content for photo in rendered}) == 6
    alone = list(rerender(again, face_model, meshes[1:], seed=0))
    assert [photo.content for photo in alone] == [photo.content for photo in rendered[3:]]
    beside = next(rerender(again, face_model, meshes, seed=0, dense=face_model.landmark_vertices.numpy()))
    np.testing.assert_allclose(beside.dense, rendered[0].landmarks, atol=1e-3)
    outlined = next(rerender(again, face_model, meshes, seed=0, outlines=True))
    assert outlined.content == rendered[0].content
    assert np.isfinite(outlined.outline).all()


# what is drawn at random


def test_neutral_third_and_lively_rest(face_model: MorphableModel) -> None:
    stream = person_stream(0, "photos", 0)
    names = face_model.expression_names
    drawn = np.stack([draw_expression(stream, names) for _ in range(600)])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    strongest = np.sort(drawn, 1)[:, -1]
    assert 0.2 < (strongest < 0.15).mean() < 0.4
    assert (drawn[:, names.index("mouthClose")] <= drawn[:, names.index("jawOpen")]).all()
    smile = drawn[:, [names.index("mouthSmileLeft"), names.index("mouthSmileRight")]]
    assert np.corrcoef(smile.T)[0, 1] > 0.9
    assert (np.abs(np.diff(smile, axis=1)) > 0).any()


def test_actions_name_shapes_that_exist(face_model: MorphableModel) -> None:
    known = {name.removesuffix("Left").removesuffix("Right") for name in face_model.expression_names}
    known |= {"mouthLeft", "mouthRight", "jawLeft", "jawRight"}
    assert {shape for action in ACTIONS for shape, _, _ in action} <= known


def test_statistical_expressions_are_gaussian() -> None:
    stream = person_stream(0, "photos", 0)
    drawn = np.stack([draw_expression(stream, [f"mode{number}" for number in range(8)]) for _ in range(500)])
    assert 0.6 < drawn.std() < 0.75
    assert np.abs(drawn).max() <= 0.7 * 2.5


@pytest.mark.parametrize("limit", [0.0, 20.0, 90.0])
def test_yaw_reaches_the_limit_and_no_further(limit: float) -> None:
    stream = person_stream(0, "photos", 1)
    yaw, pitch, roll = np.degrees([draw_angles(stream, limit) for _ in range(800)]).T
    assert np.abs(yaw).max() <= limit + 1e-9
    assert np.abs(yaw).max() >= 0.95 * limit
    assert np.abs(pitch).max() <= 20 + 1e-9
    assert np.abs(roll).max() <= 15 + 1e-9
    if limit == 90:
        assert 0.42 < (np.abs(yaw) <= 30).mean() < 0.58
        assert abs(yaw.mean()) < 5


def test_persons_differ_between_sources_and_numbers() -> None:
    draws = [person_stream(seed, name, key).random() for seed in (0, 1) for name in ("a", "b") for key in (0, 1, "0")]
    assert len(set(draws)) == len(draws)


def test_exposure_is_the_mean_over_visible_normals() -> None:
    stream = person_stream(0, "photos", 0)
    shots = [draw_shot(stream, expression_names=(), max_yaw_deg=90.0, occluder_share=0.0) for _ in range(20)]
    light = lighting(shots, brightness=torch.full((20,), 0.3))
    angle = torch.linspace(0, 2 * math.pi, 13)[:-1]
    ring = torch.stack([0.6 * angle.cos(), 0.6 * angle.sin(), torch.full_like(angle, -0.8)], 1)
    level = irradiance(ring.expand(20, -1, -1), light).mean((1, 2))
    asked = torch.tensor([shot.exposure for shot in shots])
    torch.testing.assert_close(level / asked, torch.ones(20), atol=0.3, rtol=0)
    assert level.std() > 0.1


def test_bright_skin_under_bright_light_is_not_washed_out() -> None:
    stream = person_stream(0, "photos", 0)
    shots = [draw_shot(stream, expression_names=(), max_yaw_deg=90.0, occluder_share=0.0) for _ in range(50)]
    pale = lighting(shots, brightness=torch.full((50,), 0.9))[:, 0].mean()
    medium = lighting(shots, brightness=torch.full((50,), 0.3))[:, 0].mean()
    assert 0.9 * pale < 0.75
    assert pale < medium


def test_occluders_come_as_often_as_asked() -> None:
    stream = person_stream(0, "photos", 0)
    for share in (0.0, 0.25, 1.0):
        shots = [draw_shot(stream, expression_names=(), max_yaw_deg=0.0, occluder_share=share) for _ in range(400)]
        assert abs(np.mean([shot.occluded for shot in shots]) - share) < 0.07


def test_subjects_stay_within_the_spread() -> None:
    stream = person_stream(0, "photos", 0)
    subjects = list(islice((draw_subject(stream, identity_size=40, albedo_size=0) for _ in range(100)), 100))
    identity = np.stack([subject.identity for subject in subjects])
    assert np.abs(identity).max() <= 2.5
    assert 0.9 < identity.std() < 1.02
    assert {subject.albedo.shape for subject in subjects} == {(0,)}
