"""Metrics against values worked out by hand and against independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from models.metrics import (
    depth_flatness,
    depth_moments,
    landmark_error,
    normal_error,
    similarity,
    similarity_map,
    vertex_error,
)


def noise(count: int = 3, size: int = 40, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator)


def full_mask(image: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(image), *image.shape[2:], dtype=torch.bool)


class TestSimilarity:
    def test_equal_images_score_one(self) -> None:
        image = noise()
        torch.testing.assert_close(similarity(image, image, full_mask(image)), torch.ones(3))

    def test_agrees_with_torchmetrics_away_from_the_border(self) -> None:
        first = noise(seed=1)
        second = 0.3 * noise(seed=2) + 0.7 * first
        _, expected = structural_similarity_index_measure(
            second, first, data_range=1.0, return_full_image=True, reduction=None
        )
        found, counted = similarity_map(first, second, full_mask(first))
        assert counted.all()
        torch.testing.assert_close(found[:, 5:-5, 5:-5], expected.mean(1)[:, 5:-5, 5:-5], rtol=1e-3, atol=1e-4)

    def test_does_not_see_what_lies_outside_the_mask(self) -> None:
        first, second = noise(seed=1), 0.5 * noise(seed=1) + 0.2
        mask = full_mask(first)
        mask[:, :, 20:] = False
        changed = torch.where(mask[:, None], second, 0.0)
        torch.testing.assert_close(similarity(first, second, mask), similarity(first, changed, mask))

    def test_falls_as_noise_grows(self) -> None:
        image = noise(1, seed=1)
        scores = [float(similarity(image, (1 - share) * image + share * noise(1, seed=2), full_mask(image)))
                  for share in (0.1, 0.3, 0.6)]  # fmt: skip
        assert scores[0] > scores[1] > scores[2]

    def test_an_empty_mask_scores_zero(self) -> None:
        image = noise()
        assert similarity(image, image, torch.zeros(3, 40, 40, dtype=torch.bool)).tolist() == [0.0, 0.0, 0.0]

    def test_constant_images_differ_by_luminance_alone(self) -> None:
        image = torch.full((1, 3, 20, 20), 0.4)
        expected = (2 * 0.4 * 0.8 + 1e-4) / (0.4**2 + 0.8**2 + 1e-4)
        assert float(similarity(image, 2 * image, full_mask(image))) == pytest.approx(expected, abs=1e-3)


class TestLandmarkError:
    def test_is_a_fraction_of_the_box(self) -> None:
        target = torch.tensor([[[0.0, 0.0], [40.0, 0.0], [40.0, 90.0]]])
        # Every point is off by 3-4-5, and the box is 40 by 90: its root is 60.
        error = landmark_error(target + torch.tensor([3.0, 4.0]), target)
        torch.testing.assert_close(error, torch.tensor([5.0 / 60.0]))

    def test_scale_does_not_matter(self) -> None:
        target = 100 * torch.rand(2, 68, 2, generator=torch.Generator().manual_seed(0))
        predicted = target + torch.randn(2, 68, 2, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(landmark_error(7 * predicted, 7 * target), landmark_error(predicted, target))

    def test_unknown_points_do_not_count(self) -> None:
        target = torch.tensor([[[0.0, 0.0], [10.0, 10.0], [torch.nan, torch.nan]]])
        predicted = torch.tensor([[[1.0, 0.0], [10.0, 10.0], [500.0, 0.0]]])
        torch.testing.assert_close(landmark_error(predicted, target), torch.tensor([0.05]))

    def test_an_unannotated_face_is_not_a_number(self) -> None:
        assert landmark_error(torch.zeros(1, 68, 2), torch.full((1, 68, 2), torch.nan)).isnan().all()


class TestShape:
    def test_vertex_error_counts_the_chosen_vertices(self) -> None:
        target = torch.zeros(1, 3, 3)
        predicted = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 1.0], [100.0, 0.0, 0.0]]])
        error = vertex_error(predicted, target, torch.tensor([True, True, False]))
        torch.testing.assert_close(error, torch.tensor([3.0]))

    def test_normal_error_is_an_angle_in_degrees(self) -> None:
        first = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        second = torch.tensor([[[math.sqrt(0.5), math.sqrt(0.5), 0.0], [0.0, 0.0, 1.0]]])
        error = normal_error(first, second, torch.tensor([True, True]))
        torch.testing.assert_close(error, torch.tensor([(45.0 + 90.0) / 2]))

    def test_depth_slope_is_the_share_of_relief_that_is_kept(self) -> None:
        truth = torch.tensor([[-2.0, 0.0, 2.0], [1.0, -1.0, 0.0]])
        slope, correlation = depth_flatness(depth_moments(0.25 * truth + 5.0, truth))
        assert slope == pytest.approx(0.25)
        assert correlation == pytest.approx(1.0)

    def test_depth_is_pooled_over_faces(self) -> None:
        generator = torch.Generator().manual_seed(0)
        truth, predicted = torch.randn(2, 4, 50, generator=generator)
        slope, correlation = depth_flatness(depth_moments(predicted, truth))
        covariance = torch.cov(torch.stack([predicted.flatten(), truth.flatten()]), correction=0)
        assert slope == pytest.approx(float(covariance[0, 1] / covariance[1, 1]), abs=1e-5)
        assert correlation == pytest.approx(
            float(torch.corrcoef(torch.stack([predicted.flatten(), truth.flatten()]))[0, 1]), abs=1e-5
        )

    def test_a_flat_prediction_has_slope_zero_and_no_correlation(self) -> None:
        slope, correlation = depth_flatness(depth_moments(torch.zeros(1, 3), torch.tensor([[-1.0, 0.0, 1.0]])))
        assert slope == 0.0
        assert math.isnan(correlation)
