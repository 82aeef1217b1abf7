from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.face.morphable import MorphableModel
from models.reconstruction.reconstructor import Reconstructor
from models.types import FaceCoefficients
from tasks import similarity_groups
from tasks.similarity_groups import (
    PROBE_PHOTOS,
    Groups,
    group_crops,
    group_rows,
    group_weights,
    probe,
    weighted_quality,
    yaw_bin,
)
from tasks.train_geometry import reconstructor_settings
from tests.tiny_face import tiny_crops, tiny_face
from tests.tiny_workspace import SIZE_PX, tiny_params


def row(
    group: str, similarity: float, *, photos: int = 10_000, weight: float = 1.0, kind: str = "yaw"
) -> dict[str, Any]:
    return {
        "split": "train",
        "kind": kind,
        "group": group,
        "photos": photos,
        "similarity": similarity,
        "label_weight": weight,
    }


TONE = row("light", 0.8, kind="tone")


@pytest.mark.parametrize(
    ("yaw", "expected"), [(0.0, "0-30"), (-29.9, "0-30"), (30.0, "30-60"), (-75.0, "60-90"), (100.0, "60-90")]
)
def test_yaw_bins(yaw: float, expected: str) -> None:
    assert yaw_bin(yaw) == expected


def test_crops_are_grouped_by_pose_tone_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    face = tiny_face()
    crops = tiny_crops(face, 12, size_px=SIZE_PX)
    reconstructor = Reconstructor(face, reconstructor_settings(tiny_params())).eval()
    asked = []

    def angles(model: MorphableModel, coefficients: FaceCoefficients, persons: np.ndarray) -> np.ndarray:
        asked.append(coefficients.albedo.shape)
        return 10.0 * persons

    monkeypatch.setattr(similarity_groups, "person_tone_deg", angles)
    groups = group_crops(reconstructor, crops)
    assert asked == [(12, face.albedo_size)]
    assert groups.source == crops.source
    assert groups.yaw == tuple(yaw_bin(yaw) for yaw in crops.yaw_deg.tolist())
    # Six persons of two photos each, with angles of 0, 10 … 50 degrees.
    assert groups.tone == (*["dark"] * 2, *["medium"] * 8, *["light"] * 2)


def test_groups_that_do_badly_weigh_more() -> None:
    rows = [row("0-30", 0.7), row("30-60", 0.9), TONE]
    weights = group_weights(rows, rows, rows)
    # Average 0.8, so 0.3 / 0.2 and 0.1 / 0.2; half a thousandth of each group counts as average.
    assert weights["yaw 0-30"] == pytest.approx(1.5, abs=1e-3)
    assert weights["yaw 30-60"] == pytest.approx(0.5, abs=1e-3)
    assert weights["tone light"] == pytest.approx(1.0)


def test_a_few_photos_sway_little() -> None:
    rows = [row("0-30", 0.8), row("60-90", 0.2, photos=1), TONE]
    weight = group_weights(rows, rows, rows)["yaw 60-90"]
    assert weight == pytest.approx((0.8 + 10 * 0.2) / 11 / 0.2, abs=1e-2)
    rows[1]["photos"] = 100
    assert group_weights(rows, rows, rows)["yaw 60-90"] == 2.0


@pytest.mark.parametrize(("reached", "helped"), [(0.72, True), (0.7, False), (0.68, False)])
def test_where_labels_did_not_help_they_are_drawn_as_before(reached: float, helped: bool) -> None:
    base = [row("0-30", 0.7), row("30-60", 0.9), TONE]
    tried = [row("0-30", reached, weight=1.5), row("30-60", 0.85, weight=0.5), TONE]
    weights = group_weights(base, tried, base)
    assert (weights["yaw 0-30"] > 1.4) is helped
    assert helped or weights["yaw 0-30"] == 1.0
    # A group that was not raised did not try in vain.
    assert weights["yaw 30-60"] == pytest.approx(0.5, abs=1e-3)


def test_rows_per_group() -> None:
    samples = [
        {
            "round": 1,
            "split": "validation",
            "source": "photos",
            "yaw": yaw,
            "tone": "dark",
            "similarity": similarity,
            "landmark_nme": 0.02,
            "vertex_error_mm": error,
        }
        for yaw, similarity, error in (
            ("0-30", 0.5, 1.0),
            ("0-30", 0.6, None),
            ("0-30", 0.9, 3.0),
            ("60-90", 0.4, None),
        )
    ]
    rows = {(row["kind"], row["group"]): row for row in group_rows(samples, {"yaw 60-90": 1.7})}
    assert set(rows) == {("yaw", "0-30"), ("yaw", "60-90"), ("tone", "dark"), ("source", "photos")}
    near, far = rows["yaw", "0-30"], rows["yaw", "60-90"]
    assert (near["photos"], near["label_weight"], far["label_weight"]) == (3, 1.0, 1.7)
    assert near["similarity"] == pytest.approx(0.6)
    assert near["vertex_error_mm"] == pytest.approx(2.0)
    assert far["vertex_error_mm"] is None


def test_quality_is_weighted_by_every_group_of_a_crop() -> None:
    crops = tiny_crops(tiny_face(), 4, size_px=32)
    groups = Groups(yaw=("0-30", "0-30", "60-90", "60-90"), tone=("dark", "light") * 2, source=crops.source)
    found = weighted_quality(crops, groups, {"yaw 60-90": 2.0, "tone dark": 1.5})
    assert torch.equal(found.nan_to_num(-1), (crops.quality * torch.tensor([1.5, 1.0, 3.0, 2.0])).nan_to_num(-1))


def test_the_probe_is_the_same_every_time_and_holds_no_labelled_photo() -> None:
    crops = tiny_crops(tiny_face(), 12, size_px=32)
    chosen = probe(crops, ["photos"], seed=3)
    assert torch.equal(chosen, probe(crops, ["photos"], seed=3))
    assert {crops.source[place] for place in chosen.tolist()} == {"photos"}
    assert len(chosen) == min(PROBE_PHOTOS, len(crops.of_source("photos")))
