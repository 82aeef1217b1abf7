"""The face finder: cells, decoding, merging, and photos of all sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.landmarks.finder import (
    OFFSET_UNIT,
    REFERENCE_SIDE,
    FaceFinder,
    FinderOutput,
    FinderWidths,
    FoundBoxes,
    cell_grid,
    find_faces,
    finder_content,
    load_finder,
    merge_boxes,
)

SMALL = FinderWidths(stem=4, shallow=4, fine=8, coarse=8, head=8)


def small_finder() -> FaceFinder:
    torch.manual_seed(0)
    network = FaceFinder(widths=SMALL).eval()
    with torch.no_grad():
        network.read.weight.normal_(0.0, 0.5)
    return network


def boxes(rows: list[tuple[float, float, float, float, float]]) -> FoundBoxes:
    table = np.array(rows, np.float64).reshape(-1, 5)
    return FoundBoxes(table[:, :2], table[:, 2], table[:, 3], table[:, 4])


class Planted:
    """Stands in for a network that sees one face in a given cell of every photo."""

    def __init__(self, cell: int, *, turn: tuple[float, float] = (1.0, 0.0), log_side: float = 0.0) -> None:
        self.cell, self.turn, self.log_side = cell, turn, log_side
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        self.shapes.append(pixels.shape)
        batch, count = len(pixels), len(cell_grid(*pixels.shape[2:])[0])
        score = np.full((batch, count), -9.0, np.float32)
        score[:, self.cell] = 2.0
        offset = np.zeros((batch, count, 2), np.float32)
        offset[:, self.cell] = (0.25, -0.5)
        turn = np.tile(np.array(self.turn, np.float32), (batch, count, 1))
        return score, offset, np.full((batch, count), self.log_side, np.float32), turn


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (320, 256)])
def test_network_has_a_cell_for_every_place_of_the_grid(size: tuple[int, int]) -> None:
    height, width = size
    centres, scales = cell_grid(height, width)
    output = small_finder()(torch.rand(2, 3, height, width))
    assert output.score.shape == (2, len(centres))
    assert output.offset.shape == output.turn.shape == (2, len(centres), 2)
    assert output.log_side.shape == (2, len(scales))
    # Row by row from the top left of the finest step.
    np.testing.assert_allclose(centres[:2], [[0.5, 0.5], [8.5, 0.5]])
    np.testing.assert_allclose(centres[width // 8], [0.5, 8.5])
    assert (centres < (width, height)).all()


def test_untrained_network_finds_no_face_and_reports_the_reference() -> None:
    output = FaceFinder(widths=SMALL).eval()(torch.rand(1, 3, 64, 64))
    np.testing.assert_allclose(output.score.sigmoid().detach().numpy(), 0.02, rtol=1e-5)
    assert (output.log_side == 0).all()
    assert (output.turn == torch.tensor([1.0, 0.0])).all()


def test_a_face_moves_with_its_cell() -> None:
    """A picture shifted by the coarsest kernel's stride gives the same answer one cell further on."""
    network = small_finder()
    image = torch.full((1, 3, 192, 192), 0.5)
    patch = torch.rand(3, 16, 16)
    moved = image.clone()
    image[0, :, 80:96, 80:96] = patch
    moved[0, :, 80:96, 96:112] = patch
    here = network(image).score[0, : 24 * 24].reshape(24, 24)
    there = network(moved).score[0, : 24 * 24].reshape(24, 24)
    torch.testing.assert_close(here[4:20, 4:18], there[4:20, 6:20], atol=1e-4, rtol=1e-4)


def test_cells_become_boxes_in_pixels_of_the_photo() -> None:
    """640 x 480 is seen at half its size: 320 x 256 with the padding, 40 cells a row in the finest step."""
    run = Planted(41, turn=(0.0, 2.0), log_side=float(np.log(1.5)))
    found = find_faces(run, [np.zeros((480, 640, 3), np.uint8)])[0]
    assert run.shapes == [(1, 3, 256, 320)]
    assert len(found) == 1
    np.testing.assert_allclose(found.centre, [[2 * (8.5 + 0.25 * OFFSET_UNIT), 2 * (8.5 - 0.5 * OFFSET_UNIT)]])
    np.testing.assert_allclose(found.side, [2 * 1.5 * REFERENCE_SIDE], rtol=1e-6)
    np.testing.assert_allclose(found.angle, [np.pi / 2])
    np.testing.assert_allclose(found.score, [1 / (1 + np.exp(-2))], rtol=1e-6)


def test_coarser_steps_hold_larger_faces() -> None:
    _, scales = cell_grid(256, 320)
    for scale in (2.0, 4.0, 8.0, 16.0):
        cell = int(np.flatnonzero(scales == scale)[0])
        found = find_faces(Planted(cell), [np.zeros((256, 320, 3), np.uint8)])[0]
        np.testing.assert_allclose(found.side, [scale * REFERENCE_SIDE])
        np.testing.assert_allclose(found.centre, [[scale * (0.5 + 4.0), scale * (0.5 - 8.0)]])


def test_photos_of_many_sizes_keep_their_order_and_no_face_is_empty() -> None:
    sizes = [(480, 640), (64, 48), (480, 640), (1, 1), (200, 100)]
    photos = [np.full((*size, 3), 10 * index, np.uint8) for index, size in enumerate(sizes)]

    def run(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        score, offset, log_side, turn = Planted(0)(pixels)
        # The stand-in "finds" faces of a size that tells which photo it saw.
        log_side = np.tile(np.log(1.0 + np.rint(255 * pixels[:, :1, 0, 0]) / 100.0), (1, score.shape[1]))
        score[np.rint(255 * pixels[:, 0, 0, 0]) == 20] = -9.0
        return score, offset, log_side.astype(np.float32), turn

    found = find_faces(run, photos, batch_size=1)
    assert [len(one) for one in found] == [1, 1, 0, 1, 1]
    sides = [float(found[index].side[0]) for index in (0, 1, 3, 4)]
    np.testing.assert_allclose(sides, [48.0, 24 * 1.1, 24 * 1.3, 24 * 1.4], rtol=1e-5)
    assert find_faces(run, []) == []


def test_min_score_decides() -> None:
    photo = [np.zeros((64, 64, 3), np.uint8)]
    assert len(find_faces(Planted(3), photo, min_score=0.8)[0]) == 1
    assert len(find_faces(Planted(3), photo, min_score=0.9)[0]) == 0


def test_network_and_its_arrays_agree() -> None:
    network = small_finder()
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)

    def run(pixels: np.ndarray) -> FinderOutput:
        with torch.no_grad():
            return FinderOutput(*(value.numpy() for value in network(torch.from_numpy(pixels))))  # type: ignore[arg-type]

    (first,), (second,) = find_faces(network, [photo], min_score=0.01), find_faces(run, [photo], min_score=0.01)
    assert len(first) == len(second) > 0
    np.testing.assert_allclose(first.centre, second.centre)
    np.testing.assert_allclose(first.score, second.score)


def test_boxes_of_one_face_become_their_weighted_mean() -> None:
    merged = merge_boxes(boxes([(50, 50, 40, 0.1, 0.8), (54, 50, 44, 0.3, 0.4)]))
    np.testing.assert_allclose(merged.centre, [[(50 * 0.8 + 54 * 0.4) / 1.2, 50]])
    np.testing.assert_allclose(merged.side, [40 ** (2 / 3) * 44 ** (1 / 3)])
    np.testing.assert_allclose(merged.angle, [np.arctan2(2 * np.sin(0.1) + np.sin(0.3), 2 * np.cos(0.1) + np.cos(0.3))])
    np.testing.assert_allclose(merged.score, [0.8])


def test_upside_down_faces_are_averaged_across_the_turn() -> None:
    merged = merge_boxes(boxes([(50, 50, 40, np.pi - 0.1, 0.5), (50, 50, 40, -np.pi + 0.1, 0.5)]))
    np.testing.assert_allclose(np.abs(merged.angle), [np.pi])


def test_neighbours_stay_and_the_largest_comes_first() -> None:
    merged = merge_boxes(boxes([(30, 50, 40, 0, 0.9), (75, 50, 50, 0, 0.8), (200, 50, 20, 0, 0.7)]))
    np.testing.assert_allclose(merged.side, [50, 40, 20])
    np.testing.assert_allclose(merged.score, [0.8, 0.9, 0.7])


def test_a_part_of_a_surer_face_goes_but_a_large_face_stays() -> None:
    part_of_surer = merge_boxes(boxes([(50, 50, 80, 0, 0.9), (60, 40, 20, 0, 0.8)]))
    np.testing.assert_allclose(part_of_surer.side, [80])
    surer_before_larger = merge_boxes(boxes([(60, 40, 20, 0, 0.9), (50, 50, 80, 0, 0.8)]))
    np.testing.assert_allclose(surer_before_larger.side, [80, 20])


def test_nothing_merges_to_nothing() -> None:
    merged = merge_boxes(boxes([]))
    assert len(merged) == 0
    assert merged.centre.shape == (0, 2)


def test_checkpoint_gives_the_same_network() -> None:
    network = small_finder()
    loaded = load_finder(finder_content(network))
    image = torch.rand(1, 3, 64, 96)
    assert loaded.widths == SMALL
    torch.testing.assert_close(loaded(image), network(image), rtol=0, atol=0)


def test_other_content_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^finder checkpoint: kind 'hierarchical', expected 'finder'; .*$"):
        load_finder({"kind": "hierarchical"})
