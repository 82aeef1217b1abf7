from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from models.face.alignment import rigid_alignment, rigid_icp, transform

seeds = st.integers(0, 2**31)


def random_motion(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rotation = torch.from_numpy(Rotation.random(rng=seed).as_matrix())[None]
    return rotation, 100 * torch.randn(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cloud(seed: int, count: int = 12) -> torch.Tensor:
    return 50 * torch.randn(1, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 20


@given(seed=seeds, count=st.integers(3, 20), scale=st.floats(0.1, 10.0))
@settings(deadline=None)
def test_a_motion_is_recovered(seed: int, count: int, scale: float) -> None:
    source = cloud(seed, count)
    rotation, translation = random_motion(seed)
    target = transform(source, rotation, translation, torch.tensor([scale]).double())
    found = rigid_alignment(source, target, scale=True)
    torch.testing.assert_close(found[0], rotation, atol=1e-7, rtol=0)
    torch.testing.assert_close(found[1], translation, atol=1e-5, rtol=1e-7)
    assert found[2].item() == pytest.approx(scale)
    torch.testing.assert_close(transform(source, *found), target, atol=1e-5, rtol=1e-7)


@given(seed=seeds)
@settings(deadline=None)
def test_agrees_with_scipy_on_noisy_weighted_points(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = cloud(seed), cloud(seed + 1)
    weights = torch.rand(1, source.shape[1], generator=generator, dtype=torch.float64) + 0.01
    rotation, translation, factor = rigid_alignment(source, target, weights=weights)
    share = (weights / weights.sum())[..., None]
    means = [(points * share).sum(1) for points in (source, target)]
    expected, _ = Rotation.align_vectors(
        (target - means[1])[0].numpy(), (source - means[0])[0].numpy(), weights=weights[0].numpy()
    )
    np.testing.assert_allclose(rotation[0].numpy(), expected.as_matrix(), atol=1e-6)
    torch.testing.assert_close(translation, means[1] - means[0] @ rotation[0].T)
    assert factor.tolist() == [1.0]


def test_a_mirrored_target_gets_a_proper_rotation() -> None:
    source = cloud(3)
    rotation, _, factor = rigid_alignment(source, source * torch.tensor([-1.0, 1.0, 1.0]), scale=True)
    assert torch.det(rotation).item() == pytest.approx(1.0)
    assert 0 < factor.item() < 1


@pytest.mark.parametrize("points", [torch.eye(3)[:1].repeat(5, 1) * torch.arange(5.0)[:, None], torch.ones(4, 3)])
def test_points_on_a_line_or_in_one_place_get_a_proper_rotation(points: torch.Tensor) -> None:
    rotation, translation, _ = rigid_alignment(points[None], points[None] + 2.0)
    assert torch.det(rotation).item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(transform(points[None], rotation, translation), points[None] + 2.0)


def test_points_without_weight_do_not_count() -> None:
    source = cloud(4)
    rotation, translation = random_motion(5)
    target = transform(source, rotation, translation)
    target[:, 0] += 500.0
    weights = torch.ones(1, source.shape[1]).double()
    weights[:, 0] = 0.0
    found, _, _ = rigid_alignment(source, target, weights=weights)
    torch.testing.assert_close(found, rotation)


def test_faces_of_a_batch_are_aligned_by_themselves() -> None:
    source = torch.cat([cloud(6), cloud(7)])
    motions = [random_motion(8), random_motion(9)]
    rotation, translation = (torch.cat(parts) for parts in zip(*motions, strict=True))
    found = rigid_alignment(source, transform(source, rotation, translation))
    torch.testing.assert_close(found[0], rotation)
    torch.testing.assert_close(found[1], translation)


def surface(left: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Heights and unit normals of a bent surface without symmetry."""
    x, y = left / 60, up / 80
    height = 30 * torch.sin(2 * x + y) - 25 * x * x + 15 * torch.cos(3 * y)
    slope_x = (60 * torch.cos(2 * x + y) - 50 * x) / 60
    slope_y = (30 * torch.cos(2 * x + y) - 45 * torch.sin(3 * y)) / 80
    normals = torch.stack([-slope_x, -slope_y, torch.ones_like(x)], 1)
    return height, normals / normals.norm(dim=1, keepdim=True)


def bowl(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of that surface, and the normals there."""
    where = 2.0 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1.0
    left, up = (where * torch.tensor([60.0, 80.0])).T
    height, normals = surface(left, up)
    return torch.stack([left, up, height], 1)[None], normals[None]


def small_motion(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    turn = Rotation.from_rotvec(generator.normal(0, 0.06, 3)).as_matrix()
    return torch.from_numpy(turn)[None], torch.from_numpy(generator.normal(0, 3, 3))[None]


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_icp_finds_a_known_motion_of_the_same_points(seed: int, scale: bool) -> None:
    source, normals = bowl(250, seed)
    rotation, translation = small_motion(seed)
    factor = torch.tensor([1.04 if scale else 1.0]).double()
    target = transform(source, rotation, translation, factor)
    found = rigid_icp(source, target, normals @ rotation.transpose(1, 2), steps=15, scale=scale, trim=1.0)
    torch.testing.assert_close(found[0], rotation, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], translation, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[2], factor, atol=1e-6, rtol=0)


def test_icp_agrees_with_trimesh_where_both_pair_the_right_points() -> None:
    target, normals = bowl(400, 3)
    rotation, translation = small_motion(5)
    moved = transform(target[:, :150], rotation, translation)
    found = rigid_icp(moved, target, normals, steps=15, trim=1.0)
    expected, _, _ = trimesh.registration.icp(
        moved[0].numpy(), target[0].numpy(), max_iterations=200, threshold=1e-12, reflection=False, scale=False
    )
    np.testing.assert_allclose(found[0][0].numpy(), expected[:3, :3], atol=1e-5)
    np.testing.assert_allclose(found[1][0].numpy(), expected[:3, 3], atol=1e-3)


def test_icp_finds_the_least_squares_of_a_noisy_scan_of_a_surface() -> None:
    """The oracle minimises the distances to the surface's formula by a general solver."""
    source, directions = bowl(300, 3)
    noise = torch.randn(1, 300, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = transform(source + 2.0 * noise * directions, *small_motion(5))
    target, normals = bowl(20000, 4)

    def place(motion: np.ndarray) -> np.ndarray:
        return moved[0].numpy() @ Rotation.from_rotvec(motion[:3]).as_matrix().T + motion[3:]

    def distances(motion: np.ndarray) -> np.ndarray:
        heights, normal = surface(*torch.from_numpy(place(motion)[:, :2]).T)
        return (place(motion)[:, 2] - heights.numpy()) * normal[:, 2].numpy()

    ours = transform(moved, *rigid_icp(moved, target, normals, steps=12, trim=1.0))[0].numpy()
    expected = place(least_squares(distances, np.zeros(6)).x)
    assert np.linalg.norm(expected - source[0].numpy(), axis=1).mean() > 0.3
    assert np.linalg.norm(ours - expected, axis=1).max() < 0.1


def test_icp_leaves_out_what_has_no_counterpart() -> None:
    """A fifth of the points is a lump that the target lacks."""
    source, normals = bowl(300, 6)
    rotation, translation = small_motion(7)
    target = transform(source, rotation, translation)
    spoiled = source.clone()
    spoiled[:, :50] += torch.tensor([0.0, 0.0, 40.0])
    turned = normals @ rotation.transpose(1, 2)
    trimmed = rigid_icp(spoiled, target, turned, steps=15, trim=0.8)
    whole = rigid_icp(spoiled, target, turned, steps=15, trim=1.0)
    torch.testing.assert_close(trimmed[0], rotation, atol=1e-6, rtol=0)
    assert (whole[1] - translation).norm() > 1.0


def test_icp_treats_faces_of_a_batch_by_themselves_and_passes_no_gradient() -> None:
    source, normals = bowl(200, 8)
    motions = [small_motion(9), small_motion(10)]
    targets = torch.cat([transform(source, *motion) for motion in motions])
    turned = torch.cat([normals @ motion[0].transpose(1, 2) for motion in motions])
    both = rigid_icp(source.expand(2, -1, -1).clone().requires_grad_(), targets, turned)
    for row in range(2):
        alone = rigid_icp(source, targets[row : row + 1], turned[row : row + 1])
        torch.testing.assert_close(both[0][row], alone[0][0])
        torch.testing.assert_close(both[1][row], alone[1][0])
    assert not both[0].requires_grad


def test_icp_on_a_plane_does_not_slide() -> None:
    points = torch.cat([100 * torch.rand(1, 50, 2, dtype=torch.float64), torch.zeros(1, 50, 1).double()], 2)
    normals = torch.tensor([0.0, 0.0, 1.0]).double().expand(1, 50, 3)
    rotation, translation, _ = rigid_icp(points + torch.tensor([0.0, 0.0, 2.0]), points, normals)
    torch.testing.assert_close(translation, torch.tensor([[0.0, 0.0, -2.0]]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(rotation[0], torch.eye(3).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("trim", [0.0, 1.2])
def test_icp_refuses_a_share_that_is_none(trim: float) -> None:
    points, normals = bowl(10, 11)
    with pytest.raises(ValueError, match="trim is"):
        rigid_icp(points, points, normals, trim=trim)
