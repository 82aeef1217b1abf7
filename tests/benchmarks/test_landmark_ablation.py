"""The ablation: what differs between its recipes, what its table says, and that a finished run is not repeated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import landmark_ablation
from benchmarks.landmark_ablation import Budget, crop_accuracy, markdown, measure, run_one, summarize
from benchmarks.landmark_evaluation import recipes
from benchmarks.landmark_evaluation.recipes import VARIANTS, Variant, fewer_large, train_variant, training_rows
from models.landmarks.framing import mean_face_shape
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths
from tasks.annotated_photos import AnnotatedPhotos
from tasks.params import Params, TrainDetectorParams

SMALL = NetworkWidths(stem=8, shallow=8, patch=8, second=8, third=8, level_two=8, fused=8, hidden=16, local=4)


def drawn_photos(count: int = 8) -> AnnotatedPhotos:
    """Noise with faces of 68 random points; the yaw grows from row to row."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(count)]
    points = random.uniform(16.0, 48.0, (count, 68, 2)).astype(np.float32)
    return AnnotatedPhotos(images, points, np.linspace(0.0, 80.0, count), np.zeros(count, np.int64))


@pytest.fixture
def params() -> Params:
    return Params.model_construct(
        project=SimpleNamespace(precision="32-true"),
        train_detector=TrainDetectorParams(input_size_px=64, batch_size=4),
    )


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of few channels."""
    monkeypatch.setattr(recipes, "NetworkWidths", lambda: SimpleNamespace(times=lambda factor: SMALL))


BUDGET = Budget(steps=2, large_share=None, test_photos=8, threads=1, params="0")


def test_large_poses_are_thinned_to_their_share() -> None:
    yaw = np.array([0.0, 10.0, -20.0, 5.0, 40.0, -50.0, 60.0, 70.0])
    rows = fewer_large(yaw, 0.2, limit_deg=30.0, seed=0)
    assert rows[:4].tolist() == [0, 1, 2, 3]
    assert len(rows) == 5
    assert len(fewer_large(yaw, 0.999, limit_deg=30.0, seed=0)) == 8


def test_unbalanced_rows_are_every_photo_both_ways(params: Params) -> None:
    photos = drawn_photos(6)
    rows = training_rows(photos, balanced=False, params=params, seed=0)
    assert sorted(map(tuple, rows.tolist())) == [(index, flip) for index in range(6) for flip in (0, 1)]


def test_balanced_rows_hold_as_many_large_poses_as_small_ones(params: Params) -> None:
    photos = drawn_photos(12)
    yaw = photos.yaw_deg[training_rows(photos, balanced=True, params=params, seed=0)[:, 0]]
    assert (np.abs(yaw) > 30.0).sum() == (np.abs(yaw) <= 30.0).sum()


def test_each_variant_changes_one_part() -> None:
    changed = [
        sum(getattr(variant, name) != getattr(Variant(), name) for name in ("balanced", "copies", "attention"))
        for variant in VARIANTS.values()
    ]
    assert changed == [0, 1, 1, 1]


@pytest.mark.usefixtures("narrow")
def test_variants_train_from_the_same_start_and_end_differently(params: Params, tmp_path: Path) -> None:
    photos = drawn_photos()
    ends = {}
    for name, variant in VARIANTS.items():
        network, _, seconds, steps = train_variant(
            variant, photos, params=params, steps=2, seed=1, progress_folder=tmp_path / name, fingerprint=name
        )
        assert steps == 2
        assert seconds > 0.0
        ends[name] = torch.cat([value.flatten() for value in network.parameters()])
    for name in ("unbalanced", "no copies", "softmax attention"):
        assert not torch.equal(ends["as designed"], ends[name])


def test_a_network_that_knows_the_points_has_no_error() -> None:
    photos = drawn_photos(1)
    network = HierarchicalNetwork(64, widths=SMALL).eval()
    with torch.no_grad():
        first = crop_accuracy(network, photos, shape=mean_face_shape(photos.points))
        # Untrained, it answers with the mean points wherever it looks.
        network.mean_points.copy_(torch.from_numpy(first.annotated[0].ravel() / 64 - 0.5))
    again = crop_accuracy(network, photos, shape=mean_face_shape(photos.points))
    np.testing.assert_array_equal(first.annotated, again.annotated)
    assert np.abs(again.found - again.annotated).max() < np.abs(first.found - first.annotated).max() / 2


def test_numbers_are_by_pose(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = drawn_photos()
    monkeypatch.setattr(landmark_ablation, "photo_errors", lambda *_, **__: np.array([0.02] * 6 + [0.2, np.inf]))
    network = HierarchicalNetwork(64, widths=SMALL).eval()
    row = measure(network, photos, shape=mean_face_shape(photos.points), large_pose_deg=30.0)
    assert row["failed"] == 0.25
    assert row["photo"] == 0.02
    # Yaw 0, 11, 23 are small, 34 to 80 large.
    assert row["crop"] == pytest.approx((3 * row["crop small"] + 5 * row["crop large"]) / 8)
    assert {"crop 0-15°", "crop 60-90°", "ms_per_crop"} <= row.keys()


class TestTable:
    runs = {
        "as designed": [{"seed": seed, "numbers": {"crop": 0.02, "large": 0.03}} for seed in range(3)],
        "unbalanced": [
            {"seed": seed, "numbers": {"crop": 0.02 + shift, "large": 0.04 + shift}}
            for seed, shift in enumerate([-0.001, 0.0, 0.004])
        ],
    }

    def test_means_and_agreement(self) -> None:
        table = summarize(self.runs)
        assert table[1]["mean"]["crop"] == pytest.approx(0.021)
        assert table[1]["spread"]["crop"] == pytest.approx(float(np.std([-0.001, 0.0, 0.004])))
        assert table[1]["agree"] == ["large"]
        assert table[1]["differences"]["large"] == pytest.approx([0.009, 0.01, 0.014])
        assert table[0]["agree"] == []

    def test_markdown(self) -> None:
        lines = markdown(summarize(self.runs)).splitlines()
        assert lines[0] == "| variant | seeds | crop | large |"
        assert lines[2] == "| as designed | 3 | 2.00 ± 0.00 | 3.00 ± 0.00 |"
        assert lines[3].endswith("| 4.10 ± 0.22* |")


class TestResume:
    @pytest.fixture
    def trained(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Steps asked of a training that is only pretended."""
        asked: list[int] = []

        def pretend(variant: Variant, photos: AnnotatedPhotos, *, steps: int, **_: object) -> tuple:
            asked.append(steps)
            return None, SimpleNamespace(mean_shape=None), 3.0, steps

        monkeypatch.setattr(landmark_ablation, "train_variant", pretend)
        monkeypatch.setattr(landmark_ablation, "measure", lambda *_, **__: {"crop": 0.02})
        return asked

    def test_a_finished_run_is_read_again(self, trained: list[int], params: Params, tmp_path: Path) -> None:
        photos = drawn_photos()
        first = run_one("no copies", 1, BUDGET, photos, photos, params, tmp_path)
        assert first == {"seed": 1, "numbers": {"crop": 0.02, "ms_per_step": 1500.0}}
        assert run_one("no copies", 1, BUDGET, photos, photos, params, tmp_path) == first
        assert trained == [2]

    def test_other_settings_make_it_anew(self, trained: list[int], params: Params, tmp_path: Path) -> None:
        photos = drawn_photos()
        run_one("no copies", 1, BUDGET, photos, photos, params, tmp_path)
        longer = Budget(steps=4, large_share=None, test_photos=8, threads=1, params="0")
        assert run_one("no copies", 1, longer, photos, photos, params, tmp_path)["numbers"]["ms_per_step"] == 750.0
        assert trained == [2, 4]
