"""Pictures: what is drawn where."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.types import FaceCoefficients, Rendering
from tasks.pictures import (
    FINER,
    UNKNOWN_COLOUR,
    average_down,
    draw_mesh,
    error_colours,
    grid,
    overlay_image,
    png,
    select_faces,
)

TETRAHEDRON = torch.tensor([[-60.0, -60.0, 0.0], [60.0, -60.0, 0.0], [0.0, 60.0, 0.0], [0.0, 0.0, 60.0]])
SIDES = torch.tensor([[0, 1, 3], [1, 2, 3], [2, 0, 3], [0, 2, 1]])


def test_an_overlay_replaces_the_masked_pixels_only() -> None:
    photo = np.full((4, 6, 3), 40, np.uint8)
    image = torch.ones(3, 4, 6)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1, 2] = True
    drawn = overlay_image(photo, image * mask, mask, opacity=1.0)
    assert drawn[1, 2].tolist() == [255, 255, 255]
    drawn[1, 2] = 40
    assert (drawn == 40).all()


def test_opacity_and_coverage_mix_photo_and_rendering() -> None:
    photo = np.full((1, 2, 3), 100, np.uint8)
    coverage = torch.tensor([[1.0, 0.5]])
    # Half a pixel of white, premultiplied by its coverage.
    drawn = overlay_image(photo, coverage.expand(3, 1, 2), coverage, opacity=0.8)
    assert drawn[0, :, 0].tolist() == [0.8 * 255 + 0.2 * 100, round(0.4 * 255 + 0.6 * 100)]


def test_an_overlay_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the photo's \(4, 6\)"):
        overlay_image(np.zeros((4, 6, 3), np.uint8), torch.zeros(3, 6, 4), torch.zeros(6, 4))


def test_averaging_keeps_light_and_coverage() -> None:
    mask = torch.zeros(1, 2 * FINER, 2 * FINER, dtype=torch.bool)
    mask[:, :FINER, :FINER] = True
    mask[:, FINER, FINER] = True
    image = torch.full((1, 3, 2 * FINER, 2 * FINER), 0.6) * mask[:, None]
    pixels, coverage = average_down(Rendering(image=image, mask=mask, normals=image))
    torch.testing.assert_close(coverage, torch.tensor([[1.0, 0.0], [0.0, 1.0 / FINER**2]]))
    torch.testing.assert_close(pixels, 0.6 * coverage.expand(3, 2, 2))


def test_a_mesh_is_drawn_in_the_middle_of_white() -> None:
    picture = draw_mesh(TETRAHEDRON, SIDES, size_px=48)
    assert picture.shape == (48, 48, 3)
    dark = np.nonzero((picture < 250).all(2))
    assert 100 < len(dark[0]) < 48 * 48 / 2
    assert abs((dark[0].min() + dark[0].max()) / 2 - 23.5) < 2
    assert abs((dark[1].min() + dark[1].max()) / 2 - 23.5) < 2
    # Up is up: the tip of the triangle is narrow.
    rows = (picture < 250).all(2).sum(1)
    filled = rows[rows > 0]
    assert filled[2] < filled[-3]


def test_a_turn_to_the_subjects_left_moves_the_nose_to_the_right() -> None:
    colours = torch.zeros(4, 3)
    colours[3, 0] = 1.0
    tips = []
    for yaw_deg in (-35.0, 35.0):
        drawn = draw_mesh(TETRAHEDRON, SIDES, size_px=64, yaw_deg=yaw_deg, colours=colours).astype(float)
        redness = drawn[..., 0] - drawn[..., 1]
        tips.append(int(redness.max(0).argmax()))
    assert tips[0] < 26
    assert tips[1] > 38


def test_error_colours_end_at_the_limit_and_spare_the_unknown() -> None:
    colours = error_colours(np.array([0.0, 4.0, 9.0, np.nan]), limit_mm=4.0)
    assert colours[0].sum() > 2.3
    assert torch.equal(colours[1], colours[2])
    assert colours[1].sum() < 0.1
    assert colours[3].tolist() == pytest.approx(UNKNOWN_COLOUR)


def test_a_grid_places_pictures_row_by_row() -> None:
    cells = [[np.full((2, 3, 3), 10 * row + column, np.uint8) for column in range(2)] for row in range(2)]
    sheet = grid(cells, gap_px=1)
    assert sheet.shape == (5, 7, 3)
    assert [sheet[0, 0, 0], sheet[0, 4, 0], sheet[3, 0, 0], sheet[3, 4, 0]] == [0, 1, 10, 11]
    assert (sheet[2] == 255).all()


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        grid([])


def test_png_keeps_every_pixel() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (5, 4, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(png(picture))) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_faces_are_selected_in_order() -> None:
    numbers = torch.arange(4.0)[:, None]
    faces = FaceCoefficients(
        identity=numbers,
        expression=numbers,
        albedo=numbers,
        lighting=torch.zeros(4, 9, 3),
        rotation=numbers.expand(4, 3),
        translation=numbers.expand(4, 3),
    )
    chosen = select_faces(faces, torch.tensor([3, 1]))
    assert chosen.identity[:, 0].tolist() == [3.0, 1.0]
    assert chosen.translation[:, 2].tolist() == [3.0, 1.0]
