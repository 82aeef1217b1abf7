from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.losses.identity import (
    batch_bias,
    center_distance,
    distance_separation,
    distribution,
    divergence,
    frontal_neutral_weight,
    move_centers,
    separation,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_separation_by_hand() -> None:
    # A face between two persons at right angles, but of the first: cosines 1 / √2 both, less the margin for the own.
    weights = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    found = separation(torch.tensor([[3.0, 3.0]]), torch.tensor([0]), weights, scale=4.0, margin=0.25)
    assert found.item() == pytest.approx(math.log(1.0 + math.exp(4.0 * 0.25)), rel=1e-5)


def test_separation_knows_angles_alone() -> None:
    face, person, weights = drawn(5, 4), torch.tensor([0, 1, 2, 0, 1]), drawn(3, 4, seed=1)
    expected = separation(face, person, weights)
    torch.testing.assert_close(separation(7.0 * face, person, 0.1 * weights), expected)


def test_a_margin_makes_separation_harder_and_the_own_direction_easier() -> None:
    face, weights = drawn(4, 6), drawn(4, 6, seed=1)
    person = torch.arange(4)
    assert (separation(face, person, weights, margin=0.4) > separation(face, person, weights, margin=0.0)).all()
    assert (separation(weights, person, weights) < separation(face, person, weights)).all()


def test_a_single_person_and_the_mean_face_are_degenerate() -> None:
    assert separation(drawn(3, 4), torch.zeros(3, dtype=torch.int64), drawn(1, 4)).tolist() == [0.0] * 3
    found = separation(torch.zeros(1, 4), torch.tensor([2]), drawn(8, 4), margin=0.0)
    assert found.item() == pytest.approx(math.log(8.0), rel=1e-5)


def test_separation_gradients() -> None:
    face, weights = drawn(3, 4).double().requires_grad_(), drawn(5, 4, seed=1).double().requires_grad_()
    person = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda f, w: separation(f, person, w, scale=3.0), (face, weights))


def test_distance_separation_by_hand() -> None:
    # One millimetre from the own person, two from the other; the own distance counts a half more.
    centers = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    found = distance_separation(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0]), centers, inverse_variance=0.5, margin=0.5
    )
    assert found.item() == pytest.approx(math.log(1.0 + math.exp(0.75 - 2.0)), rel=1e-5)


def test_distances_tell_apart_what_angles_do_not() -> None:
    faces, person = torch.tensor([[1.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 1])
    assert separation(faces, person, faces, margin=0.0).tolist() == pytest.approx([math.log(2.0)] * 2)
    assert (distance_separation(faces, person, faces) < 0.02).all()
    assert distance_separation(faces[:1], torch.tensor([0]), faces[:1]).item() == 0.0


def test_distance_separation_gradients() -> None:
    face, centers = drawn(3, 4).double().requires_grad_(), drawn(5, 4, seed=1).double()
    person = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda f: distance_separation(f, person, centers), (face,))


def test_the_centre_is_half_a_square_away() -> None:
    found = center_distance(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    assert found.item() == 12.5


@pytest.mark.parametrize(
    ("angles", "expression", "expected"),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.0), 1.0),
        ((math.pi / 3, 0.0, 0.0), (0.0, 0.0), 0.5),
        ((math.pi / 3, -math.pi / 3, 0.0), (0.0, 0.0), 0.25),
        ((math.pi, math.pi, 0.0), (0.0, 0.0), 0.0),
        ((0.0, 0.0, 0.0), (1.8, 2.4), math.exp(-1.0)),
    ],
)
def test_frontal_neutral_photos_say_most(
    angles: tuple[float, ...], expression: tuple[float, ...], expected: float
) -> None:
    found = frontal_neutral_weight(torch.tensor([angles]), torch.tensor([expression]))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_centres_move_by_the_weights_of_the_photos() -> None:
    centers = torch.tensor([[0.0], [10.0], [5.0]])
    faces, person = torch.tensor([[3.0], [9.0], [4.0]]), torch.tensor([0, 0, 1])
    found = move_centers(centers, person, faces, torch.tensor([1.0, 0.5, 1.0]), rate=1.0)
    # (1 · 3 + ½ · 9) / (1 + 1½), and half the way from 10 to 4; the third person is not there.
    assert found.flatten().tolist() == pytest.approx([3.0, 7.0, 5.0])
    assert move_centers(centers, person, faces, torch.zeros(3), rate=1.0).equal(centers)
    assert move_centers(centers, person, faces, torch.ones(3), rate=0.0).equal(centers)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rate=st.floats(0.0, 1.0))
def test_a_centre_never_leaves_the_hull_of_itself_and_its_photos(seed: int, rate: float) -> None:
    faces, weight = drawn(6, 1, seed=seed), drawn(6, seed=seed + 1).abs()
    centers = drawn(1, 1, seed=seed + 2)
    found = move_centers(centers, torch.zeros(6, dtype=torch.int64), faces, weight, rate=rate)
    everything = torch.cat([faces, centers])
    assert everything.min() - 1e-5 <= found <= everything.max() + 1e-5


def test_the_divergence_of_a_normal_distribution() -> None:
    assert divergence(torch.zeros(3), torch.ones(3)).item() == 0.0
    # Mean ½ and variance ¼ in one of two dimensions: ½ (¼ + ¼ - 1 - ln ¼) / 2.
    found = divergence(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1.0]))
    assert found.item() == pytest.approx(0.25 * (0.5 - 1.0 + math.log(4.0)), rel=1e-5)


def test_the_distribution_has_the_value_of_the_running_moments() -> None:
    mean, square = torch.tensor([0.1, -0.2]), torch.tensor([0.5, 2.0])
    found = distribution(drawn(7, 2), mean, square)
    torch.testing.assert_close(found, divergence(mean, square).expand(7))


def test_the_distribution_has_the_gradient_of_the_moments() -> None:
    # Where the running moments are those of the batch, the gradients are those of the batch's divergence.
    faces = drawn(9, 3).double().requires_grad_()
    mean, square = faces.mean(0), faces.square().mean(0)
    (expected,) = torch.autograd.grad(divergence(mean, square), faces, retain_graph=True)
    (found,) = torch.autograd.grad(distribution(faces, mean, square).mean(), faces)
    torch.testing.assert_close(found, expected)


def test_the_distribution_does_not_depend_on_how_a_batch_is_divided() -> None:
    faces = drawn(8, 3).requires_grad_()
    mean, square = torch.full((3,), 0.1), torch.full((3,), 0.4)
    (whole,) = torch.autograd.grad(distribution(faces, mean, square).sum(), faces)
    parts = sum(distribution(part, mean, square).sum() for part in faces.split(3))
    (apart,) = torch.autograd.grad(parts, faces)
    torch.testing.assert_close(apart, whole)


@pytest.mark.parametrize(("batch_size", "expected"), [(10, 0.110), (32, 0.0322), (256, 0.0039)])
def test_the_bias_of_small_batches(batch_size: int, expected: float) -> None:
    assert batch_bias(batch_size) == pytest.approx(expected, rel=0.01)
    faces = drawn(4000, batch_size, 4, seed=batch_size)
    mean, square = faces.mean(1), faces.square().mean(1)
    measured = 0.5 * (square - 1.0 - (square - mean.square()).log()).mean()
    assert measured.item() == pytest.approx(batch_bias(batch_size), rel=0.03)


def test_a_batch_of_one_has_no_variance() -> None:
    with pytest.raises(ValueError, match="a batch of 1 has no variance"):
        batch_bias(1)
