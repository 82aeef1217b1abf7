"""Wing, the likelihood of errors, presence."""

from __future__ import annotations

import math

import torch

from models.losses.landmarks import error_likelihood, presence_loss, wing, wing_loss


class TestWing:
    def test_value(self) -> None:
        # 10 ln(1 + 2/2) = 6.931; beyond the width |e| - (10 - 10 ln 6).
        found = wing(torch.tensor([0.0, 2.0, -2.0, 20.0], dtype=torch.float64), width=10.0, curvature=2.0)
        expected = torch.tensor(
            [0.0, 10 * math.log(2), 10 * math.log(2), 20 - (10 - 10 * math.log(6))], dtype=torch.float64
        )
        torch.testing.assert_close(found, expected)

    def test_continuous_at_the_width(self) -> None:
        below, above = wing(torch.tensor([10.0 - 1e-9, 10.0 + 1e-9], dtype=torch.float64))
        assert abs(float(above - below)) < 1e-8

    def test_gradcheck(self) -> None:
        error = torch.tensor([-15.0, -3.0, 0.5, 4.0, 12.0], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(wing, error)

    def test_gradient_is_finite_at_zero(self) -> None:
        error = torch.zeros(3, requires_grad=True)
        wing(error).sum().backward()
        assert torch.isfinite(error.grad).all()

    def test_loss_averages_over_points_and_coordinates(self) -> None:
        predicted = torch.zeros(2, 68, 2)
        target = torch.zeros(2, 68, 2)
        target[1, :, 0] = 2.0
        torch.testing.assert_close(wing_loss(predicted, target), torch.tensor([0.0, 5 * math.log(2)]))


class TestErrorLikelihood:
    def test_value(self) -> None:
        # Errors (3, 4): e² = 12.5 per coordinate; at σ = 1 half of it.
        target = torch.tensor([3.0, 4.0]).expand(1, 68, 2)
        found = error_likelihood(torch.zeros(1, 68), torch.zeros(1, 68, 2), target)
        torch.testing.assert_close(found, torch.tensor([6.25]))

    def test_smallest_at_the_true_error(self) -> None:
        target = torch.tensor([3.0, 4.0]).expand(1, 68, 2)
        log_sigma = torch.full((1, 68), 0.5 * math.log(12.5), requires_grad=True)
        error_likelihood(log_sigma, torch.zeros(1, 68, 2), target).sum().backward()
        torch.testing.assert_close(log_sigma.grad, torch.zeros(1, 68), atol=1e-6, rtol=0)

    def test_points_get_no_gradient(self) -> None:
        points = torch.zeros(1, 68, 2, requires_grad=True)
        log_sigma = torch.zeros(1, 68, requires_grad=True)
        error_likelihood(log_sigma, points, torch.ones(1, 68, 2)).sum().backward()
        assert points.grad is None


def test_presence_value() -> None:
    found = presence_loss(torch.tensor([0.0, 0.0, 100.0]), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([math.log(2), math.log(2), 0.0]))
