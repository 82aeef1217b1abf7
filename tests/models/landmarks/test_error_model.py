"""Error model of a detector."""

from __future__ import annotations

import numpy as np
import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.procedural import procedural_face
from models.landmarks.error_model import (
    DetectorErrors,
    independent_errors,
    individual_deviation,
    measure_errors,
)
from models.landmarks.framing import FLIP_PERMUTATION


def simulate(count: int, *, sigma: float, bias: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    # The whole face moves together, and every point by itself.
    return bias + sigma * (random.normal(size=(count, 1, 2)) + random.normal(size=(count, 68, 2))) / np.sqrt(2)


def measure(errors: np.ndarray, sigma: float | np.ndarray, yaw_deg: np.ndarray) -> DetectorErrors:
    expected = np.broadcast_to(sigma, (len(errors), 68)).copy()
    return measure_errors(
        errors, expected, yaw_deg, deviation=np.zeros_like(errors), large_pose_deg=30.0, default_sigma=0.02
    )


def test_finds_variance_and_correlation() -> None:
    found = measure(simulate(800, sigma=0.02, bias=0.0), 0.01, np.zeros(800))
    deviation = np.sqrt(np.diagonal(found.covariance[0]))
    # The errors are twice as large as the detector expected.
    np.testing.assert_allclose(deviation, 2.0, rtol=0.12)
    correlation = found.covariance[0, 0, 2] / (deviation[0] * deviation[2])
    assert 0.35 < correlation < 0.6
    assert found.count == (800, 0)


def test_expected_errors_explain_mixed_faces() -> None:
    # Half of the faces are four times harder, and the detector says so.
    sigma = np.where(np.arange(800) % 2, 0.04, 0.01)[:, None]
    errors = sigma[:, :, None] * np.random.default_rng(3).normal(size=(800, 68, 2))
    found = measure(errors, sigma, np.zeros(800))
    np.testing.assert_allclose(np.sqrt(np.diagonal(found.covariance[0])), 1.0, rtol=0.12)
    assert set(np.unique(found.sigma)) == {0.01, 0.04}


def test_few_faces_shrink_chance_correlations() -> None:
    random = np.random.default_rng(0)
    found = measure(0.02 * random.normal(size=(12, 68, 2)), 0.02, np.zeros(12))
    deviation = np.sqrt(np.diagonal(found.covariance[0]))
    correlation = found.covariance[0] / np.outer(deviation, deviation)
    assert np.abs(correlation[~np.eye(136, dtype=bool)]).max() < 0.2
    assert np.linalg.eigvalsh(found.covariance[0]).min() > 0


def test_groups_by_pose_and_mirrors() -> None:
    errors = np.concatenate([simulate(400, sigma=0.01, bias=0.0), simulate(400, sigma=0.03, bias=0.01, seed=1)])
    found = measure(errors, 0.01, np.repeat([5.0, -60.0], 400))
    assert np.sqrt(np.trace(found.covariance[1])) > 2 * np.sqrt(np.trace(found.covariance[0]))
    bias = found.bias[1].reshape(68, 2)
    # Mirrored errors count as well: no sideways bias but an antisymmetric one is left.
    np.testing.assert_allclose(bias[:, 0], -bias[FLIP_PERMUTATION, 0], atol=1e-12)
    np.testing.assert_allclose(bias[:, 1], 0.01, atol=0.006)
    assert found.large.sum() == (~found.large).sum() == 800


def test_a_group_without_faces_borrows_from_the_other() -> None:
    found = measure(simulate(50, sigma=0.01, bias=0.0), 0.01, np.zeros(50))
    np.testing.assert_array_equal(found.covariance[0], found.covariance[1])
    assert found.large.any()


def test_without_faces_the_default_stands() -> None:
    found = measure(np.zeros((0, 68, 2)), 0.01, np.zeros(0))
    np.testing.assert_array_equal(found.covariance, independent_errors(0.02).covariance)
    np.testing.assert_allclose(found.covariance[0], np.eye(136))
    np.testing.assert_allclose(found.sigma, 0.02)


def test_finds_how_far_faces_are_drawn_to_the_mean() -> None:
    random = np.random.default_rng(5)
    deviation = 0.02 * random.normal(size=(1500, 68, 2))
    share = np.where(np.arange(68) < 17, 0.6, 0.2)[:, None]
    errors = -share * deviation + 0.01 * random.normal(size=(1500, 68, 2))
    found = measure_errors(
        errors, np.full((1500, 68), 0.01), np.zeros(1500), deviation=deviation, large_pose_deg=30.0, default_sigma=0.02
    )
    np.testing.assert_allclose(found.shrinkage[0], share[:, 0], atol=0.06)
    # What is left is the noise alone.
    np.testing.assert_allclose(np.sqrt(np.diagonal(found.covariance[0])), 1.0, rtol=0.15)


def test_the_mean_face_has_nothing_individual_in_any_pose() -> None:
    face = procedural_face()
    points = face.mean[face.landmark_vertices].numpy()
    model = torch.from_numpy(points).expand(3, -1, -1)
    angle = torch.tensor([-0.6, 0.0, 0.6])
    rotation = rotation_from_angles(angle, 0.3 * angle, 0.2 * angle)
    seen = to_camera_space(model, rotation=rotation, translation=torch.tensor([[0.0, 0.0, 1000.0]]).expand(3, 3))
    landmarks = project(seen, crop_camera(3, 200)).numpy()
    # The crop's camera stands nearer than the photo's, so some perspective is left, a hundredth of the face at most.
    assert np.abs(individual_deviation(landmarks, points)).max() < 0.01 * np.ptp(landmarks)
    landmarks[:, 30] += 8.0
    assert np.linalg.norm(individual_deviation(landmarks, points)[:, 30], axis=1).min() > 8.0
