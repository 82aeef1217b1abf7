"""What the face finder learns from: cells of faces worked out by hand, and a short training on drawings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.landmarks.finder import OFFSET_UNIT, FaceFinder, FinderOutput, FinderWidths, cell_grid, find_faces
from models.landmarks.finder_canvases import CanvasComposer, Canvases, CanvasSettings
from models.landmarks.finder_training import CellTargets, FinderObjective, FinderSettings, cell_losses, cell_targets
from models.landmarks.learning import LandmarkSamples
from models.training.loop import seeded
from models.training.orthogonal import Muon

SIZE = 64
GRID = cell_grid(SIZE, SIZE)


def canvas_of(*faces: tuple[float, float, float, float, float]) -> Canvases:
    """One picture with faces x, y, side, angle, visible."""
    table = np.array(faces, np.float64).reshape(-1, 5)
    images = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    return Canvases(images, np.zeros(len(table), np.int64), table[:, :2], table[:, 2], table[:, 3], table[:, 4])


def holders(targets: CellTargets) -> list[tuple[float, float, float]]:
    """Centre and step of the cells of the only picture that hold a face."""
    rows = np.flatnonzero(targets.face[0])
    return [(*map(float, GRID[0][row]), float(GRID[1][row])) for row in rows]


def test_a_face_belongs_to_the_cell_at_its_centre() -> None:
    targets = cell_targets(canvas_of((18.5, 25.5, 24.0, 0.5, 1.0)), GRID)
    assert holders(targets) == [(16.5, 24.5, 1.0)]
    np.testing.assert_allclose(targets.offset, [[2.0 / OFFSET_UNIT, 1.0 / OFFSET_UNIT]])
    np.testing.assert_allclose(targets.log_side, [0.0])
    np.testing.assert_allclose(targets.unit, [OFFSET_UNIT / 24.0])
    np.testing.assert_allclose(targets.turn, [[np.cos(0.5), np.sin(0.5)]])
    # The cells beside it, 8 pixels of 24 away, count neither way; far ones have no face.
    counts = targets.counts[0, :64].reshape(8, 8)
    assert counts[3, 2]
    assert not counts[3, 1]
    assert not counts[3, 3]
    assert counts[3, 5]
    assert counts[0, 0]


def test_larger_faces_belong_to_coarser_steps() -> None:
    for side, scale in ((24.0, 1.0), (48.0, 2.0), (96.0, 4.0)):
        assert {step for _, _, step in holders(cell_targets(canvas_of((32, 32, side, 0, 1)), GRID))} == {scale}
    between = cell_targets(canvas_of((32, 32, 34.0, 0, 1)), GRID)
    assert {step for _, _, step in holders(between)} == {1.0, 2.0}


def test_small_faces_belong_to_the_finest_step_until_they_are_too_small() -> None:
    assert holders(cell_targets(canvas_of((24.5, 24.5, 13.0, 0, 1)), GRID)) == [(24.5, 24.5, 1.0)]
    tiny = cell_targets(canvas_of((24.5, 24.5, 11.5, 0, 1)), GRID)
    assert not tiny.face.any()
    assert not tiny.counts.all()


def test_a_face_cut_by_the_border_belongs_to_the_closest_cell() -> None:
    cut = cell_targets(canvas_of((-6.0, 24.5, 24.0, 0, 0.45)), GRID)
    assert holders(cut) == [(0.5, 24.5, 1.0)]
    np.testing.assert_allclose(cut.offset, [[-6.5 / OFFSET_UNIT, 0.0]])


def test_hidden_faces_count_neither_way_and_invisible_ones_not_at_all() -> None:
    hinted = cell_targets(canvas_of((24.5, 24.5, 24.0, 0, 0.2)), GRID)
    assert not hinted.face.any()
    assert not hinted.counts[0, 3 * 8 + 3]
    invisible = cell_targets(canvas_of((24.5, 24.5, 24.0, 0, 0.05)), GRID)
    assert not invisible.face.any()
    assert invisible.counts.all()


def test_of_two_faces_the_closer_one_has_the_cell() -> None:
    targets = cell_targets(canvas_of((22.5, 24.5, 30.0, 0, 1), (25.5, 24.5, 20.0, 0, 1)), GRID)
    row = int(np.flatnonzero(targets.face[0]).tolist().index(3 * 8 + 3))
    np.testing.assert_allclose(targets.offset[row], [1.0 / OFFSET_UNIT, 0.0])
    np.testing.assert_allclose(targets.log_side[row], np.log(20.0 / 24.0))


def test_no_face_gives_no_targets_and_a_finite_loss() -> None:
    targets = cell_targets(canvas_of(), GRID)
    assert targets.counts.all()
    losses = cell_losses(answer(targets, sure=2.0), targets, torch.device("cpu"))
    assert float(losses["centre"]) == float(losses["side"]) == float(losses["turn"]) == 0.0
    # σ(-2)² · -log(1 - σ(-2)) per cell.
    wrong = 1.0 / (1.0 + np.exp(2.0))
    np.testing.assert_allclose(float(losses["score"]), len(GRID[0]) * -(wrong**2) * np.log(1.0 - wrong), rtol=1e-4)


def answer(targets: CellTargets, *, sure: float) -> FinderOutput:
    """What a network should say."""
    face = torch.from_numpy(targets.face)
    offset, turn = (torch.zeros(*face.shape, 2) for _ in range(2))
    log_side = torch.zeros(face.shape)
    offset[face] = torch.from_numpy(targets.offset).float()
    turn[face] = torch.from_numpy(targets.turn).float()
    log_side[face] = torch.from_numpy(targets.log_side).float()
    return FinderOutput(torch.where(face, sure, -sure), offset, log_side, turn)


def test_the_right_answer_costs_nothing_and_errors_cost_their_share_of_the_side() -> None:
    targets = cell_targets(canvas_of((18.5, 25.5, 24.0, 0.5, 1.0)), GRID)
    right = cell_losses(answer(targets, sure=12.0), targets, torch.device("cpu"))
    assert all(float(value) < 1e-4 for value in right.values())
    output = answer(targets, sure=12.0)
    # 2.4 pixels, a tenth of the side, to the right: smooth L1 with a softness of 0.05.
    shifted = output._replace(offset=output.offset + torch.tensor([2.4 / OFFSET_UNIT, 0.0]))
    wrong = cell_losses(shifted, targets, torch.device("cpu"))
    np.testing.assert_allclose(float(wrong["centre"]), 0.1 - 0.025, rtol=1e-4)


def small_objective(samples: LandmarkSamples) -> FinderObjective:
    canvases = CanvasSettings(tilted_share=0.0, coarse_share=0.0, compressed_share=0.0, noise_share=0.0)
    return FinderObjective(samples, settings=FinderSettings(batch_size=8), canvases=canvases)


def test_loss_follows_the_seed_and_reaches_every_weight(drawn_faces: LandmarkSamples) -> None:
    torch.manual_seed(0)
    network = FaceFinder(widths=FinderWidths(stem=4, shallow=4, fine=8, coarse=8, head=8))
    with torch.no_grad():
        network.read.weight.normal_(0.0, 0.1)
    objective = small_objective(drawn_faces)
    first, named = objective(network, seeded(0, 3))
    again, _ = objective(network, seeded(0, 3))
    other, _ = objective(network, seeded(0, 4))
    torch.testing.assert_close(first, again)
    assert float(first.detach()) != float(other.detach())
    assert set(named) == {"score", "centre", "side", "turn"}
    first.backward()
    silent = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


def test_learns_to_find_drawn_faces(drawn_faces: LandmarkSamples) -> None:
    torch.manual_seed(0)
    network = FaceFinder(widths=FinderWidths(stem=8, shallow=16, fine=24, coarse=32, head=24))
    objective = small_objective(drawn_faces)
    optimizer = Muon(network.parameters(), lr=1e-2)
    steps = 140
    for step in range(steps):
        # With a rate that ends low, the last batches do not decide what passes for a face.
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1.0 + np.cos(np.pi * step / steps))
        loss, _ = objective(network, seeded(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    settings = CanvasSettings(face_shares=(0.2, 0.8), tilted_share=0.0, smallest_px=20.0, largest=0.9, decoys=0.3)
    photos = CanvasComposer(drawn_faces, size_px=128, settings=settings).compose(60, np.random.default_rng(7))
    found = find_faces(network.eval(), list(photos.images), min_score=0.5)
    hits = [
        any(
            np.linalg.norm(centre - photos.centre[face]) < 0.3 * photos.side[face]
            and abs(np.log(side / photos.side[face])) < 0.4
            for centre, side in zip(found[row].centre, found[row].side, strict=True)
        )
        for face, row in enumerate(photos.canvas)
        if photos.visible[face] > 0.9
    ]
    assert len(hits) > 10
    assert np.mean(hits) > 0.7
    assert sum(map(len, found)) < 1.6 * len(photos.side)


@pytest.mark.parametrize("weight", ["centre_weight", "side_weight", "turn_weight"])
def test_weights_of_the_terms_count(drawn_faces: LandmarkSamples, weight: str) -> None:
    torch.manual_seed(0)
    network = FaceFinder(widths=FinderWidths(stem=4, shallow=4, fine=8, coarse=8, head=8)).eval()
    light, named = FinderObjective(drawn_faces, settings=FinderSettings(4))(network, seeded(0, 0))
    settings = FinderSettings(4, **{weight: 10.0 + getattr(FinderSettings(), weight)})
    heavy, _ = FinderObjective(drawn_faces, settings=settings)(network, seeded(0, 0))
    torch.testing.assert_close(heavy - light, 10.0 * named[weight.removesuffix("_weight")])
