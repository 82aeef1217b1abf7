"""Painted faces: each part gets what belongs there, and nothing else does."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.types import PART_NAMES
from tasks.face_layout import CHANNELS, FaceLayout
from tasks.paint import Painted, Skin, paint
from tasks.subjects import Subject, draw_subject, person_stream
from tests.tiny_face import tiny_face

CENTRES = np.array([[-31.0, 30.0, 0.0], [31.0, 30.0, 0.0]])


def subject(**changes: object) -> Subject:
    drawn = draw_subject(person_stream(0, "photos", 0), identity_size=0, albedo_size=0)
    return dataclasses.replace(drawn, hair_volume=1.1, **changes)


def with_balls() -> MorphableModel:
    """The tiny face with two spheres for eyes."""
    face = tiny_face()
    height, turn = np.meshgrid(np.linspace(-1, 1, 20), np.linspace(0, 2 * np.pi, 20), indexing="ij")
    radius = np.sqrt(1 - height**2)
    sphere = 12.0 * np.stack([radius * np.cos(turn), height, radius * np.sin(turn)], 2).reshape(-1, 3)
    index = np.arange(400).reshape(20, 20)
    corners = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:]], 2).reshape(-1, 3)
    balls = np.concatenate([sphere + centre for centre in CENTRES])
    count, more = face.vertex_count, len(balls)
    more_triangles = np.concatenate([corners + count, corners + count + 400])

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, torch.zeros(*values.shape[:-2], more, 3)], -2)

    return MorphableModel(
        name="balls",
        licence="CC0-1.0",
        mean=torch.cat([face.mean, torch.from_numpy(balls).float()]),
        identity_basis=padded(face.identity_basis),
        expression_basis=padded(face.expression_basis),
        expression_names=face.expression_names,
        albedo_mean=padded(face.albedo_mean),
        albedo_basis=padded(face.albedo_basis),
        triangles=torch.cat([face.triangles, torch.from_numpy(more_triangles)]),
        landmark_vertices=face.landmark_vertices,
        uv=torch.cat([face.uv, torch.zeros(more, 2)]),
        parts=torch.cat([face.parts, torch.full((more,), PART_NAMES.index("eyes"))]),
    )


@cache
def face_model() -> MorphableModel:
    return procedural_face(identity_modes=2)


@pytest.fixture(scope="module")
def layout() -> FaceLayout:
    return FaceLayout(face_model())


def vertices_of(model: MorphableModel, layout: FaceLayout) -> Skin:
    return Skin(model.albedo_mean.numpy(), model.mean.numpy(), layout.weights)


def painted(number: int, layout: FaceLayout, **changes: object) -> tuple[Skin, Painted]:
    skin = vertices_of(face_model(), layout)
    return skin, paint(skin, layout, subject(**changes), np.random.default_rng(number))


def test_colours_are_colours_and_repeat(layout: FaceLayout) -> None:
    for number in range(5):
        skin, one = painted(number, layout)
        assert one.albedo.shape == skin.albedo.shape
        assert one.albedo.min() >= 0.01
        assert one.albedo.max() <= 1.0
        assert np.isfinite(one.gloss).all()
        assert one.gloss.min() >= 0.0
        np.testing.assert_array_equal(one.albedo, painted(number, layout)[1].albedo)
    assert np.abs(painted(0, layout)[1].albedo - painted(1, layout)[1].albedo).max() > 0.1


def test_a_face_remains_a_face(layout: FaceLayout) -> None:
    """Over many draws, brows, nostrils and pupils stay darker than the skin around them."""
    darker = []
    for number in range(12):
        skin, one = painted(number, layout)
        tone = one.albedo.mean(1)
        brows, bare = skin.weight("brows") > 0.5, skin.weight("skin") > 0.5
        darker.append(tone[brows].mean() < np.median(tone[bare]))
    assert np.mean(darker) >= 0.7


def test_beards_grow_below_the_nose_only(layout: FaceLayout) -> None:
    """Against the same face without: whatever hair there is, forehead, nose and upper cheeks stay bare."""
    bearded = 0
    above = layout.points[28:31, 1].mean()
    for number in range(16):
        skin, one = painted(number, layout, hairline=3.0)
        hairy = (skin.weight("skin") > 0.5) & ~one.bare
        middle = np.abs(skin.place[:, 0] - layout.middle) < 0.6 * layout.half_width
        assert not (hairy & middle & (skin.place[:, 1] > above)).any()
        bearded += bool(hairy.any())
    assert 2 <= bearded <= 12


def test_eyeballs_have_white_iris_and_pupil() -> None:
    model = with_balls()
    layout = FaceLayout(model)
    np.testing.assert_allclose(layout.balls, np.column_stack([CENTRES, [12.0, 12.0]]), atol=0.1)
    ball = layout.weights[:, CHANNELS.index("ball")] > 0
    assert ball.sum() == 798
    skin = vertices_of(model, layout)
    one = paint(skin, layout, subject(), np.random.default_rng(1))
    tone = one.albedo[ball].mean(1).reshape(2, -1)
    for eye, centre in zip(tone, CENTRES, strict=True):
        assert eye.min() < 0.05
        assert eye.max() > 0.5
        # The pupil is in front, and the back is white.
        place = skin.place[ball][np.isclose(np.linalg.norm(skin.place[ball] - centre, axis=1), 12.0, atol=0.1)]
        assert place[eye.argmin(), 2] > 8.0
    # Both look the same way.
    darkest = [skin.place[ball].reshape(2, -1, 3)[side, tone[side].argmin()] - CENTRES[side] for side in (0, 1)]
    assert np.linalg.norm(darkest[0] - darkest[1]) < 4.0


def test_flat_eyes_are_no_balls() -> None:
    layout = FaceLayout(tiny_face())
    assert layout.balls.shape == (0, 4)
    assert not layout.weights[:, CHANNELS.index("ball")].any()


def test_the_inside_of_the_mouth_darkens_with_depth(layout: FaceLayout) -> None:
    skin, one = painted(3, layout)
    inside = skin.weight("mouth") > 0.5
    ratio = one.albedo[inside].mean(1) / skin.albedo[inside].mean(1)
    depth = -skin.place[inside, 2]
    order = depth.argsort()
    tenth = len(order) // 10
    assert ratio[order[-tenth:]].mean() < 0.6 * ratio[order[:tenth]].mean()


def test_noise_is_standard_and_periodic(layout: FaceLayout) -> None:
    for noise in layout.noise:
        assert abs(float(noise.mean())) < 1e-3
        assert float(noise.std()) == pytest.approx(1.0, abs=1e-3)
    # A step over the border is no larger than steps inside.
    smooth = layout.noise[2]
    assert np.abs(smooth[0] - smooth[-1]).max() < 1.5 * np.abs(np.diff(smooth, axis=0)).max()
