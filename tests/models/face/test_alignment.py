from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from models.face.alignment import rigid_alignment, transform

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
