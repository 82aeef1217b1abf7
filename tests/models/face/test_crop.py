from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.face.camera import crop_camera, project
from models.face.crop import apply_affine, box_affine, crop_affine, inside_photo, photo_camera, warp_crop

coordinate = st.floats(-500, 4000, width=32)


@given(
    points=st.lists(st.tuples(coordinate, coordinate), min_size=2, max_size=68),
    size_px=st.integers(16, 512),
    scale=st.floats(1.0, 3.0),
)
@settings(deadline=None)
def test_the_crop_holds_the_landmarks_with_the_given_room(
    points: list[tuple[float, float]], size_px: int, scale: float
) -> None:
    landmarks = torch.tensor([points]).double()
    extent = float((landmarks.amax(1) - landmarks.amin(1)).amax())
    if extent < 1e-3:
        return
    affine = crop_affine(landmarks, size_px=size_px, scale=scale)
    inside = apply_affine(torch.linalg.inv(affine), landmarks)
    torch.testing.assert_close(apply_affine(affine, inside), landmarks, rtol=1e-9, atol=1e-6)
    low, high = inside.amin(1), inside.amax(1)
    torch.testing.assert_close((low + high) / 2, torch.full((1, 2), size_px / 2).double())
    assert float((high - low).amax()) == pytest.approx(size_px / scale)


def test_a_crop_by_hand() -> None:
    affine = box_affine(torch.tensor([[100.0, 80.0]]), torch.tensor([40.0]), size_px=20)
    found = apply_affine(affine, torch.tensor([[[0.0, 0.0], [10.0, 10.0], [20.0, 0.0]]]))
    assert found[0].tolist() == [[80.0, 60.0], [100.0, 80.0], [120.0, 60.0]]


def test_points_that_coincide_have_no_crop() -> None:
    landmarks = torch.rand(2, 68, 2)
    landmarks[1] = 3.0
    with pytest.raises(ValueError, match="all points of a face coincide"):
        crop_affine(landmarks, size_px=64, scale=1.3)


def test_unknown_points_have_no_crop() -> None:
    landmarks = torch.rand(1, 68, 2)
    landmarks[0, 5] = torch.nan
    with pytest.raises(ValueError, match="landmarks"):
        crop_affine(landmarks, size_px=64, scale=1.3)


def test_the_camera_of_the_photo_sees_what_the_crop_sees() -> None:
    affine = box_affine(torch.tensor([[100.0, 80.0]]), torch.tensor([40.0]), size_px=64)
    camera = crop_camera(1, 64)
    points = torch.tensor([[[10.0, -20.0, 900.0], [-40.0, 35.0, 1100.0]]])
    homogeneous = points @ photo_camera(camera, affine).transpose(1, 2)
    torch.testing.assert_close(
        homogeneous[..., :2] / homogeneous[..., 2:], apply_affine(affine, project(points, camera))
    )


def test_which_pixels_lie_inside_the_photo() -> None:
    # Crop pixels are two photo pixels wide; the first centre is at (-3, 1), the photo is 6 wide and 4 high.
    affine = torch.tensor([[[2.0, 0.0, -4.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]])
    found = inside_photo(affine, photo_size=torch.tensor([[6.0, 4.0]]), size_px=6)
    expected = torch.zeros(1, 6, 6, dtype=torch.bool)
    expected[0, :2, 2:5] = True
    assert torch.equal(found, expected)


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows by 1.5 a pixel to the right, green by 2 downwards; both are linear between pixel centres."""
    y, x = np.mgrid[:height, :width]
    return np.stack([1.5 * x, 2.0 * y, np.full_like(x, 77)], 2).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("step", "left", "top"),
    [(1.0, 10.0, 5.0), (1.0, 10.5, 5.25), (0.37, 20.2, 31.7), (2.0, 8.0, 4.0), (3.3, 6.1, 9.4)],
)
def test_a_gradient_is_cut_out_as_computed(step: float, left: float, top: float) -> None:
    image, size_px = gradient(120, 160), 24
    affine = np.array([[step, 0.0, left], [0.0, step, top], [0.0, 0.0, 1.0]])
    crop = warp_crop(image, affine, size_px)
    centres = np.arange(size_px) + 0.5
    x, y = np.meshgrid(step * centres + left - 0.5, step * centres + top - 0.5)
    # One grey level: rounding in the image, in the interpolation and in the average.
    np.testing.assert_allclose(crop[..., 0], 1.5 * x, atol=1.0)
    np.testing.assert_allclose(crop[..., 1], 2.0 * y, atol=1.0)
    assert (crop[..., 2] == 77).all()


def test_a_crop_without_change_is_the_photo_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp_crop(image, np.eye(3), 30), image)


def test_a_smaller_crop_averages() -> None:
    # Stripes of one pixel vanish at half the size instead of beating.
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[:, ::2] = 200
    crop = warp_crop(image, np.diag([2.0, 2.0, 1.0]), 20)
    assert (np.abs(crop[:, 1:-1].astype(int) - 100) <= 1).all()


def test_outside_the_photo_is_black() -> None:
    image = np.full((20, 30, 3), 200, dtype=np.uint8)
    affine = np.array([[1.0, 0.0, -10.0], [0.0, 1.0, -15.0], [0.0, 0.0, 1.0]])
    crop = warp_crop(image, affine, 60)
    inside = np.zeros((60, 60), dtype=bool)
    inside[15:35, 10:40] = True
    assert (crop[inside] == 200).all()
    assert not crop[~inside].any()
