from __future__ import annotations

import pytest
import torch

from models.face.morphable import MorphableModel
from models.types import LANDMARK_COUNT, PART_NAMES
from tests.tiny_face import tiny_face


def test_sizes(face: MorphableModel) -> None:
    assert (face.vertex_count, face.identity_size, face.expression_size, face.albedo_size) == (210, 4, 3, 2)


def test_vertices_are_linear_in_the_coefficients(face: MorphableModel) -> None:
    identity = torch.tensor([[1.0, 0.0, 0.0, -2.0], [0.0, 0.5, 0.0, 0.0]])
    expression = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.25]])
    found = face.vertices(identity, expression)
    torch.testing.assert_close(found[0], face.mean + face.identity_basis[0] - 2 * face.identity_basis[3])
    by_hand = face.mean + 0.5 * face.identity_basis[1] + face.expression_basis[0] + 0.25 * face.expression_basis[2]
    torch.testing.assert_close(found[1], by_hand)
    torch.testing.assert_close(face.vertices(torch.zeros(2, 4)), face.mean.expand(2, -1, -1))


def test_albedo_is_linear_and_stays_between_black_and_white(face: MorphableModel) -> None:
    found = face.albedo(torch.tensor([[1.0, 0.0], [100.0, 0.0], [-100.0, 0.0]]))
    torch.testing.assert_close(found[0], face.albedo_mean + face.albedo_basis[0])
    assert (found[1] == 1).all()
    assert (found[2] == 0).all()


def test_landmarks_are_vertices(face: MorphableModel) -> None:
    found = face.landmarks(face.mean[None])
    assert found.shape == (1, LANDMARK_COUNT, 3)
    assert torch.equal(found[0, 67], face.mean[-1])


def test_landmarks_may_lie_within_triangles() -> None:
    corners = torch.randint(0, 210, (LANDMARK_COUNT, 3), generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.2, 0.5, 0.3]).expand(LANDMARK_COUNT, 3)
    plain = tiny_face()
    arrays = {key: buffer for key, buffer in plain.named_buffers() if not key.startswith("landmark")}
    model = MorphableModel(
        name="within",
        licence="none",
        expression_names=plain.expression_names,
        landmark_vertices=corners,
        landmark_weights=weights,
        **arrays,
    )
    identity, expression = torch.randn(2, 4), torch.randn(2, 3)
    vertices = model.vertices(identity, expression)
    expected = 0.2 * vertices[:, corners[:, 0]] + 0.5 * vertices[:, corners[:, 1]] + 0.3 * vertices[:, corners[:, 2]]
    torch.testing.assert_close(model.landmarks(vertices), expected)
    torch.testing.assert_close(model.landmark_points(identity, expression), expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(model.landmark_vertices, corners[:, 1])
    with pytest.raises(ValueError, match=r"landmark_vertices has shape \(68,\), expected \(68, 3\)"):
        MorphableModel(
            name="within",
            licence="none",
            expression_names=plain.expression_names,
            landmark_vertices=corners[:, 0],
            landmark_weights=weights,
            **arrays,
        )


def test_parts_cover_the_face_without_overlap(face: MorphableModel) -> None:
    assert torch.stack([face.part(name) for name in PART_NAMES]).sum(0).unique().tolist() == [1]
    with pytest.raises(ValueError, match="ears"):
        face.part("ears")


def test_the_hash_tells_models_apart_and_equal_ones_not(face: MorphableModel) -> None:
    other = tiny_face()
    assert other.content_hash() == face.content_hash()
    other.uv[0, 0] += 1e-3
    assert other.content_hash() != face.content_hash()
    renamed = tiny_face()
    renamed.expression_names = ("jawOpen", "eyeBlinkRight", "eyeBlinkLeft")
    assert renamed.content_hash() != face.content_hash()


def test_the_model_stays_out_of_checkpoints(face: MorphableModel) -> None:
    assert not face.state_dict()


def test_the_stamp_says_where_the_model_comes_from(face: MorphableModel) -> None:
    expected = {"name": "tiny", "licence": "CC0-1.0", "hash": face.content_hash(), "source_sha256": ""}
    assert face.stamp() == expected
    arrays = {key: buffer for key, buffer in face.named_buffers() if not key.startswith("landmark")}
    read = MorphableModel(
        name="read",
        licence="none",
        expression_names=face.expression_names,
        landmark_vertices=face.landmark_vertices,
        source_sha256="ab" * 32,
        **arrays,
    )
    assert read.stamp() == {"name": "read", "licence": "none", "hash": face.content_hash(), "source_sha256": "ab" * 32}
