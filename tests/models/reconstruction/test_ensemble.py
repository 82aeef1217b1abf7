from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix

from models.face.alignment import rigid_alignment, transform
from models.face.camera import rotation_distance
from models.face.morphable import MorphableModel
from models.reconstruction.ensemble import (
    average_coefficients,
    average_shapes,
    mean_rotation,
    nearest_identity,
    posterior_spread,
)
from models.types import FaceCoefficients


def member(seed: int, *, identities: int = 4) -> FaceCoefficients:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(3, *shape, generator=generator)

    return FaceCoefficients(
        identity=draw(identities),
        expression=draw(3),
        albedo=draw(2),
        lighting=draw(9, 3),
        rotation=0.3 * draw(3),
        translation=draw(3),
    )


def test_coefficients_are_averaged_and_rotations_as_rotations() -> None:
    first, second = member(0), member(1)
    both = average_coefficients([first, second])
    torch.testing.assert_close(both.identity, (first.identity + second.identity) / 2)
    torch.testing.assert_close(both.lighting, (first.lighting + second.lighting) / 2)
    # The middle rotation is as far from either.
    to_first, to_second = (rotation_distance(both.rotation, one.rotation) for one in (first, second))
    torch.testing.assert_close(to_first, to_second, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(to_first, rotation_distance(first.rotation, second.rotation) / 2, rtol=1e-3, atol=1e-3)
    same = average_coefficients([first, first, first])
    torch.testing.assert_close(same.rotation, first.rotation, rtol=1e-4, atol=1e-5)


def test_opposite_turns_cancel_across_the_half_turn() -> None:
    # 179° and -179° about the vertical have their middle behind, not in front.
    angle = torch.tensor([3.124, -3.124])
    rotations = torch.stack([torch.zeros(2), angle, torch.zeros(2)], 1)[:, None]
    found = axis_angle_to_rotation_matrix(mean_rotation(rotations))
    torch.testing.assert_close(found[0], torch.diag(torch.tensor([-1.0, 1.0, -1.0])), rtol=0, atol=1e-3)


def test_other_bases_and_no_members_are_refused() -> None:
    with pytest.raises(ValueError, match=r"identity of shapes \(3, 4\), \(3, 6\), expected one basis"):
        average_coefficients([member(0), member(1, identities=6)])
    with pytest.raises(ValueError, match="no members"):
        average_coefficients([])
    with pytest.raises(ValueError, match=r"meshes of 5, 6 vertices, expected one topology"):
        average_shapes([torch.zeros(1, 5, 3), torch.zeros(1, 6, 3)])
    with pytest.raises(ValueError, match="no members"):
        average_shapes([])


def test_pose_is_no_difference_between_shapes(face: MorphableModel) -> None:
    identity = member(0).identity
    shape = face.vertices(identity)
    turn = axis_angle_to_rotation_matrix(torch.tensor([[0.3, -0.2, 0.1]])).expand(3, 3, 3)
    moved = transform(shape, turn, torch.tensor([[5.0, -3.0, 9.0]]).expand(3, 3))
    found = average_shapes([shape, moved, shape])
    assert found.spread.max() < 0.01
    rotation, translation, _ = rigid_alignment(found.vertices, shape)
    assert (transform(found.vertices, rotation, translation) - shape).norm(dim=2).max() < 0.01
    assert average_shapes([shape]).spread.abs().max() == 0.0


def test_spread_is_a_standard_deviation_in_millimetres() -> None:
    # A vertex that moves along its axis by -1, 0, 1 beside others that stay: variance 2 / 2.
    cross = 100.0 * torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [0, 0, 0]])
    shapes = [cross[None].clone() for _ in range(3)]
    for shape, offset in zip(shapes, (-1.0, 0.0, 1.0), strict=True):
        shape[0, -1, 2] += offset
    spread = average_shapes(shapes).spread[0]
    # The alignment gives a seventh of the offset to all.
    assert spread[-1] == pytest.approx(6 / 7, abs=1e-3)
    assert spread[:-1].max() < 0.15


def test_posterior_spread_is_what_samples_show(face: MorphableModel) -> None:
    generator = torch.Generator().manual_seed(3)
    factor = 0.05 * torch.randn(4, 4, generator=generator)
    covariance = factor @ factor.T
    identity = torch.randn(4000, 4, generator=generator) @ factor.T
    shapes = face.vertices(identity)
    rotation, translation, _ = rigid_alignment(shapes, face.mean.expand_as(shapes))
    measured = (transform(shapes, rotation, translation) - face.mean).square().sum(2).mean(0).sqrt()
    found = posterior_spread(face, covariance[None])[0]
    torch.testing.assert_close(found, measured, rtol=0.08, atol=2e-3)


def test_identity_is_found_again_from_turned_vertices(face: MorphableModel) -> None:
    identity = 0.1 * member(5).identity
    shape = face.vertices(identity)
    turn = axis_angle_to_rotation_matrix(torch.tensor([[0.0, 0.5, 0.0]])).expand(3, 3, 3)
    found = nearest_identity(face, transform(shape, turn, torch.zeros(3, 3)))
    torch.testing.assert_close(face.vertices(found), face.vertices(identity), rtol=0, atol=0.15)
    alike = average_coefficients([replace(member(5), identity=found)])
    assert alike.identity.shape == (3, 4)
