from __future__ import annotations

import itertools
import math

import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch import Tensor

from models.face.camera import crop_camera, project, rotation_distance, rotation_from_angles, to_camera_space
from models.face.morphable import MorphableModel
from models.reconstruction.fit import ACTIVATION_SIGMA, FaceState, FittedFaces, LandmarkProblem, fit_face, fit_pose
from models.types import Camera

ANGLES = torch.deg2rad(torch.tensor(list(itertools.product([-90.0, -60, -20, 0, 45, 90], [-30.0, 10], [-40.0, 15])))).T


def posed(face: MorphableModel, angles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Camera]:
    """Points, exact landmarks, rotation, translation and camera of one face in several poses."""
    count = angles.shape[1]
    rotation = rotation_from_angles(*angles)
    offsets = 30 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    translation = torch.tensor([0.0, 0.0, 950.0]) + offsets
    points = face.landmarks(face.mean.expand(count, -1, -1))
    camera = crop_camera(count, 112)
    return (
        points,
        project(to_camera_space(points, rotation=rotation, translation=translation), camera),
        rotation,
        translation,
        camera,
    )


def test_poses_up_to_profile_are_recovered(face: MorphableModel) -> None:
    points, landmarks, rotation, translation, camera = posed(face, ANGLES)
    found = fit_pose(points, landmarks, confidence=torch.ones(len(points), 68), camera=camera)
    assert rotation_distance(found[0], rotation).rad2deg().max() < 0.1
    torch.testing.assert_close(found[1], translation, atol=0.5, rtol=0)


def test_another_camera_is_respected(face: MorphableModel) -> None:
    points, _, rotation, translation, _ = posed(face, ANGLES)
    count = len(points)
    camera = Camera(torch.full((count,), 300.0), torch.tensor([[200.0, 90.0]]).expand(count, 2), (240, 320))
    near = translation - torch.tensor([0.0, 0.0, 400.0])
    landmarks = project(to_camera_space(points, rotation=rotation, translation=near), camera)
    found = fit_pose(points, landmarks, confidence=torch.ones(count, 68), camera=camera)
    assert rotation_distance(found[0], rotation).rad2deg().max() < 0.1
    torch.testing.assert_close(found[1], near, atol=0.5, rtol=0)


def test_points_without_confidence_do_not_count(face: MorphableModel) -> None:
    points, landmarks, rotation, _, camera = posed(face, ANGLES)
    confidence = torch.ones(len(points), 68)
    confidence[:, ::3] = 0.0
    landmarks = landmarks + 60 * (1 - confidence)[..., None]
    found, _ = fit_pose(points, landmarks, confidence=confidence, camera=camera)
    assert rotation_distance(found, rotation).rad2deg().max() < 0.1


@pytest.mark.parametrize("confident", [0, 1, 2])
def test_a_face_without_confident_points_does_not_spoil_the_batch(face: MorphableModel, confident: int) -> None:
    points, landmarks, rotation, _, camera = posed(face, ANGLES)
    confidence = torch.ones(len(points), 68)
    confidence[3, confident:] = 0.0
    found, translation = fit_pose(points, landmarks, confidence=confidence, camera=camera)
    others = torch.arange(len(points)) != 3
    assert rotation_distance(found, rotation)[others].rad2deg().max() < 0.1
    assert found.isfinite().all()
    assert translation.isfinite().all()


def test_the_fit_is_a_minimum(face: MorphableModel) -> None:
    points, landmarks, _, _, camera = posed(face, ANGLES)
    generator = torch.Generator().manual_seed(1)
    noisy = (landmarks + torch.randn(landmarks.shape, generator=generator)).double()
    points = points.double()
    camera = Camera(camera.focal_px.double(), camera.principal_px.double(), camera.size)
    confidence = torch.rand(len(points), 68, generator=generator, dtype=torch.float64)
    found = fit_pose(points, noisy, confidence=confidence, camera=camera)
    rotation, translation = (value.clone().requires_grad_() for value in found)
    pixels = project(to_camera_space(points, rotation=rotation, translation=translation), camera)
    energy = (confidence * (pixels - noisy).square().sum(2)).sum(1)
    energy.sum().backward()
    assert rotation.grad is not None
    assert translation.grad is not None
    # Against the slope of a start that is one degree or one millimetre off, which is in the thousands.
    assert rotation.grad.abs().max() < 1.0
    assert translation.grad.abs().max() < 0.1


@pytest.mark.parametrize("noise_px", [0.5])
def test_noise_turns_the_face_little(face: MorphableModel, noise_px: float) -> None:
    points, landmarks, rotation, _, camera = posed(face, ANGLES)
    noise = noise_px * torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(2))
    found, _ = fit_pose(points, landmarks + noise, confidence=torch.ones(len(points), 68), camera=camera)
    assert rotation_distance(found, rotation).max() < math.radians(3.0)


def simulated(
    face: MorphableModel,
    count: int,
    *,
    noise_px: float,
    double: bool = False,
    activation: tuple[float, float] = (0.0, 1.0),
) -> tuple[Tensor, ...]:
    """Identity, expression, rotation and noisy landmarks of random faces, as seen by the camera of a crop."""
    generator = torch.Generator().manual_seed(3)
    identity = torch.randn(count, face.identity_size, generator=generator)
    expression = torch.rand(count, face.expression_size, generator=generator)
    expression = activation[0] + (activation[1] - activation[0]) * expression
    angles = (torch.rand(3, count, generator=generator) - 0.5) * torch.tensor([[2.0], [0.6], [0.6]])
    rotation = rotation_from_angles(*angles)
    seen = to_camera_space(
        face.landmark_points(identity, expression),
        rotation=rotation,
        translation=torch.tensor([0.0, 0.0, 1000.0]).expand(count, 3),
    )
    landmarks = project(seen, crop_camera(count, 224))
    landmarks = landmarks + noise_px * torch.randn(landmarks.shape, generator=generator)
    return identity, expression, rotation, landmarks.double() if double else landmarks


def double_camera(count: int) -> Camera:
    camera = crop_camera(count, 224)
    return Camera(camera.focal_px.double(), camera.principal_px.double(), camera.size)


def energy_slopes(
    face: MorphableModel, fitted: FittedFaces, landmarks: Tensor, confidence: Tensor, *, sigma_px: float
) -> dict[str, Tensor]:
    """Derivatives of the energy, as its docstring words it, by autograd; the turn is one after the rotation."""
    values = {
        "identity": fitted.identity,
        "expression": fitted.expression,
        "turn": torch.zeros_like(fitted.rotation),
        "translation": fitted.translation,
    }
    values = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    shape = torch.einsum("bi,ilc->blc", values["identity"], face.landmark_identity_basis.double())
    shape = shape + torch.einsum("be,elc->blc", values["expression"], face.landmark_expression_basis.double())
    points = face.landmark_mean.double() + shape
    matrix = axis_angle_to_rotation_matrix(values["turn"]) @ axis_angle_to_rotation_matrix(fitted.rotation)
    seen = points @ matrix.transpose(1, 2) * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    pixels = project(seen + values["translation"][:, None], double_camera(len(points)))
    energy = (confidence * (pixels - landmarks).square().sum(2)).sum() / sigma_px**2
    energy = energy + values["identity"].square().sum() + (values["expression"] / ACTIVATION_SIGMA).square().sum()
    energy.backward()
    return {name: value.grad for name, value in values.items() if value.grad is not None}


def test_the_jacobian_is_the_derivative(face: MorphableModel) -> None:
    identity, expression, rotation, landmarks = simulated(face, 3, noise_px=1.0, double=True)
    confidence = torch.rand(3, 68, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fitted = FittedFaces(
        0.5 * identity.double(),
        0.5 * expression.double(),
        1.1 * rotation.double(),
        torch.tensor([[3.0, -2.0, 950.0]], dtype=torch.float64).expand(3, 3),
    )
    slopes = energy_slopes(face, fitted, landmarks, confidence, sigma_px=2.0)
    problem = LandmarkProblem.build(face, landmarks, confidence / 2.0**2, double_camera(3))
    shape = torch.cat([fitted.identity, fitted.expression], 1)
    state = FaceState(shape, axis_angle_to_rotation_matrix(fitted.rotation), fitted.translation)
    residual, jacobian = problem.linearised(state)
    weighted = residual * problem.weights.repeat_interleave(2, 1)
    gradient = (jacobian.transpose(1, 2) @ weighted[..., None])[..., 0]
    gradient[:, : shape.shape[1]] += problem.precision * shape
    expected = torch.cat([slopes[name] for name in ("identity", "expression", "turn", "translation")], 1)
    # The energy counts every square once, without the half of the normal equations.
    torch.testing.assert_close(2.0 * gradient, expected, rtol=1e-5, atol=1e-4)


def test_the_fitted_face_is_the_most_probable_within_bounds(face: MorphableModel) -> None:
    _, _, _, landmarks = simulated(face, 12, noise_px=1.0, double=True, activation=(-1.0, 2.5))
    confidence = torch.rand(12, 68, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    camera = double_camera(12)
    fitted = fit_face(face, landmarks, confidence=confidence, camera=camera, sigma_px=1.0, iterations=40)
    slopes = energy_slopes(face, fitted, landmarks, confidence, sigma_px=1.0)
    for name in ("identity", "turn", "translation"):
        assert slopes[name].abs().max() < 1e-3
    low, high = fitted.expression == 0.0, fitted.expression == 1.0
    assert (slopes["expression"][low] > -1e-3).all()
    assert (slopes["expression"][high] < 1e-3).all()
    assert slopes["expression"][~low & ~high].abs().max() < 1e-3
    assert low.any()
    assert high.any()


def test_a_face_is_closer_than_the_mean_face(face: MorphableModel) -> None:
    identity, expression, rotation, landmarks = simulated(face, 40, noise_px=0.5)
    camera = crop_camera(40, 224)
    fitted = fit_face(face, landmarks, confidence=torch.ones(40, 68), camera=camera, sigma_px=0.5)
    truth = face.vertices(identity, expression)
    error = (face.vertices(fitted.identity, fitted.expression) - truth).norm(dim=2).mean(1)
    of_the_mean = (face.mean - truth).norm(dim=2).mean(1)
    assert error.mean() < 0.4 * of_the_mean.mean()
    assert (error < of_the_mean).float().mean() > 0.9
    assert rotation_distance(fitted.rotation, rotation).rad2deg().mean() < 1.5
    assert fitted.expression.min() >= 0.0
    assert fitted.expression.max() <= 1.0


def test_the_prior_weighs_more_where_points_are_vague(face: MorphableModel) -> None:
    _, _, _, landmarks = simulated(face, 8, noise_px=0.5)
    settings = {"confidence": torch.ones(8, 68), "camera": crop_camera(8, 224)}
    sharp = fit_face(face, landmarks, sigma_px=0.5, **settings)
    vague = fit_face(face, landmarks, sigma_px=20.0, **settings)
    assert vague.identity.norm(dim=1).mean() < 0.7 * sharp.identity.norm(dim=1).mean()


def test_statistical_modes_have_no_bounds(face: MorphableModel) -> None:
    class Renamed(MorphableModel):
        def __init__(self) -> None:
            super().__init__(
                name="renamed",
                licence="",
                expression_names=["mode0", "mode1", "mode2"],
                landmark_vertices=face.landmark_vertices,
                **{
                    name: getattr(face, name)
                    for name in ("mean", "identity_basis", "expression_basis", "albedo_mean", "albedo_basis")
                },
                triangles=face.triangles,
                uv=face.uv,
                parts=face.parts,
            )

    model = Renamed()
    expression = torch.tensor([[-1.0, 1.5, -0.8]])
    turned = rotation_from_angles(torch.tensor([0.2]), torch.zeros(1), torch.zeros(1))
    seen = to_camera_space(
        model.landmark_points(torch.zeros(1, 4), expression),
        rotation=turned,
        translation=torch.tensor([[0.0, 0.0, 1000.0]]),
    )
    landmarks = project(seen, crop_camera(1, 224))
    fitted = fit_face(model, landmarks, confidence=torch.ones(1, 68), camera=crop_camera(1, 224), sigma_px=0.1)
    torch.testing.assert_close(fitted.expression, expression, atol=0.15, rtol=0)


def test_a_face_without_any_information_keeps_the_mean_shape_and_spoils_no_other(face: MorphableModel) -> None:
    _, _, _, landmarks = simulated(face, 3, noise_px=0.5)
    camera = crop_camera(3, 224)
    confidence = torch.ones(3, 68)
    alone = fit_face(face, landmarks, confidence=confidence, camera=camera, sigma_px=1.0)
    confidence[1] = 0.0
    fitted = fit_face(face, landmarks, confidence=confidence, camera=camera, sigma_px=1.0)
    assert fitted.identity[1].abs().max() < 1e-6
    assert fitted.expression[1].abs().max() < 1e-6
    for name in ("identity", "expression", "rotation", "translation"):
        value, expected = getattr(fitted, name), getattr(alone, name)
        assert value.isfinite().all()
        torch.testing.assert_close(value[[0, 2]], expected[[0, 2]], rtol=1e-3, atol=1e-2)


def test_points_that_coincide_give_finite_faces(face: MorphableModel) -> None:
    landmarks = torch.full((2, 68, 2), 60.0)
    fitted = fit_face(face, landmarks, confidence=torch.ones(2, 68), camera=crop_camera(2, 224), sigma_px=1.0)
    for name in ("identity", "expression", "rotation", "translation"):
        assert getattr(fitted, name).isfinite().all()


def test_a_spread_that_is_not_positive_is_refused(face: MorphableModel) -> None:
    with pytest.raises(ValueError, match=r"sigma_px is 0\.0, expected the landmarks' positive spread"):
        fit_face(face, torch.rand(1, 68, 2), confidence=torch.ones(1, 68), camera=crop_camera(1, 224), sigma_px=0.0)


def persons_twice(face: MorphableModel, persons: int, *, noise_px: float) -> tuple[Tensor, Tensor, Tensor]:
    """Identity of each person, landmarks of two photos each, and the numbers of the persons."""
    generator = torch.Generator().manual_seed(5)
    identity = torch.randn(persons, face.identity_size, generator=generator)
    person = torch.arange(persons).repeat(2)
    expression = torch.rand(2 * persons, face.expression_size, generator=generator)
    angles = (torch.rand(3, 2 * persons, generator=generator) - 0.5) * torch.tensor([[2.0], [0.6], [0.6]])
    seen = to_camera_space(
        face.landmark_points(identity[person], expression),
        rotation=rotation_from_angles(*angles),
        translation=torch.tensor([0.0, 0.0, 1000.0]).expand(2 * persons, 3),
    )
    landmarks = project(seen, crop_camera(2 * persons, 224))
    noise = noise_px * torch.randn(landmarks.shape, generator=generator)
    return identity, (landmarks + noise).double(), 10 * person + 3


def test_photos_of_a_person_share_the_identity_that_both_explain_best(face: MorphableModel) -> None:
    _, landmarks, person = persons_twice(face, 5, noise_px=1.0)
    confidence = torch.rand(10, 68, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fitted = fit_face(
        face, landmarks, confidence=confidence, camera=double_camera(10), sigma_px=1.0, iterations=40, person=person
    )
    torch.testing.assert_close(fitted.identity[:5], fitted.identity[5:], rtol=0, atol=1e-12)
    assert (fitted.expression[:5] - fitted.expression[5:]).abs().max() > 0.1
    slopes = energy_slopes(face, fitted, landmarks, confidence, sigma_px=1.0)
    for name in ("turn", "translation"):
        assert slopes[name].abs().max() < 1e-3
    # Each photo's slope holds the prior once, the person's energy holds it once for both.
    together = slopes["identity"][:5] + slopes["identity"][5:] - 2.0 * fitted.identity[:5]
    assert together.abs().max() < 1e-3


def test_two_photos_tell_more_than_one(face: MorphableModel) -> None:
    identity, landmarks, person = persons_twice(face, 30, noise_px=2.0)
    settings = {"confidence": torch.ones(60, 68).double(), "camera": double_camera(60), "sigma_px": 2.0}
    alone = fit_face(face, landmarks, **settings)
    together = fit_face(face, landmarks, person=person, **settings)
    truth = identity.repeat(2, 1)
    assert (together.identity - truth).norm(dim=1).mean() < 0.85 * (alone.identity - truth).norm(dim=1).mean()


def test_a_person_per_photo_is_a_fit_of_single_photos(face: MorphableModel) -> None:
    _, _, _, landmarks = simulated(face, 6, noise_px=1.0, double=True)
    settings = {"confidence": torch.ones(6, 68).double(), "camera": double_camera(6), "sigma_px": 1.0}
    alone = fit_face(face, landmarks, **settings)
    numbered = fit_face(face, landmarks, person=torch.tensor([4, 1, 9, 0, 2, 7]), **settings)
    for name in ("identity", "expression", "rotation", "translation"):
        torch.testing.assert_close(getattr(numbered, name), getattr(alone, name))


def test_a_start_at_the_best_face_needs_no_steps(face: MorphableModel) -> None:
    _, _, _, landmarks = simulated(face, 6, noise_px=1.0, double=True)
    settings = {"confidence": torch.ones(6, 68).double(), "camera": double_camera(6), "sigma_px": 1.0}
    best = fit_face(face, landmarks, iterations=30, **settings)
    again = fit_face(face, landmarks, iterations=1, start=best, **settings)
    for name in ("identity", "expression", "rotation", "translation"):
        torch.testing.assert_close(getattr(again, name), getattr(best, name), rtol=0, atol=1e-5)


def test_an_anchor_holds_the_shape_where_points_are_vague(face: MorphableModel) -> None:
    identity, expression, rotation, landmarks = simulated(face, 6, noise_px=1.0, double=True)
    start = FittedFaces(
        identity.double() + 1.0,
        expression.double(),
        rotation.double(),
        torch.tensor([[0.0, 0.0, 1000.0]], dtype=torch.float64).expand(6, 3),
    )
    settings = {"confidence": torch.ones(6, 68).double(), "camera": double_camera(6), "start": start}
    vague = fit_face(face, landmarks, sigma_px=1e4, anchor=1.0, **settings)
    torch.testing.assert_close(vague.identity, start.identity, rtol=0, atol=0.01)
    torch.testing.assert_close(vague.expression, start.expression, rtol=0, atol=0.01)
    free, held = (fit_face(face, landmarks, sigma_px=2.0, anchor=anchor, **settings) for anchor in (0.1, 10.0))
    moved = [(fitted.identity - start.identity).norm(dim=1).mean() for fitted in (free, held)]
    assert moved[1] < 0.6 * moved[0]
    pulled = fit_face(face, landmarks, sigma_px=1e4, **settings)
    assert pulled.identity.norm(dim=1).max() < 0.01


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_an_anchor_needs_a_start_and_is_positive(face: MorphableModel, anchor: float) -> None:
    with pytest.raises(ValueError, match=rf"anchor is {anchor}, expected a positive number together with a start"):
        fit_face(
            face,
            torch.rand(1, 68, 2),
            confidence=torch.ones(1, 68),
            camera=crop_camera(1, 224),
            sigma_px=1.0,
            anchor=anchor,
        )
