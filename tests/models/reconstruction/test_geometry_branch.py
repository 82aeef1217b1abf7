from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch import Tensor

from models.face.camera import (
    CAMERA_DISTANCE_MM,
    angles_from_rotation,
    crop_camera,
    project,
    rotation_from_angles,
    to_camera_space,
)
from models.face.morphable import MorphableModel
from models.face.sampling import sample_expressions
from models.losses.coefficients import geometry_embedding
from models.reconstruction.geometry_branch import (
    CONFIDENCE_SIGMA,
    UNIT_FOCAL,
    GeometryBranch,
    LandmarkNoise,
    SimulatedFaces,
    confidence_of,
    place,
    pose_residual,
    simulate_faces,
    with_depth,
)
from models.types import MIRRORED_LANDMARKS

SIZE_PX = 64


def noise_of(sigma: float, *, bias: float = 0.0, shrinkage: float = 0.0) -> LandmarkNoise:
    return LandmarkNoise.build(
        covariance=torch.stack([torch.eye(136), 4 * torch.eye(136)]),
        bias=torch.full((2, 136), bias),
        response=-shrinkage * torch.eye(136).expand(2, -1, -1),
        sigma=torch.full((2, 68), sigma),
        large=torch.tensor([False, True]),
    )


def faces_of(face: MorphableModel, count: int, noise: LandmarkNoise, *, seed: int = 0) -> SimulatedFaces:
    return simulate_faces(
        face,
        count,
        expressions=sample_expressions(face.expression_names, 500, seed=0),
        noise=noise,
        size_px=SIZE_PX,
        crop_scale=1.4,
        max_yaw_deg=60.0,
        generator=torch.Generator().manual_seed(seed),
    )


def branch_of(face: MorphableModel, *, refinements: int = 1) -> GeometryBranch:
    torch.manual_seed(0)
    return GeometryBranch(face, width=48, blocks=1, refinements=refinements)


def test_confidence_is_one_half_at_the_agreed_error() -> None:
    sigma = torch.tensor([0.0, CONFIDENCE_SIGMA, 3 * CONFIDENCE_SIGMA])
    assert confidence_of(sigma).tolist() == pytest.approx([1.0, 0.5, 0.1])


def test_positions_by_hand() -> None:
    found = place(torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]]))
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0.0, CAMERA_DISTANCE_MM]))
    torch.testing.assert_close(found[1], torch.tensor([50.0, -100.0, CAMERA_DISTANCE_MM * 1.105171]))


def test_misses_are_the_gradients_of_the_reprojection_error(face: MorphableModel) -> None:
    branch = branch_of(face).double()
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(3, *shape, generator=generator, dtype=torch.float64)

    identity, expression = draw(4), draw(3, scale=0.3)
    pose = torch.cat([draw(3, scale=0.2), draw(3, scale=0.3)], 1)
    landmarks, confidence = draw(68, 2, scale=0.4), draw(68).sigmoid()
    found = branch._misses(torch.cat([identity, expression, pose], 1), landmarks, confidence)

    # The same energy written down plainly, with handles on everything that the branch is told the slope of.
    identity.requires_grad_()
    expression.requires_grad_()
    points_shift = torch.zeros(3, 68, 3, dtype=torch.float64, requires_grad=True)
    turn = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    points = face.landmarks(
        face.mean.double()
        + torch.einsum("bi,ivc->bvc", identity, face.identity_basis.double())
        + torch.einsum("be,evc->bvc", expression, face.expression_basis.double())
    )
    points = points + points_shift - face.mean[face.landmark_vertices].double().mean(0)
    generators = torch.linalg.cross(
        turn[:, None].expand(3, 3, 3), torch.eye(3, dtype=torch.float64).expand(3, 3, 3), dim=2
    ).transpose(1, 2)
    rotation = torch.linalg.matrix_exp(generators) @ axis_angle_to_rotation_matrix(pose[:, :3])
    half_turn = torch.tensor([1.0, -1.0, -1.0]).double()
    seen = points @ rotation.transpose(1, 2) * half_turn + place(pose[:, 3:])[:, None] + shift[:, None]
    miss = landmarks - UNIT_FOCAL * seen[..., :2] / seen[..., 2:]
    energy = 0.5 * (confidence * miss.square().sum(2)).sum()
    energy.backward()

    unit = (CAMERA_DISTANCE_MM / UNIT_FOCAL) ** 2
    sizes = [204, 68, 4, 3, 3, 3, 13, 9]
    by_point, weight, by_identity, by_expression, by_turn, by_shift, state, matrix = found.split(sizes, 1)

    def downhill(value: Tensor) -> Tensor:
        assert value.grad is not None
        return -value.grad * unit

    torch.testing.assert_close(by_point, downhill(points_shift).flatten(1) / 3)
    torch.testing.assert_close(by_identity, downhill(identity) / 100)
    torch.testing.assert_close(by_expression, downhill(expression) / 100)
    torch.testing.assert_close(by_turn, downhill(turn) / 68 / 30)
    torch.testing.assert_close(by_shift, downhill(shift) / 68)
    torch.testing.assert_close(weight, confidence)
    torch.testing.assert_close(state, torch.cat([identity, expression, pose], 1))
    torch.testing.assert_close(matrix, axis_angle_to_rotation_matrix(pose[:, :3]).flatten(1))


def test_the_truth_misses_nothing(face: MorphableModel) -> None:
    branch = branch_of(face)
    identity, position = torch.tensor([[1.0, -1.0, 0.5, 0.2]]), torch.tensor([[0.2, -0.1, 0.3]])
    rotation = torch.tensor([[0.1, 0.4, -0.2]])
    middle = face.mean[face.landmark_vertices].mean(0)
    points = face.landmarks(face.vertices(identity)) - middle
    seen = to_camera_space(points, rotation=rotation, translation=place(position))
    state = torch.cat([identity, torch.zeros(1, 3), rotation, position], 1)
    found = branch._misses(state, UNIT_FOCAL * seen[..., :2] / seen[..., 2:], torch.ones(1, 68))
    assert found[:, :204].abs().max() < 1e-3
    assert found[:, 272:285].abs().max() < 1e-3


def test_every_refinement_leaves_a_state(face: MorphableModel) -> None:
    features, states = branch_of(face, refinements=3)(torch.randn(5, 68, 2), torch.ones(5, 68))
    assert features.shape == (5, 48)
    assert states.shape == (4, 5, 4 + 3 + 6)
    # Corrections start small, so that the guess is trained first.
    assert (states[-1] - states[0]).abs().max() < 0.3


def test_the_branch_computes_in_32_bits_under_autocast(face: MorphableModel) -> None:
    branch = branch_of(face)
    landmarks, confidence = torch.randn(2, 68, 2), torch.ones(2, 68)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, states = branch(landmarks, confidence)
    assert features.dtype == states.dtype == torch.float32
    assert torch.equal(states, branch(landmarks, confidence)[1])


PLAIN = {
    "covariance": torch.eye(136).expand(2, -1, -1),
    "bias": torch.zeros(2, 136),
    "response": torch.zeros(2, 136, 136),
    "sigma": torch.full((2, 68), 0.01),
    "large": torch.tensor([False, True]),
}


def test_expected_errors_of_one_group_only_are_refused() -> None:
    with pytest.raises(ValueError, match=r"noise\.npz: no expected errors for small or for large poses"):
        LandmarkNoise.build(**{**PLAIN, "large": torch.tensor([True, True])})


def test_a_covariance_that_is_none_is_refused() -> None:
    covariance = torch.eye(136).expand(2, -1, -1).clone()
    covariance[1, 5, 5] = -1.0
    with pytest.raises(ValueError, match=r"noise\.npz: the covariance is not positive definite"):
        LandmarkNoise.build(**{**PLAIN, "covariance": covariance})


def test_the_factor_restores_the_covariance() -> None:
    root = torch.randn(2, 136, 150, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = (root @ root.transpose(1, 2) / 150).float()
    noise = LandmarkNoise.build(**{**PLAIN, "covariance": covariance})
    torch.testing.assert_close(noise.factor @ noise.factor.transpose(1, 2), covariance, atol=1e-5, rtol=1e-4)


def box_sides(points: Tensor) -> Tensor:
    return (points.amax(1) - points.amin(1)).amax(1)


def test_simulated_errors_have_the_given_size_in_both_yaw_ranges(face: MorphableModel) -> None:
    faces = faces_of(face, 3000, noise_of(0.01, bias=0.003))
    error = (faces.landmarks - faces.truth) / box_sides(faces.truth)[:, None, None]
    yaw = angles_from_rotation(faces.rotation)[:, 0]
    large = yaw.abs() > torch.pi / 6
    # Faces turned to the right err in mirror image.
    error[..., 0] *= torch.where(yaw < 0.0, -1.0, 1.0)[:, None]
    assert 0.1 < large.float().mean() < 0.4
    # The strength of a face is log-normal with σ = 0.25: its mean square is exp(2 · 0.25²).
    spread = (1.1331) ** 0.5
    for chosen, sigma in ((~large, 0.01), (large, 0.02)):
        assert error[chosen].mean().item() == pytest.approx(0.003, abs=5e-4)
        assert (error[chosen] - 0.003).square().mean().sqrt().item() == pytest.approx(sigma * spread, rel=0.05)


def test_simulated_faces_are_drawn_to_the_mean(face: MorphableModel) -> None:
    plain, drawn_in = (faces_of(face, 300, noise_of(1e-7, shrinkage=share)) for share in (0.0, 0.5))
    moved = (drawn_in.landmarks - drawn_in.truth) / box_sides(drawn_in.truth)[:, None, None]
    assert (plain.landmarks - plain.truth).abs().max() < 1e-3
    assert moved.square().mean().sqrt() > 0.002
    # The common motions are left alone: the middle of the face stays.
    torch.testing.assert_close(moved.mean(1), torch.zeros(300, 2), atol=1e-4, rtol=0)


def test_faces_turned_to_the_right_err_in_mirror_image(face: MorphableModel) -> None:
    ramp = torch.linspace(-0.05, 0.05, 68)
    noise = noise_of(1e-7)
    noise = replace(noise, bias=torch.stack([ramp, 0.5 * ramp], 1).flatten().expand(2, -1))
    faces = faces_of(face, 200, noise)
    moved = (faces.landmarks - faces.truth) / box_sides(faces.truth)[:, None, None]
    right = angles_from_rotation(faces.rotation)[:, 0] < 0.0
    assert 50 < right.sum() < 150
    expected = torch.stack([ramp, 0.5 * ramp], 1)
    torch.testing.assert_close(moved[~right], expected.expand(int((~right).sum()), -1, -1), atol=1e-4, rtol=0)
    mirrored = expected[list(MIRRORED_LANDMARKS)] * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(moved[right], mirrored.expand(int(right.sum()), -1, -1), atol=1e-4, rtol=0)


def test_a_small_change_of_pose_leaves_no_residual(face: MorphableModel) -> None:
    camera = crop_camera(3, 100)
    points = (face.landmark_mean - face.landmark_mean.mean(0)).expand(3, -1, -1)
    rotation = torch.tensor([[0.0, 0.3, 0.0], [0.1, -0.8, 0.05], [0.0, 0.0, 0.0]])
    translation = torch.tensor([0.0, 0.0, 20_000.0]).expand(3, 3)
    # From far away, as perspective is of second order.
    camera = replace(camera, focal_px=20.0 * camera.focal_px)
    reference = with_depth(to_camera_space(points, rotation=rotation, translation=translation), camera)
    turned = to_camera_space(points, rotation=rotation + 0.002, translation=translation * 1.01 + 3.0)
    moved = project(turned, camera)
    assert (moved - reference[..., :2]).abs().max() > 0.2
    torch.testing.assert_close(pose_residual(moved, reference), torch.zeros(3, 68, 2), atol=3e-3, rtol=0)
    # A wider face is not another pose.
    wider = reference[..., :2] * torch.tensor([1.1, 1.0])
    assert pose_residual(wider, reference).abs().max() > 1.0


def test_confidence_tells_the_error_of_a_face(face: MorphableModel) -> None:
    faces = faces_of(face, 2000, noise_of(0.01))
    sigma = CONFIDENCE_SIGMA * (1 / faces.confidence - 1).sqrt()
    error = ((faces.landmarks - faces.truth) / box_sides(faces.truth)[:, None, None]).square().mean((1, 2)).sqrt()
    small = angles_from_rotation(faces.rotation)[:, 0].abs() <= torch.pi / 6
    error, sigma = error[small], sigma[small]
    ratio = error / sigma.square().mean(1).sqrt()
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.corrcoef(torch.stack([error, sigma.mean(1)]))[0, 1] > 0.9


def test_crops_are_made_around_the_noisy_points(face: MorphableModel) -> None:
    faces = faces_of(face, 200, noise_of(0.02))
    low, high = faces.landmarks.amin(1), faces.landmarks.amax(1)
    torch.testing.assert_close((low + high) / 2, torch.full((200, 2), SIZE_PX / 2), atol=1e-3, rtol=0)
    torch.testing.assert_close((high - low).amax(1), torch.full((200,), SIZE_PX / 1.4), atol=1e-3, rtol=0)


def test_without_noise_the_landmarks_are_those_of_the_face(face: MorphableModel) -> None:
    faces = faces_of(face, 20, noise_of(1e-7))
    torch.testing.assert_close(faces.landmarks, faces.truth, atol=1e-3, rtol=0)
    # Some pose explains them: a rigid fit of the true shape reprojects to a fraction of a pixel.
    from models.reconstruction.fit import fit_pose

    points = face.landmarks(face.vertices(faces.identity, faces.expression))
    camera = crop_camera(20, SIZE_PX)
    rotation, translation = fit_pose(points, faces.landmarks, confidence=torch.ones(20, 68), camera=camera)
    pixels = project(to_camera_space(points, rotation=rotation, translation=translation), camera)
    assert (pixels - faces.landmarks).norm(dim=2).mean() < 0.5


def test_the_same_seed_simulates_the_same_faces(face: MorphableModel) -> None:
    first, again, other = (faces_of(face, 4, noise_of(0.01), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.landmarks, again.landmarks)
    assert not torch.equal(first.landmarks, other.landmarks)


def test_a_short_training_reads_shape_from_landmarks(face: MorphableModel) -> None:
    branch, noise = branch_of(face, refinements=1), noise_of(0.002)
    embedding = geometry_embedding(face.identity_basis, face.mean)
    optimizer = torch.optim.Adam(branch.parameters(), lr=3e-3)
    held_out = faces_of(face, 500, noise, seed=10_000)

    def loss(faces: SimulatedFaces) -> Tensor:
        _, states = branch((faces.landmarks - SIZE_PX / 2) / (SIZE_PX / 2), faces.confidence)
        shape = ((states[..., :4] - faces.identity) @ embedding).square().sum(2).mean()
        return shape + 20.0 * (states[..., 7:10] - faces.rotation).square().sum(2).mean()

    def shape_error() -> float:
        with torch.no_grad():
            _, states = branch((held_out.landmarks - SIZE_PX / 2) / (SIZE_PX / 2), held_out.confidence)
        return float(((states[-1][:, :4] - held_out.identity) @ embedding).norm(dim=1).mean())

    mean_face = float((held_out.identity @ embedding).norm(dim=1).mean())
    for step in range(60):
        optimizer.zero_grad()
        loss(faces_of(face, 96, noise, seed=step)).backward()
        optimizer.step()
    assert shape_error() < 0.8 * mean_face


def test_yaw_of_a_simulated_face_moves_its_nose(face: MorphableModel) -> None:
    # Guards the sign between simulation and camera: a turned face shows its points shifted the same way.
    rotation = rotation_from_angles(torch.tensor([0.5]), torch.zeros(1), torch.zeros(1))
    points = face.landmarks(face.mean[None])
    seen = to_camera_space(points, rotation=rotation, translation=torch.tensor([[0.0, 0.0, 1000.0]]))
    nose = points[0, :, 2].argmax()
    assert seen[0, nose, 0] > points[0, nose, 0]


def test_photos_of_a_person_share_identity_and_part_of_the_noise(face: MorphableModel) -> None:
    def simulate(shared: float) -> SimulatedFaces:
        return simulate_faces(
            face,
            600,
            expressions=torch.zeros(1, 3),
            noise=noise_of(0.01),
            size_px=SIZE_PX,
            crop_scale=1.4,
            max_yaw_deg=25.0,
            generator=torch.Generator().manual_seed(0),
            photos_per_person=2,
            shared_noise=shared,
        )

    for shared in (0.0, 0.5):
        faces = simulate(shared)
        assert (faces.identity[::2] == faces.identity[1::2]).all()
        assert (faces.identity[::2].diff(dim=0).abs().sum(1) > 0).all()
        assert (faces.rotation[::2] != faces.rotation[1::2]).any()
        errors = (faces.landmarks - faces.truth).flatten(1)
        # A face that looks the other way errs in mirror image. Sizes of errors differ by a quarter from photo to photo.
        yaw = angles_from_rotation(faces.rotation)[:, 0]
        same = (yaw[::2] < 0.0) == (yaw[1::2] < 0.0)
        alike = (errors[::2] * errors[1::2])[same].mean() / errors.square().mean()
        assert alike == pytest.approx(shared * math.exp(-(0.25**2)), abs=0.06)
