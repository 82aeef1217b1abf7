"""Expressions of the default face do what their names say."""

from __future__ import annotations

import pytest
import torch

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face

ARKIT = (
    "eyeBlink eyeLookDown eyeLookIn eyeLookOut eyeLookUp eyeSquint eyeWide mouthSmile mouthFrown mouthDimple "
    "mouthStretch mouthPress mouthLowerDown mouthUpperUp browDown browOuterUp cheekSquint noseSneer"
)
ARKIT_UNPAIRED = (
    "jawForward jawLeft jawRight jawOpen mouthClose mouthFunnel mouthPucker mouthLeft mouthRight mouthRollLower "
    "mouthRollUpper mouthShrugLower mouthShrugUpper browInnerUp cheekPuff tongueOut"
)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return procedural_face(identity_modes=1)


def pose(model: MorphableModel, **activations: float) -> torch.Tensor:
    coefficients = torch.zeros(1, model.expression_size)
    for name, value in activations.items():
        coefficients[0, model.expression_names.index(name)] = value
    return model.vertices(torch.zeros(1, 1), coefficients)[0]


def landmarks(model: MorphableModel, **activations: float) -> torch.Tensor:
    return pose(model, **activations)[model.landmark_vertices]


def field(model: MorphableModel, name: str) -> torch.Tensor:
    return model.expression_basis[model.expression_names.index(name)]


def test_names_are_the_52_of_arkit(model: MorphableModel) -> None:
    expected = {f"{name}{side}" for name in ARKIT.split() for side in ("Left", "Right")} | set(ARKIT_UNPAIRED.split())
    assert len(expected) == 52
    assert set(model.expression_names) == expected
    assert len(model.expression_names) == 52


def test_every_expression_moves_something_by_millimetres_and_little_by_much(model: MorphableModel) -> None:
    for name in model.expression_names:
        length = field(model, name).norm(dim=1)
        assert 1.5 < float(length.max()) < 50.0, name
        assert float((length > 0.05).float().mean()) < 0.75, name


def test_left_and_right_mirror_each_other(model: MorphableModel) -> None:
    mirrored = model.mean * torch.tensor([-1.0, 1.0, 1.0])
    for left in [name for name in model.expression_names if name.endswith("Left")]:
        right = left.removesuffix("Left") + "Right"
        here, there = model.mean + field(model, left), (mirrored + field(model, right) * torch.tensor([-1.0, 1.0, 1.0]))
        assert float((here.mean(0) - there.mean(0)).abs().max()) < 1e-3, left


@pytest.mark.parametrize("name", ["eyeBlink", "mouthSmile", "browDown", "cheekSquint", "noseSneer", "mouthPress"])
def test_left_is_the_subjects_left(model: MorphableModel, name: str) -> None:
    moved = field(model, name + "Left").square().sum(1)
    assert float(moved[model.mean[:, 0] > 0.0].sum()) > 4.0 * float(moved[model.mean[:, 0] < 0.0].sum())


def test_jaw_open_parts_the_lips(model: MorphableModel) -> None:
    points = landmarks(model, jawOpen=1.0)
    assert 20.0 < float((points[62] - points[66]).norm()) < 45.0
    rest = landmarks(model)
    assert float((points[27:48] - rest[27:48]).abs().max()) < 0.5, "nose and eyes stay"
    assert float(rest[8, 1] - points[8, 1]) > 15.0


def test_mouth_close_closes_an_open_jaw(model: MorphableModel) -> None:
    points = landmarks(model, jawOpen=1.0, mouthClose=1.0)
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        assert float((points[upper] - points[lower]).norm()) < 1.0
    assert float(landmarks(model)[8, 1] - points[8, 1]) > 15.0, "the jaw stays open"


def test_blink_closes_one_eye(model: MorphableModel) -> None:
    rest, points = landmarks(model), landmarks(model, eyeBlinkLeft=1.0)
    assert float((rest[[43, 44], 1] - rest[[47, 46], 1]).min()) > 7.0
    assert float((points[[43, 44]] - points[[47, 46]]).norm(dim=1).max()) < 2.0
    assert float((points[36:42] - rest[36:42]).abs().max()) < 0.05


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_lids_slide_over_the_ball(model: MorphableModel, share: float) -> None:
    vertices = pose(model, eyeBlinkLeft=share)
    ball = torch.nonzero(model.part("eyes") & (model.mean[:, 0] > 0.0))[:, 0]
    lids = vertices[model.landmark_vertices[[43, 44, 46, 47]]]
    pupil = vertices[ball][vertices[ball][:, 2].argmax()]
    centre = pupil - torch.tensor([0.0, 0.0, 12.0])
    assert float((lids - centre).norm(dim=1).min()) > 12.2


def test_gaze_turns_the_ball_and_keeps_its_size(model: MorphableModel) -> None:
    ball = torch.nonzero(model.part("eyes") & (model.mean[:, 0] > 0.0))[:, 0]
    pupil = ball[model.mean[ball, 2].argmax()]
    centre = model.mean[pupil] - torch.tensor([0.0, 0.0, 12.0])
    for name, axis, sign in (("Up", 1, 1), ("Down", 1, -1), ("In", 0, -1), ("Out", 0, 1)):
        looked = pose(model, **{f"eyeLook{name}Left": 1.0})[pupil]
        assert sign * float((looked - model.mean[pupil])[axis]) > 3.0, name
        assert float((looked - centre).norm()) == pytest.approx(12.0, abs=0.3), name


def test_mouth_shapes(model: MorphableModel) -> None:
    rest = landmarks(model)
    width = float(rest[54, 0] - rest[48, 0])
    smile = landmarks(model, mouthSmileLeft=1.0, mouthSmileRight=1.0)
    assert smile[54, 1] > rest[54, 1] + 3.0
    assert smile[54, 0] > rest[54, 0] + 3.0
    frown = landmarks(model, mouthFrownLeft=1.0, mouthFrownRight=1.0)
    assert frown[48, 1] < rest[48, 1] - 3.0
    pucker = landmarks(model, mouthPucker=1.0)
    assert float(pucker[54, 0] - pucker[48, 0]) < 0.8 * width
    assert float(pucker[51, 2] - rest[51, 2]) > 3.0
    funnel = landmarks(model, mouthFunnel=1.0)
    assert 5.0 < float(funnel[62, 1] - funnel[66, 1]) < 20.0


def test_brows_and_cheeks(model: MorphableModel) -> None:
    rest = landmarks(model)
    assert landmarks(model, browInnerUp=1.0)[[21, 22], 1].min() > rest[21, 1] + 3.0
    assert landmarks(model, browDownLeft=1.0)[23, 1] < rest[23, 1] - 2.0
    puffed = field(model, "cheekPuff")
    assert float(puffed[:, 2].max()) > 4.0


def test_tongue_comes_out_beyond_the_lips(model: MorphableModel) -> None:
    vertices = pose(model, tongueOut=1.0, jawOpen=0.3)
    inside, lips = vertices[model.part("mouth")], vertices[model.part("lips")]
    assert float(inside[:, 2].max()) > float(lips[:, 2].max()) + 5.0
    at_rest = model.mean[model.part("mouth")]
    assert float(at_rest[:, 2].max()) < float(model.mean[model.part("lips"), 2].max())
