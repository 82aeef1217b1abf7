from __future__ import annotations

import io

import pytest
import torch

from models.face.camera import crop_camera, project, to_camera_space
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.reconstruction.reconstructor import (
    Reconstructor,
    ReconstructorSettings,
    load_reconstructor,
    reconstructor_content,
)
from tests.tiny_face import tiny_face

SETTINGS = ReconstructorSettings(
    crop_size_px=32,
    crop_scale=1.35,
    geometry_width=32,
    geometry_blocks=1,
    geometry_refinements=1,
    backbone="resnet-slim",
    width=4,
    features=16,
)


@pytest.fixture
def reconstructor(face: MorphableModel) -> Reconstructor:
    torch.manual_seed(0)
    return Reconstructor(face, SETTINGS).eval()


def inputs(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(count, 3, 32, 32, generator=generator),
        32 * torch.rand(count, 68, 2, generator=generator),
        torch.rand(count, 68, generator=generator),
    )


def test_before_training_the_landmarks_speak_alone(reconstructor: Reconstructor) -> None:
    image, landmarks, confidence = inputs()
    whole, alone = reconstructor(image, landmarks, confidence), reconstructor.from_landmarks(landmarks, confidence)
    for name in ("identity", "expression", "rotation", "translation"):
        assert torch.equal(getattr(whole, name), getattr(alone, name)), name
    assert not alone.albedo.any()
    assert torch.equal(alone.lighting, ambient_light(3))
    # The image branch starts near mean skin under ambient light.
    assert whole.albedo.abs().max() < 0.2
    assert (whole.lighting - ambient_light(3)).abs().max() < 0.1


def test_landmarks_are_normalised_to_half_the_crop(reconstructor: Reconstructor) -> None:
    corners = torch.tensor([0.0, 16.0, 32.0]).repeat(46)[: 68 * 2].view(1, 68, 2)
    assert sorted(reconstructor.normalize(corners).unique().tolist()) == [-1.0, 0.0, 1.0]


def test_a_turn_leaves_the_middle_of_the_landmarks_in_place(reconstructor: Reconstructor, face: MorphableModel) -> None:
    raw = torch.tensor([[0.0, 0.0, 0.0, 0.3, -0.2, 0.1], [0.2, 0.7, -0.3, 0.3, -0.2, 0.1]])
    rotation, translation = reconstructor.pose(raw)
    middle = face.mean[face.landmark_vertices].mean(0).expand(2, 1, 3)
    seen = to_camera_space(middle, rotation=rotation, translation=translation)
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(seen[0, 0], torch.tensor([15.0, -10.0, 1000 * 1.0202013]))


def test_reconstructions_are_consistent(reconstructor: Reconstructor, face: MorphableModel) -> None:
    coefficients, camera = reconstructor(*inputs()), crop_camera(3, 32)
    found = reconstructor.reconstruct(coefficients, camera, shade=True)
    vertices = face.vertices(coefficients.identity, coefficients.expression)
    seen = to_camera_space(vertices, rotation=coefficients.rotation, translation=coefficients.translation)
    torch.testing.assert_close(found.mesh.vertices, seen)
    torch.testing.assert_close(found.landmarks, project(face.landmarks(seen), camera))
    torch.testing.assert_close(found.neutral, face.vertices(coefficients.identity))
    assert found.rendering is not None
    assert found.rendering.mask.flatten(1).any(1).all()
    assert reconstructor.reconstruct(coefficients, camera).rendering is None


def test_a_checkpoint_gives_the_same_network(reconstructor: Reconstructor, face: MorphableModel) -> None:
    torch.nn.init.normal_(reconstructor.encoder.correction.weight)
    stored = io.BytesIO()
    torch.save(reconstructor_content(reconstructor), stored)
    stored.seek(0)
    content = torch.load(stored, weights_only=True)
    assert content["face_model_stamp"] == face.stamp()
    restored = load_reconstructor(content, face)
    assert not restored.training
    assert restored.settings == SETTINGS
    first, second = reconstructor(*inputs()), restored(*inputs())
    assert torch.equal(first.identity, second.identity)
    assert torch.equal(first.lighting, second.lighting)


def test_a_checkpoint_does_not_change_with_the_network(reconstructor: Reconstructor) -> None:
    content = reconstructor_content(reconstructor)
    before = {name: value.clone() for name, value in content["weights"].items()}
    torch.nn.init.normal_(reconstructor.encoder.correction.weight)
    assert all(torch.equal(value, before[name]) for name, value in content["weights"].items())


def test_a_checkpoint_of_another_face_model_is_refused(reconstructor: Reconstructor) -> None:
    other = tiny_face()
    other.mean[0, 0] += 1.0
    with pytest.raises(ValueError, match=r"trained with face model \w+, the params name \w+ \(tiny\); .*train again"):
        load_reconstructor(reconstructor_content(reconstructor), other)


def test_a_checkpoint_of_another_kind_is_refused(face: MorphableModel) -> None:
    with pytest.raises(ValueError, match="kind 'detector', expected 'reconstructor'"):
        load_reconstructor({"kind": "detector"}, face)
