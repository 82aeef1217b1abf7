from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.face.morphable import MorphableModel
from models.face.skinning import Skinning, rotation_matrices
from tests.tiny_face import tiny_face

JOINTS = 5
PARENTS = (-1, 0, 1, 1, 1)
SKULL = slice(0, 60)
"""Vertices that do not follow the jaw at all."""


def tiny_skinning(count: int = 210, *, modes: int = 3) -> Skinning:
    """Five joints in FLAME's order; nothing is regular, and the first mode is the jaw's."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(count, JOINTS, generator=generator)
    weights[SKULL, 2] = 0.0
    regressor = torch.rand(JOINTS, count, generator=generator).square()
    mode_rotations = torch.zeros(modes, JOINTS, 3)
    mode_rotations[0, 2, 0] = 0.35
    pose_basis = torch.randn(36, count, 3, generator=generator)
    # Columns 9 to 17 belong to the jaw.
    pose_basis[9:18, SKULL] = 0.0
    return Skinning(
        joint_names=("root", "neck", "jaw", "left_eye", "right_eye"),
        joint_regressor=regressor / regressor.sum(1, keepdim=True),
        pose_basis=pose_basis,
        joint_weights=weights / weights.sum(1, keepdim=True),
        joint_parents=torch.tensor(PARENTS),
        mode_rotations=mode_rotations,
    )


def skinned_face(skinning: Skinning | None = None) -> MorphableModel:
    plain = tiny_face()
    arrays = {
        key: buffer for key, buffer in plain.named_buffers() if key not in ("landmark_corners", "landmark_weights")
    }
    return MorphableModel(
        name="skinned",
        licence="none",
        expression_names=plain.expression_names,
        landmark_vertices=plain.landmark_vertices,
        skinning=tiny_skinning() if skinning is None else skinning,
        **arrays,
    )


def reference(skinning: Skinning, rest: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """One shape, written with homogeneous 4x4 matrices and loops, as in the paper."""
    weights, regressor = skinning.joint_weights.double().numpy(), skinning.joint_regressor.double().numpy()
    basis = skinning.pose_basis.double().numpy()
    joints = regressor @ rest
    local = [Rotation.from_rotvec(vector).as_matrix() for vector in rotations]
    posed = rest.copy()
    feature = np.concatenate([(matrix - np.eye(3)).ravel() for matrix in local[1:]])
    for value, field in zip(feature, basis, strict=True):
        posed += value * field
    world = []
    for place, parent in enumerate(PARENTS):
        step = np.eye(4)
        step[:3, :3] = local[place]
        step[:3, 3] = joints[place] - (joints[parent] if place else 0.0)
        world.append(world[parent] @ step if place else step)
    result = np.zeros_like(rest)
    for place, matrix in enumerate(world):
        to_joint = np.eye(4)
        to_joint[:3, 3] = -joints[place]
        motion = matrix @ to_joint
        result += weights[:, place, None] * (posed @ motion[:3, :3].T + motion[:3, 3])
    return result


def coefficients(count: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expression = torch.randn(count, 3, generator=generator)
    expression[:, 0] = 0.0
    return torch.randn(count, 4, generator=generator), expression, torch.randn(count, JOINTS, 3, generator=generator)


def test_skinning_agrees_with_the_formula_of_the_paper() -> None:
    face = skinned_face().double()
    identity, expression, rotations = (value.double() for value in coefficients(3, seed=0))
    found = face.skinning.pose(face, identity, expression, rotations)
    rest = face.vertices(identity, expression)
    for place in range(3):
        expected = reference(face.skinning, rest[place].numpy(), rotations[place].numpy())
        np.testing.assert_allclose(found[place].numpy(), expected, atol=1e-9)


def test_joints_at_rest_change_nothing() -> None:
    face = skinned_face()
    identity, expression, _ = coefficients(2, seed=1)
    found = face.skinning.pose(face, identity, expression, torch.zeros(2, JOINTS, 3))
    torch.testing.assert_close(found, face.vertices(identity, expression), atol=1e-4, rtol=0)
    torch.testing.assert_close(face.skinning.pose(face, identity, expression), found)


def test_turning_the_root_is_a_rigid_motion_about_it() -> None:
    face = skinned_face()
    identity, expression, rotations = coefficients(2, seed=2)
    rotations[:, 1:] = 0.0
    rest = face.vertices(identity, expression)
    found = face.skinning.pose(face, identity, expression, rotations)
    root = face.skinning.joints(rest)[:, :1]
    turn = torch.from_numpy(Rotation.from_rotvec(rotations[:, 0].numpy()).as_matrix()).float()
    torch.testing.assert_close(found, (rest - root) @ turn.transpose(1, 2) + root, atol=1e-3, rtol=0)


def test_the_jaw_leaves_alone_what_does_not_hang_on_it() -> None:
    face = skinned_face()
    identity, expression, rotations = coefficients(2, seed=3)
    rotations[:, [0, 1, 3, 4]] = 0.0
    moved = face.skinning.pose(face, identity, expression, rotations) - face.vertices(identity, expression)
    assert moved[:, SKULL].abs().max() < 1e-4
    assert moved[:, 60:].norm(dim=2).min() > 0.1


def test_joint_modes_become_the_rotations_that_they_stand_for() -> None:
    face = skinned_face()
    identity, expression, _ = coefficients(2, seed=4)
    expected = face.skinning.pose(face, identity, expression, 0.5 * face.skinning.mode_rotations[:1].expand(2, -1, -1))
    expression[:, 0] = 0.5
    torch.testing.assert_close(face.skinning.pose(face, identity, expression), expected)
    assert face.skinning.joint_rotations(expression)[:, 2, 0].tolist() == pytest.approx([0.175, 0.175])


def test_gradients() -> None:
    skinning = tiny_skinning(12).double()
    generator = torch.Generator().manual_seed(5)
    rest = 10 * torch.randn(2, 12, 3, generator=generator, dtype=torch.float64)
    # The first face is at rest, where an angle would have no derivative.
    rotations = torch.zeros(2, JOINTS, 3, dtype=torch.float64)
    rotations[1] = torch.randn(JOINTS, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(skinning.skin, (rest.requires_grad_(), rotations.requires_grad_()))


def test_rotations_by_hand() -> None:
    found = rotation_matrices(torch.tensor([[0.0, 0.0, math.pi / 2], [0.0, 0.0, 0.0]]))
    expected = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)
    assert torch.equal(found[1], torch.eye(3))


def test_skinning_belongs_to_the_model_but_not_to_checkpoints() -> None:
    face = skinned_face()
    assert not face.state_dict()
    assert face.content_hash() != tiny_face().content_hash()
    other = skinned_face()
    other.skinning.joint_weights[0] += 1e-3
    assert other.content_hash() != face.content_hash()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joint_weights": torch.full((210, JOINTS), 0.3)}, r"joint_weights add up to 1\.5"),
        ({"joint_parents": torch.tensor([-1, 0, 4, 1, 1])}, "each parent before its children"),
        ({"pose_basis": torch.zeros(35, 210, 3)}, r"pose_basis has shape \(35, 210, 3\), expected \(36, 210, 3\)"),
        ({"joint_regressor": torch.full((JOINTS, 210), torch.nan)}, "joint_regressor has values that are not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: dict[str, Tensor], message: str) -> None:
    plain = tiny_skinning()
    with pytest.raises(ValueError, match=message):
        Skinning(joint_names=plain.joint_names, **dict(plain.named_buffers()) | change)


def test_skinning_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"skinning_joint_weights has shape \(200, 5\), expected \(210, 5\)"):
        skinned_face(tiny_skinning(200))
    with pytest.raises(ValueError, match=r"skinning_mode_rotations has shape \(2, 5, 3\), expected \(3, 5, 3\)"):
        skinned_face(tiny_skinning(modes=2))
