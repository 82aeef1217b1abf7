from __future__ import annotations

import pytest
import torch

from tasks.params import Params
from tasks.variants import (
    LEFT_OUT,
    STAGES,
    LabelChange,
    Variant,
    ablation_variants,
    fusion_variants,
    identity_variants,
    label_variants,
    labelled_sources,
    scaled,
    smooth_noise,
    with_changed_labels,
    without_landmarks,
)
from tests.tiny_face import tiny_crops, tiny_face
from tests.tiny_workspace import PERSONAL, UNLABELLED, personal_sources, tiny_params


def named(variants: list[Variant]) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


def losses_of(params: Params) -> set[str]:
    return {loss for stage in STAGES for source in getattr(params, stage).sources for loss in source.losses}


def test_the_ablation_holds_every_part() -> None:
    variants = named(ablation_variants(tiny_params(), {}))
    assert list(variants) == [
        *("mean_face", "optimised", "geometry", "self_supervised", "supervised", "three_stages", "refusion"),
        *(f"without_L{number}" for number in range(1, 7)),
    ]
    assert variants["self_supervised"].stages == ("train_self_supervised",)
    assert variants["supervised"].stages == ("train_supervised",)
    assert variants["refusion"].stages == (*STAGES, "refusion")
    assert {name for name, variant in variants.items() if variant.baseline} == {"mean_face", "optimised", "geometry"}


@pytest.mark.parametrize(
    ("number", "loss"),
    [(1, "photo"), (2, "landmark"), (3, "vertex"), (4, "normal"), (5, "photo_on_scan"), (6, "landmark_on_scan")],
)
def test_one_loss_is_left_out_of_every_stage(number: int, loss: str) -> None:
    params = tiny_params()
    changed = named(ablation_variants(params, {}))[f"without_L{number}"].params
    assert losses_of(params) - losses_of(changed) == {loss}
    assert losses_of(changed) < losses_of(params)


def test_a_loss_that_nobody_uses_is_no_variant() -> None:
    sources = [{"source": "scans", "share": 1.0, "losses": {"vertex": 1.0, "photo_on_scan": 1.0}}]
    variants = named(ablation_variants(tiny_params(**{stage: {"sources": sources} for stage in STAGES[1:]}), {}))
    assert {"without_L3", "without_L5"} < set(variants)
    assert not {"without_L4", "without_L6"} & set(variants)


def test_a_source_without_any_loss_left_is_refused() -> None:
    sources = [{"source": "scans", "share": 1.0, "losses": {"vertex": 1.0}}]
    with pytest.raises(ValueError, match=r"train_supervised.sources: source 'scans' has no loss but vertex"):
        ablation_variants(tiny_params(train_supervised={"sources": sources}), {})


def test_equal_time_is_equal_steps_where_nothing_was_measured() -> None:
    variants = named(ablation_variants(tiny_params(), {}))
    assert variants["self_supervised"].params.train_self_supervised.steps == 18
    assert variants["supervised"].params.train_supervised.steps == 18


def test_equal_time_counts_what_a_step_of_each_stage_costs() -> None:
    cost = {"train_self_supervised": 1.0, "train_supervised": 2.0, "train_fused": 1.5}
    variants = named(ablation_variants(tiny_params(), cost))
    # 6 + 12 + 9 seconds.
    assert variants["self_supervised"].params.train_self_supervised.steps == 27
    assert variants["supervised"].params.train_supervised.steps == 14


def test_supervised_training_alone_begins_like_stage_1() -> None:
    params = tiny_params(train_self_supervised={"learning_rate": 7e-3})
    section = named(ablation_variants(params, {}))["supervised"].params.train_supervised
    assert (section.learning_rate, section.freeze_batch_norm) == (7e-3, False)


def test_the_image_alone_has_a_plain_prior() -> None:
    changed = without_landmarks(tiny_params())
    assert "identity_anchor" not in losses_of(changed)
    assert changed.train_self_supervised.sources[0].losses["identity_prior"] == 3e-4
    assert {getattr(changed, stage).geometry_rate for stage in STAGES} == {0.0}
    # Sources without the anchor stay as they are.
    assert changed.train_supervised.sources == tiny_params().train_supervised.sources


@pytest.mark.parametrize(("factor", "steps", "validate_every"), [(0.5, 3, 2), (2.0, 12, 6), (0.01, 1, 1)])
def test_scaled_steps(factor: float, steps: int, validate_every: int) -> None:
    params = scaled(tiny_params(), factor)
    for stage in STAGES:
        assert getattr(params, stage).steps == steps
        assert getattr(params, stage).validate_every == validate_every
    assert params.refusion.steps == max(1, round(2 * factor))


def test_label_counts_as_the_workspace_allows() -> None:
    variants = named(label_variants(tiny_params(), {}, available=30))
    assert [name for name in variants if name.startswith("labels")] == ["labels_10", "labels_20", "labels_30"]
    assert variants["labels_20"].labels == LabelChange(persons=20)


def test_every_ratio_with_every_noise() -> None:
    variants = named(fusion_variants(tiny_params(), {}, noise_mm=(0.0, 2.0)))
    found = {
        (variant.params.train_fused.labelled_share, variant.labels.noise_mm)
        for name, variant in variants.items()
        if name.startswith("ratio")
    }
    assert found == {(share, noise) for share in (1 / 2, 1 / 3, 1 / 4) for noise in (0.0, 2.0)}


def test_labelled_sources() -> None:
    assert labelled_sources(tiny_params()) == ["scans"]


def test_fewer_persons_are_part_of_more() -> None:
    face = tiny_face()
    crops = tiny_crops(face, 16, size_px=32)
    kept = {}
    for persons in (2, 5):
        changed = with_changed_labels(crops, LabelChange(persons), labelled=["scans"], model=face, seed=4)
        kept[persons] = set(crops.person[changed.of_source("scans")].tolist())
        assert len(kept[persons]) == persons
        assert changed.source.count("photos") == crops.source.count("photos")
        assert changed.source.count(LEFT_OUT) == 8 - persons
    assert kept[2] < kept[5]
    other = with_changed_labels(crops, LabelChange(2), labelled=["scans"], model=face, seed=5)
    assert set(crops.person[other.of_source("scans")].tolist()) != kept[2]


def test_noise_moves_labels_and_lowers_their_quality() -> None:
    face = tiny_face()
    crops = tiny_crops(face, 8, size_px=32)
    changed = with_changed_labels(crops, LabelChange(noise_mm=2.0), labelled=["scans"], model=face, seed=0)
    distance = (changed.vertices - crops.vertices).square().sum(2).mean(1).sqrt()
    assert torch.allclose(distance, torch.full_like(distance, 2.0), atol=1e-4)
    assert torch.equal(changed.neutral, crops.neutral)
    ratio = changed.quality / crops.quality
    assert ratio[1].item() == pytest.approx(torch.exp(torch.tensor(-2.0)).item())
    assert ratio[0].item() == 1.0


def test_noise_is_smooth() -> None:
    line = torch.stack([torch.arange(200.0), torch.zeros(200), torch.zeros(200)], 1)
    field = smooth_noise(line, 3, seed=1)
    step = (field[:, 1:] - field[:, :-1]).square().sum(2).mean().sqrt()
    # Waves of 40 mm at the shortest change by less than 2π/40 of their height in a millimetre.
    assert 0.005 < step < 2 * torch.pi / 40
    assert torch.equal(field, smooth_noise(line, 3, seed=1))
    assert not torch.allclose(field[0], field[1])


def test_what_makes_faces_distinct_is_tried_alone_and_together() -> None:
    params = tiny_params(train_fused={"sources": personal_sources(), "identity_map_steps": 7})
    variants = named(identity_variants(params))
    assert list(variants) == [
        *("mean_face", "geometry", "without", "only_map"),
        *("only_separation", "only_distance_separation", "only_center", "only_distribution", "no_map", "all"),
    ]

    def stage(name: str) -> tuple[dict[str, float], int, int]:
        section = variants[name].params.train_fused
        assert section.sources[1].losses == params.train_fused.sources[1].losses
        source = section.sources[0]
        return source.losses, source.photos_per_person, section.identity_map_steps

    assert stage("without") == (UNLABELLED, 1, 0)
    assert stage("all") == ({**UNLABELLED, **PERSONAL}, 2, 7)
    assert stage("no_map") == ({**UNLABELLED, **PERSONAL}, 2, 0)
    assert stage("only_map") == ({**UNLABELLED, "center": 0.0}, 2, 7)
    assert stage("only_center") == ({**UNLABELLED, "center": PERSONAL["center"]}, 2, 0)
