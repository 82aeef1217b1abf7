"""Training of the landmark network on a handful of drawings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.landmarks.cascade import HierarchicalDetector, detector_content, load_hierarchical
from models.landmarks.framing import box_side
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths
from models.landmarks.learning import (
    AveragedNetwork,
    LandmarkObjective,
    LandmarkSamples,
    ObjectiveSettings,
    coordinate_modes,
    copy_distance,
    dense_modes,
)
from models.training.loop import LoopSettings, build_fabric, train

SIZE = 64
SMALL = NetworkWidths(stem=8, patch=16, second=24, third=32, level_two=32, fused=24, hidden=64)


def start(samples: LandmarkSamples) -> AveragedNetwork[HierarchicalNetwork]:
    torch.manual_seed(0)
    modes = coordinate_modes(samples, size_px=SIZE, generator=np.random.default_rng(0))
    return AveragedNetwork(HierarchicalNetwork(SIZE, widths=SMALL, modes=modes), decay=0.9)


def fit(
    samples: LandmarkSamples,
    averaged: AveragedNetwork[HierarchicalNetwork],
    *,
    steps: int,
    progress: Path,
    kill_after: int | None = None,
    rows: np.ndarray | None = None,
) -> None:
    if rows is None:
        rows = np.stack([np.repeat(np.arange(24), 2), np.tile([0, 1], 24)], 1)
    objective = LandmarkObjective(
        samples, rows, settings=ObjectiveSettings(batch_size=16, faceless_share=0.25), size_px=SIZE
    )

    def validate(network: nn.Module) -> dict[str, float]:
        if averaged.steps_taken() > (steps if kill_after is None else kill_after):
            raise KeyboardInterrupt
        return {"score": -float(averaged.steps_taken())}

    train(
        build_fabric(device="cpu", precision="32-true"),
        averaged,
        settings=LoopSettings(
            steps=steps,
            learning_rate=4e-3,
            warmup_steps=2,
            weight_decay=1e-4,
            clip_norm=10.0,
            validate_every=4,
            patience=1000,
            seed=0,
            optimizer="muon",
        ),
        loss=objective,
        validate=validate,
        progress_folder=progress,
        fingerprint="test",
        name="train_detector",
    )


@pytest.fixture(scope="module")
def detector(drawn_faces: LandmarkSamples, tmp_path_factory: pytest.TempPathFactory) -> HierarchicalDetector:
    """A detector that has seen the drawings for some seconds."""
    averaged = start(drawn_faces)
    fit(drawn_faces, averaged, steps=150, progress=tmp_path_factory.mktemp("progress"))
    content = detector_content(averaged.average, mean_shape=drawn_faces.mean_shape, sigma_scale=1.0)
    return load_hierarchical(content)


def mean_error(detector: HierarchicalDetector, samples: LandmarkSamples) -> float:
    found = detector.detect(samples.images)
    errors = [
        np.linalg.norm(one.landmarks - points, axis=1).mean() / side
        for one, points, side in zip(found, samples.points, box_side(samples.points), strict=True)
        if one is not None
    ]
    assert len(errors) >= 20
    return float(np.mean(errors))


def test_overfits_a_few_drawings(detector: HierarchicalDetector, drawn_faces: LandmarkSamples) -> None:
    assert mean_error(detector, drawn_faces) < 0.04


def test_photo_without_a_face(detector: HierarchicalDetector) -> None:
    flat = np.full((96, 96, 3), 60, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3)).astype(np.uint8)
    assert detector.detect([flat, noise]) == [None, None]


def test_no_photos(detector: HierarchicalDetector) -> None:
    assert detector.detect([]) == []


def test_small_face_in_a_large_photo_is_found_by_the_windows(
    detector: HierarchicalDetector, drawn_faces: LandmarkSamples
) -> None:
    photo = np.full((200, 260, 3), 50, np.uint8)
    photo[90:186, 20:116] = drawn_faces.images[0]
    found = detector.detect([photo])[0]
    assert found is not None
    error = np.linalg.norm(found.landmarks - (drawn_faces.points[0] + [20, 90]), axis=1).mean()
    assert error < 0.1 * box_side(drawn_faces.points[:1])[0]


def test_resumed_run_ends_with_the_same_weights(drawn_faces: LandmarkSamples, tmp_path: Path) -> None:
    undisturbed, killed, resumed = (start(drawn_faces) for _ in range(3))
    fit(drawn_faces, undisturbed, steps=8, progress=tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        # The validation after four steps is saved, the one after eight kills.
        fit(drawn_faces, killed, steps=8, progress=tmp_path / "second", kill_after=4)
    assert list((tmp_path / "second").iterdir())
    fit(drawn_faces, resumed, steps=8, progress=tmp_path / "second")
    for name, weight in undisturbed.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_copies_warped_back_agree_with_the_real_crops(drawn_faces: LandmarkSamples) -> None:
    rows = np.stack([np.arange(24), np.arange(24) % 2], 1)
    objective = LandmarkObjective(drawn_faces, rows, settings=ObjectiveSettings(batch_size=8), size_px=SIZE)
    batch = objective._batch(np.random.default_rng(0))
    copies = batch.faces - batch.real
    distance = copy_distance(batch.points[:copies], batch.points[batch.real :], warp=batch.warp)
    torch.testing.assert_close(distance, torch.zeros(copies), atol=1e-3, rtol=0)


def test_average_follows_the_weights(drawn_faces: LandmarkSamples) -> None:
    averaged = start(drawn_faces).train()
    with torch.no_grad():
        for parameter in averaged.network.parameters():
            parameter.fill_(1.0)
    for _ in range(200):
        averaged._follow()
    for parameter in averaged.average.parameters():
        torch.testing.assert_close(parameter, torch.ones_like(parameter), atol=1e-3, rtol=0)
    assert not any(parameter.requires_grad for parameter in averaged.average.parameters())


def test_modes_span_the_targets(drawn_faces: LandmarkSamples) -> None:
    mean, modes = coordinate_modes(drawn_faces, size_px=SIZE, generator=np.random.default_rng(0))
    assert mean.shape == (136,)
    assert modes.shape == (136, 136)
    # Orthogonal rows, longest first: a step of the same length in each is a typical change of the points.
    gram = modes @ modes.T
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)
    assert bool((gram.diagonal().diff() <= 1e-6).all())


def test_batches_hold_their_share_of_annotated_photos(drawn_faces: LandmarkSamples) -> None:
    convention = np.zeros(24, np.int64)
    convention[:3] = 1
    mixed = replace(drawn_faces, convention=convention)
    rows = np.stack([np.arange(24), np.arange(24) % 2], 1)
    objective = LandmarkObjective(
        mixed, rows, settings=ObjectiveSettings(batch_size=16, annotated_share=0.25), size_px=SIZE
    )
    batch = objective._batch(np.random.default_rng(0))
    assert batch.convention is not None
    assert int((batch.convention[:16] == 1).sum()) == 4
    # All of one kind: no shares, no maps.
    alone = LandmarkObjective(
        replace(drawn_faces, convention=np.ones(24, np.int64)),
        rows,
        settings=ObjectiveSettings(batch_size=8),
        size_px=SIZE,
    )
    assert alone._batch(np.random.default_rng(0)).convention is None


def test_conventions_learn_their_shift(drawn_faces: LandmarkSamples, tmp_path: Path) -> None:
    """Half of the photos have their points lower by a twelfth of the face: the map learns it, the points stay."""
    shift = np.array([0.0, 5.0], np.float32)
    points = np.concatenate([drawn_faces.points, drawn_faces.points + shift])
    mixed = LandmarkSamples(
        [*drawn_faces.images, *drawn_faces.images], points, drawn_faces.mean_shape, convention=np.repeat([0, 1], 24)
    )
    averaged = start(mixed)
    fit(mixed, averaged, steps=150, progress=tmp_path, rows=np.stack([np.arange(48), np.zeros(48, np.int64)], 1))
    content = detector_content(averaged.average, mean_shape=mixed.mean_shape, sigma_scale=1.0)
    found = {
        name: load_hierarchical(content, convention=name).detect(drawn_faces.images) for name in ("model", "annotated")
    }
    apart = [
        (annotated.landmarks - model.landmarks).mean(0)
        for model, annotated in zip(found["model"], found["annotated"], strict=True)
        if model is not None and annotated is not None
    ]
    assert len(apart) >= 20
    assert np.mean(apart, 0) == pytest.approx(shift, abs=1.2)


def test_known_shifts_are_learned_from_renders_alone(drawn_faces: LandmarkSamples) -> None:
    """Photos say 5 pixels, renders 2: the map gets no gradient from the photos."""
    told = drawn_faces.points + np.array([0.0, 2.0], np.float32)
    told[::4] = np.nan
    lower = drawn_faces.points + np.array([0.0, 5.0], np.float32)
    mixed = LandmarkSamples(
        [*drawn_faces.images, *drawn_faces.images],
        np.concatenate([drawn_faces.points, lower]),
        drawn_faces.mean_shape,
        convention=np.repeat([0, 1], 24),
        annotated=np.concatenate([told, np.full_like(told, np.nan)]),
    )
    rows = np.stack([np.arange(48), np.zeros(48, np.int64)], 1)
    settings = ObjectiveSettings(batch_size=16, shift_weight=1.0)
    gradients = []
    for weight in (0.0, 1.0):
        network = start(mixed).network
        objective = LandmarkObjective(mixed, rows, settings=replace(settings, shift_weight=weight), size_px=SIZE)
        loss, named = objective(network, torch.Generator().manual_seed(1))
        loss.backward()
        gradients.append(network.conventions[0].shift.grad)
    assert float(named["shift"]) > 0.0
    photos, renders = gradients
    assert photos is None or float(photos.abs().max()) == 0.0
    # Downhill is towards larger shifts downwards.
    assert bool((renders[:, 1] < 0.0).all())


def test_trust_scales_the_error(drawn_faces: LandmarkSamples) -> None:
    rows = np.stack([np.arange(24), np.zeros(24, np.int64)], 1)
    settings = ObjectiveSettings(batch_size=8, likelihood_weight=0.0, presence_weight=0.0)
    generator = torch.Generator().manual_seed(3)
    losses = []
    for weight in (None, np.full(24, 0.5)):
        objective = LandmarkObjective(replace(drawn_faces, weight=weight), rows, settings=settings, size_px=SIZE)
        network = start(drawn_faces).train()
        losses.append(float(objective(network, generator)[0].detach()))
    assert losses[1] == pytest.approx(0.5 * losses[0], rel=1e-4)


DENSE_MIRROR = np.arange(15, -1, -1)


def halfway(points: np.ndarray) -> np.ndarray:
    """Points between neighbours of the jaw (N, 16, 2)."""
    return (points[:, :16] + points[:, 1:17]) / 2.0


@pytest.fixture
def dense_faces(drawn_faces: LandmarkSamples) -> LandmarkSamples:
    """Two thirds of the drawings with dense points."""
    dense = halfway(drawn_faces.points)
    dense[::3] = np.nan
    return replace(drawn_faces, dense=dense, dense_mirror=DENSE_MIRROR)


ROWS = np.stack([np.repeat(np.arange(24), 2), np.tile([0, 1], 24)], 1)


class TestDensePoints:
    def test_they_follow_the_crops_and_change_nothing_else(
        self, drawn_faces: LandmarkSamples, dense_faces: LandmarkSamples
    ) -> None:
        batches = [
            LandmarkObjective(samples, ROWS, settings=ObjectiveSettings(batch_size=16), size_px=SIZE)._batch(
                np.random.default_rng(2)
            )
            for samples in (drawn_faces, dense_faces)
        ]
        assert batches[0].dense is None
        assert torch.equal(batches[0].images, batches[1].images)
        assert torch.equal(batches[0].points, batches[1].points)
        dense, expected = batches[1].dense, torch.from_numpy(halfway(batches[1].points.numpy()))
        assert dense is not None
        known = dense.isfinite().all(2).all(1)
        assert 0 < int(known.sum()) < len(known)
        torch.testing.assert_close(dense[known], expected[known], atol=1e-3, rtol=0)

    def test_the_rest_of_the_network_starts_the_same(self, dense_faces: LandmarkSamples) -> None:
        modes = dense_modes(dense_faces, size_px=SIZE, generator=np.random.default_rng(0))
        torch.manual_seed(3)
        without = HierarchicalNetwork(SIZE, widths=SMALL).state_dict()
        torch.manual_seed(3)
        network = HierarchicalNetwork(SIZE, widths=SMALL, dense_points=16, dense_modes=modes).state_dict()
        assert {name for name in network if name not in without} == {
            f"dense_head.{name}"
            for name in ("mean", "directions", *(f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")))
        }
        for name, weight in without.items():
            assert torch.equal(weight, network[name]), name

    def test_modes_come_from_those_that_are_known(self, dense_faces: LandmarkSamples) -> None:
        mean, modes = dense_modes(dense_faces, size_px=SIZE, generator=np.random.default_rng(0))
        assert mean.shape == (32,)
        assert modes.shape == (32, 32)
        assert bool(mean.isfinite().all() and modes.isfinite().all())
        # The jaw hangs below the middle of the crop, level on both sides, since half of the crops are mirrored.
        middle = mean.unflatten(0, (16, 2))
        torch.testing.assert_close(middle, middle.flip(0) * torch.tensor([-1.0, 1.0]), atol=0.02, rtol=0)
        assert middle[7:9, 1].min() > 0.15

    def test_at_most_so_many_modes(self, drawn_faces: LandmarkSamples) -> None:
        many = np.tile(drawn_faces.points, (1, 2, 1))
        samples = replace(drawn_faces, dense=many, dense_mirror=np.arange(136))
        mean, modes = dense_modes(samples, size_px=SIZE, generator=np.random.default_rng(0))
        assert (len(mean), tuple(modes.shape)) == (272, (160, 272))
        assert HierarchicalNetwork(SIZE, widths=SMALL, dense_points=136, dense_modes=(mean, modes)).dense_points == 136

    def test_nothing_known(self, drawn_faces: LandmarkSamples) -> None:
        generator = np.random.default_rng(0)
        with pytest.raises(ValueError, match="no dense points"):
            dense_modes(drawn_faces, size_px=SIZE, generator=generator)
        unknown = replace(drawn_faces, dense=np.full((24, 16, 2), np.nan), dense_mirror=DENSE_MIRROR)
        with pytest.raises(ValueError, match="of no photo are known"):
            dense_modes(unknown, size_px=SIZE, generator=generator)

    def test_a_few_steps_bring_them_closer(self, dense_faces: LandmarkSamples, tmp_path: Path) -> None:
        torch.manual_seed(0)
        modes = [make(dense_faces, size_px=SIZE, generator=np.random.default_rng(0)) for make in MODES]
        network = HierarchicalNetwork(SIZE, widths=SMALL, modes=modes[0], dense_points=16, dense_modes=modes[1])
        averaged = AveragedNetwork(network, decay=0.9)
        errors = [dense_error(averaged.average, dense_faces)]
        fit(dense_faces, averaged, steps=60, progress=tmp_path)
        errors.append(dense_error(averaged.average, dense_faces))
        # Those whose dense points were never shown find theirs as well.
        assert errors[1] < 0.6 * errors[0]


def widened(points: np.ndarray) -> np.ndarray:
    """The jaw, farther out than its points (N, 17, 2)."""
    middle = points.mean(1, keepdims=True)
    return middle + 1.2 * (points[:, :17] - middle)


@pytest.fixture
def outlined_faces(drawn_faces: LandmarkSamples) -> LandmarkSamples:
    """Two thirds of the drawings with their outline."""
    outline = widened(drawn_faces.points)
    outline[::3] = np.nan
    return replace(drawn_faces, outline=outline)


class TestOutlines:
    def test_they_follow_the_crops_and_change_nothing_else(
        self, drawn_faces: LandmarkSamples, outlined_faces: LandmarkSamples
    ) -> None:
        batches = [
            LandmarkObjective(samples, ROWS, settings=ObjectiveSettings(batch_size=16), size_px=SIZE)._batch(
                np.random.default_rng(2)
            )
            for samples in (drawn_faces, outlined_faces)
        ]
        assert batches[0].outline is None
        assert torch.equal(batches[0].images, batches[1].images)
        assert torch.equal(batches[0].points, batches[1].points)
        outline, expected = batches[1].outline, torch.from_numpy(widened(batches[1].points.numpy()))
        assert outline is not None
        known = outline.isfinite().all(2).all(1)
        assert 0 < int(known.sum()) < len(known)
        # Mirrored crops are among them, and have the jaw in its usual order.
        torch.testing.assert_close(outline[known], expected[known], atol=1e-3, rtol=0)

    def test_unknown_outlines_teach_nothing(self, drawn_faces: LandmarkSamples) -> None:
        losses = []
        for outline in (None, np.full((24, 17, 2), np.nan, np.float32)):
            samples = replace(drawn_faces, outline=outline)
            objective = LandmarkObjective(samples, ROWS, settings=ObjectiveSettings(batch_size=4), size_px=SIZE)
            torch.manual_seed(0)
            network = HierarchicalNetwork(SIZE, widths=SMALL, outline=True)
            loss, named = objective(network, torch.Generator().manual_seed(1))
            losses.append(float(loss.detach()))
        assert float(named["outline"]) == 0.0
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)

    def test_a_few_steps_bring_them_closer(self, outlined_faces: LandmarkSamples, tmp_path: Path) -> None:
        torch.manual_seed(0)
        modes = coordinate_modes(outlined_faces, size_px=SIZE, generator=np.random.default_rng(0))
        network = HierarchicalNetwork(SIZE, widths=SMALL, modes=modes, outline=True)
        averaged = AveragedNetwork(network, decay=0.9)
        fit(outlined_faces, averaged, steps=60, progress=tmp_path)
        rows = np.stack([np.arange(0, 24, 3), np.arange(8) % 2], 1)
        objective = LandmarkObjective(
            replace(outlined_faces, outline=None), rows, settings=ObjectiveSettings(batch_size=8), size_px=SIZE
        )
        batch = objective._batch(np.random.default_rng(5))
        with torch.no_grad():
            output = averaged.average.eval()(batch.images[:8])
        expected = torch.from_numpy(widened(batch.points[:8].numpy()))
        # Those whose outline was never shown find theirs as well, closer than the jaw of their points.
        found, jaw = ((one - expected).norm(dim=2).mean() for one in (output.outline, output.points[:, :17]))
        assert found < 0.7 * jaw


LAYERS = ("coefficients", "log_sigma")
MODES = (coordinate_modes, dense_modes)


@torch.no_grad()
def dense_error(network: HierarchicalNetwork, samples: LandmarkSamples) -> float:
    """Mean distance in tight crops of those faces that have no dense points in training, in pixels."""
    every = replace(samples, dense=None)
    rows = np.stack([np.arange(0, 24, 3), np.arange(8) % 2], 1)
    objective = LandmarkObjective(every, rows, settings=ObjectiveSettings(batch_size=8), size_px=SIZE)
    batch = objective._batch(np.random.default_rng(5))
    found = network.eval()(batch.images[:8]).dense
    return float((found - torch.from_numpy(halfway(batch.points[:8].numpy()))).norm(dim=2).mean())
