"""A person's film from single frames whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from models.reconstruction.video import (
    FilmFace,
    FrameFace,
    filled_frames,
    film_camera,
    link_faces,
    personal_model,
    solve_track,
    sudden_frames,
)
from models.types import Batch, Camera, FaceCoefficients
from tests.tiny_face import tiny_face

SIZE_PX, FRAMES, RATE = 64, 24, 24.0


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return tiny_face()


def frames(model: MorphableModel, *, noise: float = 0.0, seed: int = 0) -> tuple[list[FrameFace], FaceCoefficients]:
    """One person who speaks and turns; the network's identities differ by frame. Returns the truth as well."""
    generator = torch.Generator().manual_seed(seed)
    turn = 0.5 * torch.sin(torch.linspace(0, 4, FRAMES))
    zero = torch.zeros(FRAMES)
    person = torch.randn(1, 4, generator=generator)
    truth = FaceCoefficients(
        identity=person.expand(FRAMES, -1),
        expression=torch.stack([0.5 + 0.4 * torch.sin(torch.linspace(0, 9, FRAMES)), zero + 0.2, zero], 1),
        albedo=torch.zeros(FRAMES, 2),
        lighting=torch.ones(FRAMES, 9, 3),
        rotation=rotation_from_angles(turn, 0.3 * turn, zero),
        translation=torch.tensor([[10.0, -5.0, 1100.0]]).expand(FRAMES, -1),
    )
    camera = crop_camera(FRAMES, SIZE_PX)
    seen = to_camera_space(
        model.landmark_points(truth.identity, truth.expression), rotation=truth.rotation, translation=truth.translation
    )
    points = project(seen, camera) + noise * torch.randn(FRAMES, 68, 2, generator=generator)
    faces = []
    for row in range(FRAMES):
        one = slice(row, row + 1)
        faces.append(
            FrameFace(
                frame=row,
                time_s=row / RATE,
                landmarks=points[row].numpy(),
                confidence=np.full(68, 0.9, np.float32),
                batch=Batch(
                    source="photo",
                    sample_ids=("film",),
                    camera=crop_camera(1, SIZE_PX),
                    image=torch.rand(1, 3, SIZE_PX, SIZE_PX, generator=generator),
                    mask=torch.ones(1, SIZE_PX, SIZE_PX, dtype=torch.bool),
                    landmarks=points[one],
                    confidence=torch.full((1, 68), 0.9),
                    person=torch.zeros(1, dtype=torch.int64),
                ),
                coefficients=FaceCoefficients(
                    identity=person + 0.6 * torch.randn(1, 4, generator=generator),
                    expression=truth.expression[one] + 0.1 * torch.randn(1, 3, generator=generator),
                    albedo=torch.zeros(1, 2),
                    lighting=torch.ones(1, 9, 3),
                    rotation=truth.rotation[one],
                    translation=truth.translation[one],
                ),
                focal_px=float(camera.focal_px[0]),
            )
        )
    return faces, truth


def film_of(model: MorphableModel, faces: list[FrameFace], *, smooth: bool) -> FilmFace:
    # The film is seen by the camera of the crops, so that the truth holds in it.
    one = crop_camera(1, SIZE_PX)
    return solve_track(model, faces, Camera(one.focal_px, one.principal_px, one.size), smooth=smooth)


def test_one_identity_nearer_to_the_truth_than_single_frames(model: MorphableModel) -> None:
    faces, truth = frames(model)
    film = film_of(model, faces, smooth=False)
    found = film.coefficients
    assert (found.identity == found.identity[:1]).all()
    single = torch.cat([face.coefficients.identity for face in faces]) - truth.identity
    assert (found.identity[0] - truth.identity[0]).norm() < 0.5 * single.norm(dim=1).mean()
    # Pose and expression answer the new identity: every frame's landmarks are still explained.
    points = model.landmark_points(found.identity, found.expression)
    seen = to_camera_space(points, rotation=found.rotation, translation=found.translation)
    error = (project(seen, crop_camera(FRAMES, SIZE_PX)) - torch.stack([f.batch.landmarks[0] for f in faces])).norm(
        dim=2
    )
    assert error.mean() < 0.35


def test_the_filter_makes_it_steadier_without_losing_the_motion(model: MorphableModel) -> None:
    faces, truth = frames(model, noise=0.4)
    rough, steady = (film_of(model, faces, smooth=smooth).coefficients for smooth in (False, True))
    for name in ("expression", "rotation"):
        jitter = [getattr(one, name).diff(dim=0).diff(dim=0).norm() for one in (rough, steady)]
        assert jitter[1] < 0.8 * jitter[0], name
    assert (steady.rotation - truth.rotation).norm(dim=1).mean() < 0.12
    assert float(steady.expression[:, 0].max() - steady.expression[:, 0].min()) > 0.4


def test_frames_in_which_the_detector_was_wrong_are_left_out(model: MorphableModel) -> None:
    faces, _ = frames(model)
    middle = faces[9].landmarks.mean(0)
    wrong = [*faces]
    wrong[9] = FrameFace(**{**vars(faces[9]), "landmarks": middle + 1.5 * (faces[9].landmarks - middle)})
    scrambled = np.random.default_rng(0).permutation(faces[15].landmarks)
    wrong[15] = FrameFace(**{**vars(faces[15]), "landmarks": scrambled})
    assert np.flatnonzero(sudden_frames(wrong)).tolist() == [9]
    film = film_of(model, wrong, smooth=False)
    assert sorted(set(range(FRAMES)) - set(film.frames.tolist())) == [9, 15]
    filled, seen = filled_frames(film, np.arange(FRAMES) / RATE)
    assert np.flatnonzero(~seen).tolist() == [9, 15]
    expected = (film.coefficients.expression[8] + film.coefficients.expression[9]) / 2.0
    assert torch.allclose(filled.coefficients.expression[9], expected, atol=1e-5)
    assert torch.isfinite(filled.coefficients.rotation).all()


def test_a_person_has_no_identity_modes(model: MorphableModel) -> None:
    identity = torch.randn(4, generator=torch.Generator().manual_seed(3))
    own = personal_model(model, identity)
    assert own.identity_size == 0
    expression = torch.rand(2, 3)
    expected = model.vertices(identity.expand(2, -1), expression)
    assert torch.allclose(own.vertices(torch.zeros(2, 0), expression), expected, atol=1e-4)


def test_links_are_the_nearest_and_each_is_used_once() -> None:
    face = np.stack(np.meshgrid(np.arange(17.0), np.arange(4.0)), 2).reshape(-1, 2)
    tracks = [face, face + [100.0, 0.0]]
    assert link_faces(tracks, [face + [103.0, 1.0], face + [2.0, 0.0], face + [300.0, 0.0]]) == [1, 0, None]
    assert link_faces([face], [face + 5.0, face + 1.0]) == [None, 0]
    assert link_faces([face], [face.mean(0) + 1.6 * (face - face.mean(0))]) == [None]


def test_the_film_camera_is_never_very_wide() -> None:
    camera = film_camera((480, 640), [100.0, 120.0, 5000.0])
    assert camera.focal_px.tolist() == [640.0]
    assert camera.principal_px.tolist() == [[320.0, 240.0]]
    assert film_camera((480, 640), [900.0, 1000.0, 1100.0]).focal_px.tolist() == [1000.0]
