"""Metrics against values worked out by hand and against independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import color
from torchmetrics.functional.image import structural_similarity_index_measure

from models.face.camera import rotation_from_angles
from models.metrics import (
    angle_errors,
    depth_flatness,
    depth_moments,
    distinctness,
    landmark_error,
    normal_error,
    nose_protrusion,
    peak_signal_to_noise,
    similarity,
    similarity_map,
    typology_angle,
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


class TestPeakSignalToNoise:
    def test_is_minus_ten_logs_of_the_mean_square(self) -> None:
        image = torch.full((1, 3, 8, 8), 0.4)
        expected = -10 * math.log10(0.1**2)
        assert float(peak_signal_to_noise(image, image + 0.1, full_mask(image))) == pytest.approx(expected, abs=1e-3)

    def test_only_the_mask_counts(self) -> None:
        image = noise(1)
        mask = full_mask(image)
        mask[:, 20:] = False
        changed = torch.where(mask[:, None], image + 0.05, 0.0)
        found = peak_signal_to_noise(image, changed, mask)
        kept = peak_signal_to_noise(image[:, :, :20], changed[:, :, :20], mask[:, :20])
        torch.testing.assert_close(found, kept)

    def test_equal_images_and_empty_masks(self) -> None:
        image = noise(1)
        assert float(peak_signal_to_noise(image, image, full_mask(image))) == 100.0
        assert peak_signal_to_noise(image, image, torch.zeros(1, 40, 40, dtype=torch.bool)).isnan().all()


class TestPose:
    def test_angles_are_compared_one_by_one(self) -> None:
        first = rotation_from_angles(*torch.tensor([[0.5], [0.1], [-0.2]]))
        second = rotation_from_angles(*torch.tensor([[0.4], [0.15], [-0.2]]))
        expected = torch.tensor([0.1, 0.05, 0.0]).rad2deg()
        torch.testing.assert_close(torch.cat(angle_errors(first, second)), expected, atol=1e-3, rtol=0)

    def test_a_difference_goes_the_short_way_round(self) -> None:
        first = rotation_from_angles(*torch.tensor([[3.1], [0.0], [0.0]]))
        second = rotation_from_angles(*torch.tensor([[-3.1], [0.0], [0.0]]))
        yaw, _, _ = angle_errors(first, second)
        assert float(yaw) == pytest.approx(math.degrees(2 * math.pi - 6.2), abs=1e-2)


class TestNose:
    def test_protrusion_is_measured_from_the_plane_of_eyes_and_mouth(self) -> None:
        points = torch.zeros(1, 68, 3)
        points[0, 36], points[0, 45] = torch.tensor([-45.0, 30.0, 0.0]), torch.tensor([45.0, 30.0, 0.0])
        points[0, 48], points[0, 54] = torch.tensor([-25.0, -35.0, 0.0]), torch.tensor([25.0, -35.0, 0.0])
        points[0, 30] = torch.tensor([0.0, -5.0, 22.0])
        assert float(nose_protrusion(points)) == pytest.approx(22.0, abs=1e-4)
        turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
        turn = turn * turn.det()
        assert float(nose_protrusion(points @ turn.T + 100.0)) == pytest.approx(22.0, abs=1e-3)


class TestTypology:
    def test_agrees_with_another_implementation(self) -> None:
        colours = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
        lightness, _, blue = color.rgb2lab(colours.double().numpy()).T
        expected = np.degrees(np.arctan2(lightness - 50.0, blue))
        found = typology_angle(colours.double()).numpy()
        # Two ways to write white differ in the fourth digit.
        away = np.abs((found - expected + 180.0) % 360.0 - 180.0)
        assert away.max() < 0.2

    def test_light_skin_is_high_and_dark_skin_is_low(self) -> None:
        light, tan, dark = typology_angle(torch.tensor([[0.96, 0.84, 0.77], [0.78, 0.58, 0.45], [0.3, 0.19, 0.14]]))
        assert light > 41 > tan > 10 > dark


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


class TestDistinctness:
    def test_by_hand(self) -> None:
        # Within persons 1 and 3 apart, between them 4, 5, 7 and 8 on a line.
        faces, person = torch.tensor([[0.0], [1.0], [5.0], [8.0]]), torch.tensor([9, 9, 2, 2])
        intra, inter = (1 + 3) / 2, (5 + 8 + 4 + 7) / 4
        assert distinctness(faces, person) == pytest.approx((inter - intra) / (inter + intra))

    def test_it_does_not_change_with_size_nor_order_nor_in_parts(self) -> None:
        generator = torch.Generator().manual_seed(0)
        faces, person = torch.randn(600, 5, generator=generator), torch.arange(600) // 2
        expected = distinctness(faces, person)
        order = torch.randperm(600, generator=generator)
        assert distinctness(3.0 * faces[order], person[order]) == pytest.approx(expected)
        assert abs(expected) < 0.03
        assert distinctness(faces[person * 2], person) == pytest.approx(1.0)

    def test_without_two_kinds_of_pairs_it_is_unknown(self) -> None:
        assert math.isnan(distinctness(torch.randn(4, 2), torch.arange(4)))
        assert math.isnan(distinctness(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64)))
        assert math.isnan(distinctness(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])))
