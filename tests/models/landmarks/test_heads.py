"""The map between conventions of points, and the dense head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.landmarks.heads import ConventionMap, DenseHead, OutlineHead
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths
from tests.models.landmarks.conftest import face_shape

SMALL = NetworkWidths(stem=8, patch=16, second=24, third=32, level_two=32, fused=24, hidden=64)


def moved(points: torch.Tensor, angle: float, size: float) -> torch.Tensor:
    """Faces turned clockwise and enlarged."""
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=points.dtype)
    return size * points @ turn.T + 40.0


@pytest.fixture
def taught() -> ConventionMap:
    """A map that shifts every point by random amounts, in part by what is individual."""
    convention = ConventionMap()
    convention.set_reference(torch.from_numpy(face_shape()).float())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        convention.shift.copy_(0.05 * torch.randn(68, 2, generator=generator))
        convention.move.weight.copy_(0.1 * torch.randn(136, 8, generator=generator))
    return convention


class TestConventionMap:
    def test_starts_as_no_shift(self) -> None:
        points = torch.rand(2, 68, 2, generator=torch.Generator().manual_seed(0))
        assert torch.equal(ConventionMap()(points), torch.zeros(2, 68, 2))

    @pytest.mark.parametrize("angle", [0.0, 0.4, -2.0, np.pi])
    @pytest.mark.parametrize("size", [0.5, 30.0])
    def test_turns_and_grows_with_the_face(self, taught: ConventionMap, angle: float, size: float) -> None:
        generator = torch.Generator().manual_seed(1)
        upright = torch.from_numpy(face_shape()).float() + 0.03 * torch.randn(3, 68, 2, generator=generator)
        still = moved(upright + taught(upright), angle, size)
        face = moved(upright, angle, size)
        torch.testing.assert_close(face + taught(face), still, atol=2e-4 * size, rtol=0)

    def test_individual_faces_are_shifted_differently(self, taught: ConventionMap) -> None:
        generator = torch.Generator().manual_seed(2)
        faces = torch.from_numpy(face_shape()).float() + 0.05 * torch.randn(2, 68, 2, generator=generator)
        first, second = taught(faces)
        assert (first - second).norm(dim=1).max() > 1e-3


class TestDenseHead:
    def test_coefficients_move_points_along_the_directions(self) -> None:
        directions = torch.eye(4, 6)
        head = DenseHead(5, 3, (torch.arange(6.0), torch.cat([directions, torch.zeros(2, 6)])))
        with torch.no_grad():
            head.coefficients.weight.zero_()
            head.coefficients.bias.copy_(torch.tensor([1.0, 0.0, 2.0, 0.0, 9.0, 9.0]))
        points, log_sigma = head(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
        expected = torch.tensor([[1.0, 1.0], [4.0, 3.0], [4.0, 5.0]])
        torch.testing.assert_close(points, expected.expand(2, 3, 2))
        assert log_sigma.shape == (2, 3)

    def test_network_with_and_without_dense_points(self) -> None:
        image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        for count in (0, 20):
            network = HierarchicalNetwork(64, widths=SMALL, dense_points=count).eval()
            output = network(image)
            assert output.dense.shape == (2, count, 2)
            assert output.dense_log_sigma.shape == (2, count)


class TestOutlineHead:
    def head(self) -> OutlineHead:
        torch.manual_seed(0)
        return OutlineHead(fine=2, coarse=3, hidden=5, width=4)

    def read(
        self, head: OutlineHead, hidden: torch.Tensor, points: torch.Tensor, fine: torch.Tensor | None = None
    ) -> torch.Tensor:
        fine = torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(1)) if fine is None else fine
        found: torch.Tensor = head(fine, torch.ones(2, 3, 16, 16), hidden, points, 64)
        return found

    def test_starts_as_no_shift(self) -> None:
        points = 64.0 * torch.rand(2, 68, 2)
        assert torch.equal(self.read(self.head(), torch.randn(2, 5), points), points[:, :17])

    def test_reads_features_and_points(self) -> None:
        head = self.head()
        with torch.no_grad():
            head.guess.weight[0, 1] = 2.0
            head.guess.weight[33, 5 + 3] = 1.0
        hidden, points = torch.randn(2, 5), 64.0 * torch.rand(2, 68, 2)
        shift = (self.read(head, hidden, points) - points[:, :17]) / 64.0
        torch.testing.assert_close(shift[:, 0, 0], 0.1 * 2.0 * hidden[:, 1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(shift[:, 16, 1], 0.1 * 3.0 * (points[:, 1, 1] / 64.0 - 0.5), atol=1e-5, rtol=1e-5)
        assert int((shift.abs() > 1e-6).sum()) == 4

    def test_looks_around_its_guess(self) -> None:
        head = self.head()
        with torch.no_grad():
            head.guess.bias[::2] = 2.0
            head.look.patch.weight.fill_(1.0)
            head.look.offsets.weight.normal_()
        points, hidden = torch.full((2, 68, 2), 10.0), torch.randn(2, 5)
        nothing, beside_vertex, beside_guess = torch.zeros(3, 2, 2, 32, 32)
        # The guess lies 12.8 px to the right of the vertices.
        beside_vertex[:, :, 5, 4], beside_guess[:, :, 5, 11] = 1.0, 1.0
        found = [self.read(head, hidden, points, fine) for fine in (nothing, beside_vertex, beside_guess)]
        assert torch.equal(found[0], found[1])
        assert (found[0] - found[2]).abs().max() > 1e-3

    def test_teaches_the_features_that_it_looks_at_alone(self) -> None:
        hidden, points = torch.randn(2, 5, requires_grad=True), torch.rand(2, 68, 2, requires_grad=True)
        fine = torch.rand(2, 2, 32, 32, requires_grad=True)
        head = self.head()
        with torch.no_grad():
            head.look.offsets.weight.normal_()
        self.read(head, hidden, points, fine).square().sum().backward()
        assert hidden.grad is None
        assert points.grad is None
        assert fine.grad is not None

    def test_network_with_and_without(self) -> None:
        image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(3)
        without = HierarchicalNetwork(64, widths=SMALL, dense_points=4).eval()
        torch.manual_seed(3)
        network = HierarchicalNetwork(64, widths=SMALL, dense_points=4, outline=True).eval()
        before, weights = without.state_dict(), network.state_dict()
        assert {name.split(".")[0] for name in weights if name not in before} == {"outline_head"}
        for name, weight in before.items():
            assert torch.equal(weight, weights[name]), name
        for one in (without, network):
            output = one(image)
            assert torch.equal(output.outline, output.points[:, :17])
        with torch.no_grad():
            assert network.outline_head is not None
            network.outline_head.guess.bias[4] = 0.5
        moved = network(image)
        expected = moved.points[:, :17] + torch.eye(34)[4].view(17, 2) * 0.1 * 0.5 * 64
        torch.testing.assert_close(moved.outline, expected)

    def test_the_outline_does_not_pull_the_points(self) -> None:
        network = HierarchicalNetwork(64, widths=SMALL, outline=True)
        network(torch.rand(2, 3, 64, 64)).outline.sum().backward()
        assert network.outline_head is not None
        assert network.outline_head.guess.bias.grad is not None
        assert network.coefficients.weight.grad is None


class TestConventionsOfTheNetwork:
    def test_annotated_points_are_the_first_convention(self) -> None:
        network = HierarchicalNetwork(64, widths=SMALL, conventions=2).eval()
        with torch.no_grad():
            network.conventions[0].shift.fill_(0.1)  # type: ignore[union-attr, operator]
        output = network(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        torch.testing.assert_close(output.annotated, output.points + output.shifts[0])
        assert torch.equal(output.shifts[1], torch.zeros(2, 68, 2))
        assert output.shifts[0].abs().max() > 0.0

    def test_no_convention_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no conventions"):
            HierarchicalNetwork(64, widths=SMALL, conventions=0)
