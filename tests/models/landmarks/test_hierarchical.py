"""The landmark network and its linear attention."""

from __future__ import annotations

import pytest
import torch

from models.landmarks.hierarchical import (
    LOOKS,
    HierarchicalNetwork,
)
from models.landmarks.local_features import read_around
from models.landmarks.transforms import linear_attention, positive_features


class TestLinearAttention:
    def test_value_of_the_quadratic_form(self) -> None:
        generator = torch.Generator().manual_seed(0)
        query, key = (
            positive_features(torch.randn(2, 3, 17, 5, generator=generator, dtype=torch.float64)) for _ in range(2)
        )
        value = torch.randn(2, 3, 17, 5, generator=generator, dtype=torch.float64)
        weights = query @ key.transpose(2, 3)
        expected = weights / weights.sum(3, keepdim=True) @ value
        torch.testing.assert_close(linear_attention(query, key, value), expected)

    def test_feature_map_is_elu_plus_one(self) -> None:
        features = torch.tensor([-30.0, -1.0, 0.0, 2.0])
        torch.testing.assert_close(positive_features(features), torch.nn.functional.elu(features) + 1.0)

    def test_constant_values_stay_constant(self) -> None:
        features = positive_features(torch.randn(1, 2, 9, 4, generator=torch.Generator().manual_seed(1)))
        torch.testing.assert_close(linear_attention(features, features, torch.ones(1, 2, 9, 4)), torch.ones(1, 2, 9, 4))

    def test_gradcheck(self) -> None:
        generator = torch.Generator().manual_seed(2)
        arrays = [
            torch.rand(1, 1, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)
        ]
        assert torch.autograd.gradcheck(linear_attention, arrays)


class TestNetwork:
    @pytest.mark.parametrize("size", [64, 96, 128])
    def test_shape(self, size: int) -> None:
        network = HierarchicalNetwork(size).eval()
        output = network(torch.rand(2, 3, size, size))
        assert output.points.shape == (2, 68, 2)
        assert output.log_sigma.shape == (2, 68)
        assert output.presence.shape == (2,)

    def test_without_coefficients_the_mean_is_left(self) -> None:
        mean = torch.rand(136, generator=torch.Generator().manual_seed(0)) - 0.5
        network = HierarchicalNetwork(64, modes=(mean, torch.eye(136))).eval()
        torch.nn.init.zeros_(network.coefficients.weight)
        points = network(torch.rand(1, 3, 64, 64)).points[0]
        torch.testing.assert_close(points / 64 - 0.5, mean.view(68, 2))

    def test_untrained_looks_leave_the_guess(self) -> None:
        network = HierarchicalNetwork(64).eval()
        output = network(torch.rand(2, 3, 64, 64))
        assert output.guesses.shape == (LOOKS + 1, 2, 68, 2)
        torch.testing.assert_close(output.guesses[0], output.points)
        assert torch.equal(output.guesses[-1], output.points)

    def test_a_look_reads_the_features_beside_its_points(self) -> None:
        # A ramp over the crop: what is read is the place itself, at any resolution of the map.
        points = torch.tensor([[[20.0, 30.5], [33.25, 40.0]]]).repeat(1, 34, 1)
        for side in (16, 32):
            centres = (torch.arange(side) + 0.5) * (64 / side)
            ramp = torch.stack([centres.expand(side, side), centres[:, None].expand(side, side)])[None]
            read = read_around(ramp, points, (-6.0, 0.0, 6.0), 64).unflatten(2, (9, 2))
            torch.testing.assert_close(read[:, :, 4], points)
            torch.testing.assert_close(read[:, :, 0], points - 6.0)
            torch.testing.assert_close(read[0, 0, 5], torch.tensor([26.0, 30.5]))

    def test_a_look_does_not_move_the_guess_it_starts_from(self) -> None:
        network = HierarchicalNetwork(64).train()
        network(torch.rand(2, 3, 64, 64)).points.sum().backward()
        assert network.coefficients.weight.grad is None
        assert network.looks[-1].offsets.bias.grad.abs().sum() > 0
        assert network.looks[0].offsets.bias.grad is None

    def test_refuses_a_size_that_does_not_divide(self) -> None:
        with pytest.raises(ValueError, match="100 px, expected a multiple of 16"):
            HierarchicalNetwork(100)

    def test_brightness_and_contrast_do_not_matter(self) -> None:
        network = HierarchicalNetwork(64).eval()
        image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            first, second = network(image).points, network(0.3 + 0.4 * image).points
        torch.testing.assert_close(first, second, atol=0.3, rtol=0)

    def test_error_head_does_not_move_the_features(self) -> None:
        network = HierarchicalNetwork(64).train()
        network(torch.rand(2, 3, 64, 64)).log_sigma.sum().backward()
        assert all(parameter.grad is None for parameter in network.level_one.parameters())
