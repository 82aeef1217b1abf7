from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.face.morphable import MorphableModel
from models.losses.coefficients import geometry_embedding
from models.reconstruction.confidence import ConfidenceNetwork
from tasks.identity_report import (
    COLUMNS,
    draw_confidence,
    identity_metrics,
    identity_table,
    identity_yaw_table,
    true_shapes,
)
from tasks.measure import Measured, prepare_truth
from tests.tiny_face import tiny_crops, tiny_face, tiny_photos

SIZE_PX = 32


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return tiny_face()


def persons(count: int, photos: int, *, noise: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    person = torch.arange(count).repeat_interleave(photos)
    identity = torch.randn(count, 4, generator=generator)[person]
    return identity + noise * torch.randn(count * photos, 4, generator=generator), person.numpy()


def measured_metrics(noise: float, **options: Any) -> dict[str, Any]:
    identity, person = persons(30, 3, noise=noise)
    return identity_metrics(
        identity, embedding=torch.diag(torch.tensor([3.0, 1.0, 1.0, 0.5])), person=person, **options
    )


def test_clear_faces_are_told_apart_and_blurred_ones_less() -> None:
    clear, blurred = measured_metrics(0.05), measured_metrics(1.0)
    assert clear["geometry_accuracy"] > 0.97
    assert clear["rank1_photo"] == 1.0
    for key in ("geometry_accuracy", "geometry_auc", "geometry_tar", "euclidean_auc", "cosine_auc", "distinctness"):
        assert clear[key] > blurred[key] + 0.1, key
    assert (clear["pairs_same"], clear["pairs_different"]) == (90, 90 * 89 // 2 - 90)
    for key in ("geometry_accuracy", "geometry_auc", "distinctness"):
        assert blurred[f"{key}_low"] < blurred[key] < blurred[f"{key}_high"]
    assert "rank1_neutral" not in clear


def test_bins_hold_the_pairs_of_their_angles() -> None:
    found = measured_metrics(0.3, yaw_deg=np.tile([0.0, 10.0, 70.0], 30), edges_deg=(0.0, 30.0, 60.0, 90.0))["by_yaw"]
    assert {name: part["pairs_same"] for name, part in found.items()} == {"0-30": 30, "30-60": 0, "60-90": 60}
    assert found["30-60"]["geometry_accuracy"] is None
    assert 0.5 < found["60-90"]["geometry_auc"] < 1.0


def test_without_a_second_photo_nothing_is_known() -> None:
    identity, person = persons(5, 1, noise=0.0)
    found = identity_metrics(identity, embedding=torch.eye(4), person=person)
    assert found["geometry_accuracy"] is None
    assert found["distinctness"] is None
    assert found["pairs_same"] == 0


def test_true_shapes_are_where_the_coefficients_put_them(face: MorphableModel) -> None:
    crops = tiny_crops(face, 8, size_px=SIZE_PX)
    turned = torch.tensor([[0.995, 0.0998, 0.0], [-0.0998, 0.995, 0.0], [0.0, 0.0, 1.0]])
    # However the meshes lie; those of the last person are known with their expression alone.
    neutral = crops.neutral @ turned + 20.0
    neutral[crops.mesh_index[6:]] = torch.nan
    truth = prepare_truth(face, type(crops)(**{**vars(crops), "neutral": neutral}))
    shapes, owners = true_shapes(face, truth, crops)
    assert owners.tolist() == [0, 1, 2]
    identity = tiny_photos(face, 8, size_px=SIZE_PX, seed=0)[0].identity
    # Each photo of the tiny crops has an identity of its own; the lowest mesh of a person is that of the second photo.
    expected = identity[[1, 3, 5]] @ geometry_embedding(face.identity_basis, face.mean)
    assert np.abs(shapes - expected.numpy()).max() < 0.25
    embedding = geometry_embedding(face.identity_basis, face.mean)
    found = identity_metrics(identity, embedding=embedding, person=crops.person.numpy(), gallery=(shapes, owners))
    assert found["rank1_neutral"] >= 0.5


def test_the_table_marks_the_best_and_leaves_out_what_is_unknown() -> None:
    metrics = {
        "mean_face": {"identity": {"distinctness": None}},
        "fused": {"identity": measured_metrics(1.0)},
        "refusion": {"identity": measured_metrics(0.3, yaw_deg=np.zeros(90))},
        "refined": {},
    }
    table = identity_table(metrics)
    assert [row["title"] for row in table["rows"]] == ["stage 3: fused", "re-fused"]
    assert [row["final"] for row in table["rows"]] == [False, True]
    key = [name for name, *_ in COLUMNS].index("distinctness")
    assert [row["cells"][key]["best"] for row in table["rows"]] == [False, True]
    assert table["rows"][1]["cells"][key]["interval"] != ""
    # Nobody knows true faces here.
    key = [name for name, *_ in COLUMNS].index("rank1_neutral")
    assert {(row["cells"][key]["text"], row["cells"][key]["best"]) for row in table["rows"]} == {("–", False)}
    rows = identity_yaw_table(metrics)["rows"]
    assert [row["pairs"] for row in rows] == ["90 / 3915", "0 / 0", "0 / 0"]


def test_the_map_of_confidence_is_drawn_where_there_is_one(face: MorphableModel) -> None:
    crops = tiny_crops(face, 4, size_px=SIZE_PX)
    coefficients = tiny_photos(face, 4, size_px=SIZE_PX, seed=0)[0]
    none = np.zeros(0)
    found = Measured({}, (none,), (none,), torch.zeros(0, 5), coefficients)
    assert draw_confidence({}, face, crops, found) is None
    network = ConfidenceNetwork(width=2, size_px=SIZE_PX)
    assert draw_confidence({"confidence": network.content()}, face, crops, found)[:4] == b"\x89PNG"
