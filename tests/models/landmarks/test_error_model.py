"""Error model of a detector."""

from __future__ import annotations

import numpy as np
import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.procedural import procedural_face
from models.landmarks.error_model import (
    DetectorErrors,
    FoundFaces,
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
    faces = FoundFaces(errors, np.zeros_like(errors), expected, yaw_deg)
    return measure_errors(faces, large_pose_deg=30.0, default_sigma=0.02)


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


def test_groups_by_pose() -> None:
    errors = np.concatenate([simulate(400, sigma=0.01, bias=0.0), simulate(400, sigma=0.03, bias=0.01, seed=1)])
    found = measure(errors, 0.01, np.repeat([5.0, 60.0], 400))
    assert np.sqrt(np.trace(found.covariance[1])) > 2 * np.sqrt(np.trace(found.covariance[0]))
    np.testing.assert_allclose(found.bias[1], 0.01, atol=0.006)
    assert found.count == (400, 400)
    # Small poses count mirrored, too.
    assert (~found.large).sum() == 800
    assert found.large.sum() == 400


def test_small_poses_err_alike_in_the_mirror() -> None:
    found = measure(simulate(400, sigma=0.01, bias=0.01), 0.01, np.linspace(-20, 20, 400))
    bias = found.bias[0].reshape(68, 2)
    np.testing.assert_allclose(bias[:, 0], -bias[FLIP_PERMUTATION, 0], atol=1e-12)


def test_faces_turned_to_the_right_count_in_mirror_image() -> None:
    random = np.random.default_rng(2)
    turned_left = 0.01 * random.normal(size=(600, 68, 2)) + np.linspace(0.0, 0.05, 68)[:, None]
    sigma = np.tile(np.linspace(0.01, 0.02, 68), (600, 1))
    right = np.arange(600) % 2 == 1
    errors, expected = turned_left.copy(), sigma.copy()
    errors[right] = turned_left[right][:, FLIP_PERMUTATION] * [-1.0, 1.0]
    expected[right] = sigma[right][:, FLIP_PERMUTATION]
    plain = measure(turned_left, sigma, np.full(600, 50.0))
    found = measure(errors, expected, np.where(right, -50.0, 50.0))
    np.testing.assert_allclose(found.bias[1], plain.bias[1])
    np.testing.assert_allclose(found.covariance[1], plain.covariance[1])
    np.testing.assert_allclose(found.sigma, plain.sigma)


def test_a_group_without_faces_borrows_from_the_other() -> None:
    found = measure(simulate(50, sigma=0.01, bias=0.0), 0.01, np.zeros(50))
    np.testing.assert_array_equal(found.covariance[0], found.covariance[1])
    assert found.large.any()


def test_without_faces_the_default_stands() -> None:
    found = measure(np.zeros((0, 68, 2)), 0.01, np.zeros(0))
    np.testing.assert_array_equal(found.covariance, independent_errors(0.02).covariance)
    np.testing.assert_allclose(found.covariance[0], np.eye(136))
    np.testing.assert_allclose(found.sigma, 0.02)


def drawn_in(count: int, *, seed: int, noise: float) -> FoundFaces:
    """Faces with five motions: the first is found, the last are lost; the third makes points err elsewhere."""
    random = np.random.default_rng(seed)
    motions = np.linalg.qr(np.random.default_rng(99).normal(size=(136, 136)))[0][:5]
    strength = random.normal(size=(count, 5)) * [0.3, 0.2, 0.2, 0.1, 0.1]
    lost = np.array([0.0, 0.4, 0.0, 0.8, 0.8])
    errors = -(strength * lost) @ motions + 0.5 * strength[:, 2:3] * motions[1]
    errors = errors + noise * random.normal(size=errors.shape)
    deviation = (strength @ motions).reshape(-1, 68, 2)
    return FoundFaces(errors.reshape(-1, 68, 2), deviation, np.full((count, 68), noise), np.full(count, 45.0))


def test_finds_what_the_detector_does_to_a_face() -> None:
    faces = drawn_in(900, seed=1, noise=0.002)
    found = measure_errors(faces, large_pose_deg=30.0, default_sigma=0.02)
    motions = np.linalg.qr(np.random.default_rng(99).normal(size=(136, 136)))[0][:5]
    response = motions @ found.response[1] @ motions.T
    expected = np.diag([0.0, -0.4, 0.0, -0.8, -0.8])
    expected[1, 2] = 0.5
    np.testing.assert_allclose(response, expected, atol=0.05)
    # What is left is the noise alone.
    np.testing.assert_allclose(np.sqrt(np.diagonal(found.covariance[1])), 1.0, rtol=0.15)


def test_familiar_faces_tell_the_response_but_not_the_noise() -> None:
    few, many = drawn_in(12, seed=1, noise=0.004), drawn_in(1500, seed=2, noise=0.001)
    alone, helped = (
        measure_errors(few, seen_in_training=others, large_pose_deg=30.0, default_sigma=0.02) for others in (None, many)
    )
    fresh = drawn_in(500, seed=3, noise=0.0)
    truth, deviation = fresh.errors.reshape(500, -1), fresh.deviation.reshape(500, -1)
    missed = [np.square(truth - deviation @ found.response[1].T).mean() for found in (alone, helped)]
    assert missed[1] < 0.1 * missed[0]
    # Four times the noise of the familiar ones, in units of what was expected: one.
    np.testing.assert_allclose(np.sqrt(np.diagonal(helped.covariance[1])).mean(), 1.0, atol=0.15)


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
