from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.face.morphable import MorphableModel
from models.training.data import (
    JITTER,
    CropSet,
    PersonGroups,
    draw_chance,
    draw_indices,
    draw_persons,
    make_batch,
    split_counts,
)
from models.types import MIRRORED_LANDMARKS
from tests.tiny_face import tiny_crops

SIZE_PX = 16


@pytest.fixture(scope="module")
def crops(face: MorphableModel) -> CropSet:
    return tiny_crops(face, 12, size_px=SIZE_PX)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mirroring_twice_changes_nothing() -> None:
    order = torch.tensor(MIRRORED_LANDMARKS)
    assert order[order].tolist() == list(range(68))


@pytest.mark.parametrize(
    ("point", "mirrored"), [(0, 16), (8, 8), (17, 26), (27, 27), (30, 30), (31, 35), (36, 45), (37, 44), (41, 46)]
)
def test_mirrored_points_by_the_annotation_scheme(point: int, mirrored: int) -> None:
    assert MIRRORED_LANDMARKS[point] == mirrored


@pytest.mark.parametrize(
    ("point", "mirrored"), [(48, 54), (51, 51), (57, 57), (59, 55), (60, 64), (62, 62), (66, 66), (67, 65), (39, 42)]
)
def test_mirrored_lips_by_the_annotation_scheme(point: int, mirrored: int) -> None:
    assert MIRRORED_LANDMARKS[point] == mirrored


def test_crops_are_gathered(face: MorphableModel, crops: CropSet) -> None:
    batch = make_batch(crops, torch.tensor([3, 0, 3]), model=face, source="photos", labelled=False)
    assert batch.sample_ids == ("sample-3", "sample-0", "sample-3")
    torch.testing.assert_close(batch.image, crops.images[[3, 0, 3]].float() / 255)
    assert torch.equal(batch.landmarks, crops.landmarks[[3, 0, 3]])
    assert torch.equal(batch.person, crops.person[[3, 0, 3]])
    assert batch.camera.size == (SIZE_PX, SIZE_PX)
    assert batch.scan is None


def test_the_mask_is_where_the_photo_is(face: MorphableModel, crops: CropSet) -> None:
    affine = crops.affine.clone()
    affine[2, 0, 2] = -4.0
    batch = make_batch(replace(crops, affine=affine), torch.tensor([1, 2]), model=face, source="photos", labelled=False)
    assert batch.mask[0].all()
    assert not batch.mask[1, :, :4].any()
    assert batch.mask[1, :, 4:].all()


def test_labels_are_the_meshes_of_the_crops(face: MorphableModel, crops: CropSet) -> None:
    batch = make_batch(crops, torch.tensor([5, 4]), model=face, source="scans", labelled=True)
    assert batch.scan is not None
    expected = crops.vertices[crops.mesh_index[[5, 4]]]
    assert torch.equal(batch.scan.vertices, expected)
    assert torch.equal(batch.scan.landmarks, expected[:, face.landmark_vertices])
    torch.testing.assert_close(batch.scan.normals.norm(dim=2), torch.ones(2, face.vertex_count))


def test_a_labelled_crop_without_a_mesh_is_an_error(face: MorphableModel, crops: CropSet) -> None:
    bare = replace(crops, mesh_index=torch.full_like(crops.mesh_index, -1))
    with pytest.raises(ValueError, match="sample sample-4 of source scans has no mesh"):
        make_batch(bare, torch.tensor([4]), model=face, source="scans", labelled=True)


def test_points_and_image_are_mirrored_together(face: MorphableModel, crops: CropSet) -> None:
    # A bright pixel under one point of each pair tells where that point is.
    images = torch.zeros_like(crops.images)
    landmarks = torch.full_like(crops.landmarks, 0.5)
    landmarks[:, 36] = torch.tensor([3.5, 5.5])
    images[:, :, 5, 3] = 255
    affine = crops.affine.clone()
    affine[:, 0, 2] = -2.0
    confidence = torch.linspace(0, 1, 68).expand(12, 68)
    marked = replace(crops, images=images, landmarks=landmarks, affine=affine, confidence=confidence)
    indices = torch.zeros(40, dtype=torch.int64)
    chance = draw_chance(40, labelled=False, generator=seeded())
    batch = make_batch(marked, indices, model=face, source="photos", labelled=False, chance=chance)
    flipped = batch.image[:, 0, 5, SIZE_PX - 4] == 1
    assert 8 < flipped.sum() < 32
    points = torch.where(flipped[:, None], batch.landmarks[:, 45], batch.landmarks[:, 36])
    found = batch.image[torch.arange(40), 0, points[:, 1].long(), points[:, 0].long()]
    assert (found == 1).all()
    confident = torch.where(flipped, batch.confidence[:, 45], batch.confidence[:, 36])
    torch.testing.assert_close(confident, confidence[0, 36].expand(40))
    # The two columns outside the photo change sides, too.
    assert not batch.mask[~flipped][:, :, :2].any()
    assert batch.mask[~flipped][:, :, 2:].all()
    assert not batch.mask[flipped][:, :, -2:].any()
    assert batch.mask[flipped][:, :, :-2].all()


def test_labelled_crops_change_in_brightness_only(face: MorphableModel, crops: CropSet) -> None:
    grey = replace(crops, images=torch.full_like(crops.images, 128))
    indices = torch.zeros(200, dtype=torch.int64)
    chance = draw_chance(200, labelled=True, generator=seeded())
    batch = make_batch(grey, indices, model=face, source="scans", labelled=True, chance=chance)
    assert torch.equal(batch.landmarks, crops.landmarks[indices])
    levels = batch.image.flatten(1)
    assert (levels == levels[:, :1]).all()
    spread = levels[:, 0] - 128 / 255
    assert spread.abs().max() <= JITTER + 0.01
    assert spread.min() < -0.8 * JITTER
    assert spread.max() > 0.8 * JITTER


@pytest.mark.parametrize("labelled", [False, True])
def test_the_same_seed_makes_the_same_batch(face: MorphableModel, crops: CropSet, labelled: bool) -> None:
    def draw(seed: int) -> torch.Tensor:
        indices = torch.arange(8)
        chance = draw_chance(8, labelled=labelled, generator=seeded(seed))
        return make_batch(crops, indices, model=face, source="scans", labelled=labelled, chance=chance).image

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("labelled", [False, True])
def test_parts_of_a_batch_are_augmented_as_in_the_whole(face: MorphableModel, crops: CropSet, labelled: bool) -> None:
    indices = torch.tensor([1, 3, 5, 7, 9])
    chance = draw_chance(5, labelled=labelled, generator=seeded())
    whole = make_batch(crops, indices, model=face, source="scans", labelled=labelled, chance=chance)
    parts = [
        make_batch(crops, indices[part], model=face, source="scans", labelled=labelled, chance=chance[:, part])
        for part in (slice(0, 2), slice(2, 5))
    ]
    assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
    assert torch.equal(torch.cat([part.landmarks for part in parts]), whole.landmarks)
    assert torch.equal(torch.cat([part.mask for part in parts]), whole.mask)


def test_crops_are_found_by_source(crops: CropSet) -> None:
    assert crops.of_source("scans").tolist() == [1, 3, 5, 7, 9, 11]
    assert crops.of_source("nowhere").tolist() == []
    assert len(crops) == 12


def test_draws_follow_the_weights() -> None:
    pool = torch.tensor([10, 20, 30])
    weights = torch.tensor([0.6, 0.3, 0.1])
    drawn = draw_indices(pool, 20000, weights=weights, generator=seeded())
    shares = torch.stack([(drawn == value).float().mean() for value in pool])
    torch.testing.assert_close(shares, weights, atol=0.02, rtol=0)
    even = draw_indices(pool, 20000, weights=None, generator=seeded())
    torch.testing.assert_close((even == 20).float().mean(), torch.tensor(1 / 3), atol=0.02, rtol=0)


def test_labels_of_no_quality_are_still_drawn_now_and_then() -> None:
    drawn = draw_indices(torch.tensor([4, 5]), 50, weights=torch.tensor([0.0, torch.nan]), generator=seeded())
    assert set(drawn.tolist()) == {4, 5}


part = st.floats(1e-6, 1.0)


@given(parts=st.lists(part, min_size=1, max_size=6), room=st.integers(0, 250))
def test_counts_fill_the_batch_and_follow_the_shares(parts: list[float], room: int) -> None:
    batch_size = len(parts) + room
    shares = {f"source{place}": part / sum(parts) for place, part in enumerate(parts)}
    counts = split_counts(shares, batch_size)
    assert sum(counts.values()) == batch_size
    assert min(counts.values()) >= 1
    if min(shares.values()) * batch_size >= 1:
        assert all(abs(counts[name] - share * batch_size) < 1 + 1e-9 for name, share in shares.items())


@pytest.mark.parametrize(
    ("shares", "batch_size", "expected"),
    [
        ({"a": 0.5, "b": 0.5}, 32, {"a": 16, "b": 16}),
        ({"a": 2 / 3, "b": 1 / 3}, 32, {"a": 21, "b": 11}),
        ({"a": 0.75, "b": 0.25}, 32, {"a": 24, "b": 8}),
        ({"a": 0.99, "b": 0.01}, 10, {"a": 9, "b": 1}),
        ({"a": 1.0}, 7, {"a": 7}),
    ],
)
def test_counts_of_the_usual_ratios(shares: dict[str, float], batch_size: int, expected: dict[str, int]) -> None:
    assert split_counts(shares, batch_size) == expected


def test_a_batch_smaller_than_the_number_of_sources_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch_size is 1, expected at least one place for each of 2 sources"):
        split_counts({"a": 0.5, "b": 0.5}, 1)


PERSON = torch.tensor([5, 0, 5, 1, 1, 5, 9, 9, 1, 3])
"""Ten crops: three of persons 5 and 1, two of 9, one of 0 and 3."""


def grouped(*pool: int) -> PersonGroups:
    return PersonGroups.build(torch.tensor(pool or range(10)), PERSON)


def test_crops_are_grouped_by_person() -> None:
    groups = grouped(9, 2, 3, 0, 8)
    assert groups.size.tolist() == [2, 1, 2]
    members = [groups.crops[start : start + size].tolist() for start, size in zip(groups.start, groups.size)]
    assert members == [[3, 8], [9], [2, 0]]


def of_persons(count: int, photos: int, *, seed: int = 0, weights: torch.Tensor | None = None) -> torch.Tensor:
    return draw_persons(grouped(), count, photos_per_person=photos, weights=weights, generator=seeded(seed))


@given(seed=st.integers(0, 500), count=st.integers(1, 10), photos=st.integers(2, 4))
def test_a_batch_holds_photos_of_few_persons(seed: int, count: int, photos: int) -> None:
    drawn = of_persons(count, photos, seed=seed)
    assert len(drawn) == count
    sizes = torch.bincount(PERSON, minlength=10)
    found = torch.bincount(PERSON[drawn], minlength=10)
    if count <= int(sizes.clamp_max(photos).sum()):
        assert int(found.max()) <= photos
        # Nobody comes twice before all have come, and all persons but the last come with all their photos.
        assert len(set(drawn.tolist())) == count
        assert int(((found > 0) & (found < sizes.clamp_max(photos))).sum()) <= 1
    assert torch.equal(drawn, of_persons(count, photos, seed=seed))


def test_more_photos_than_there_are_begin_again() -> None:
    drawn = of_persons(25, 3)
    assert torch.bincount(drawn, minlength=10).min() >= 2


def test_all_photos_come_equally_often_where_persons_have_as_many() -> None:
    groups = PersonGroups.build(torch.arange(12), torch.arange(12) // 3)
    generator = seeded(1)
    drawn = torch.cat(
        [draw_persons(groups, 6, photos_per_person=2, weights=None, generator=generator) for _ in range(1500)]
    )
    share = torch.bincount(drawn, minlength=12) / len(drawn)
    assert (share - 1 / 12).abs().max() < 0.01


def test_good_labels_are_drawn_more_often_of_persons_too() -> None:
    groups = PersonGroups.build(torch.arange(8), torch.arange(8) // 2)
    weights = torch.tensor([3.0, 3.0, 1.0, 1.0, 1.0, 1.0, torch.nan, 0.0])
    generator = seeded(2)
    drawn = torch.cat(
        [draw_persons(groups, 2, photos_per_person=2, weights=weights, generator=generator) for _ in range(3000)]
    )
    share = torch.bincount(drawn, minlength=8) / len(drawn)
    assert share[:2].sum().item() == pytest.approx(0.6, abs=0.03)
    assert share[2:6].sum().item() == pytest.approx(0.4, abs=0.03)
