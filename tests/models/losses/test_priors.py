from __future__ import annotations

import pytest
import torch

from models.face.morphable import MorphableModel
from models.face.procedural import procedural_face
from models.losses.image import photo_distance
from models.losses.priors import (
    albedo_variance,
    asymmetry_basis,
    attended_photo_distance,
    mirrored_vertices,
    skin_attention,
    symmetry_distance,
)


@pytest.fixture(scope="module")
def symmetric() -> MorphableModel:
    return procedural_face(identity_modes=6)


def lopsided(face: MorphableModel) -> MorphableModel:
    """A model with a mode that moves the left half alone, 1 mm up, and one that moves both halves alike."""
    left = (face.mean[:, 0] > face.landmark_mean[:, 0].mean()).float()
    up = torch.tensor([0.0, 1.0, 0.0])
    modes = torch.stack([left[:, None] * up, up.expand(face.vertex_count, 3)])
    return MorphableModel(
        name="lopsided",
        licence="CC0-1.0",
        mean=face.mean,
        identity_basis=modes,
        expression_basis=face.expression_basis,
        expression_names=face.expression_names,
        albedo_mean=face.albedo_mean,
        albedo_basis=face.albedo_basis,
        triangles=face.triangles,
        landmark_vertices=face.landmark_vertices,
        uv=face.uv,
        parts=face.parts,
    )


def test_mirror_images_lie_at_the_mirrored_place(symmetric: MorphableModel) -> None:
    own, other = mirrored_vertices(symmetric)
    assert len(own) > 0.95 * symmetric.vertex_count
    centre = symmetric.landmark_mean[:, 0].mean()
    mirrored = symmetric.mean[own] * torch.tensor([-1.0, 1.0, 1.0]) + torch.tensor([2.0, 0.0, 0.0]) * centre
    width = symmetric.mean[:, 0].max() - symmetric.mean[:, 0].min()
    assert (symmetric.mean[other] - mirrored).norm(dim=1).max() <= 0.02 * width


def test_a_face_that_is_its_own_mirror_image_costs_nothing(symmetric: MorphableModel) -> None:
    face = lopsided(symmetric)
    asymmetry = asymmetry_basis(face)
    cost = symmetry_distance(torch.tensor([[0.0, 0.0], [0.0, 3.0], [2.0, 0.0], [-2.0, 1.0]]), asymmetry)
    assert cost[:2].tolist() == [0.0, 0.0]
    # Each vertex beside the middle misses its image by 2 mm, those in the middle by none.
    own, other = mirrored_vertices(face)
    beside = (face.identity_basis[0, own, 1] != face.identity_basis[0, other, 1]).float().mean()
    assert beside > 0.9
    torch.testing.assert_close(cost[2:], 2.0 * beside.expand(2))


def test_symmetry_leads_back_to_the_middle(symmetric: MorphableModel) -> None:
    asymmetry = asymmetry_basis(lopsided(symmetric)).double()
    identity = torch.tensor([[0.7, -0.4]], dtype=torch.float64, requires_grad=True)
    symmetry_distance(identity, asymmetry).sum().backward()
    assert identity.grad is not None
    assert identity.grad[0, 0] > 0.5
    assert identity.grad[0, 1] == 0.0
    assert torch.autograd.gradcheck(lambda value: symmetry_distance(value, asymmetry[:, ::50]), identity)


def test_nothing_to_mirror_costs_nothing() -> None:
    assert symmetry_distance(torch.ones(2, 3), torch.zeros(3, 0, 3)).tolist() == [0.0, 0.0]


def test_variance_of_albedo_counts_skin_alone() -> None:
    albedo = torch.zeros(1, 4, 3)
    albedo[0, :, 0] = torch.tensor([0.2, 0.4, 0.9, 0.9])
    skin = torch.tensor([True, True, False, False])
    # Variance 0.01 in one channel of three.
    torch.testing.assert_close(albedo_variance(albedo, skin), torch.tensor([0.01 / 3]))
    assert albedo_variance(albedo, torch.zeros(4, dtype=torch.bool)).tolist() == [0.0]


@pytest.mark.parametrize("tone", [(0.92, 0.76, 0.66), (0.55, 0.38, 0.28), (0.22, 0.14, 0.10)])
def test_every_tone_is_its_own_reference(tone: tuple[float, float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor(tone)[:, None, None] * (1.0 + 0.1 * torch.randn(1, 1, 20, 20, generator=generator))
    image = image.clone()
    image[:, :, :4] = torch.tensor([0.1, 0.3, 0.7])[:, None, None]
    skin = torch.ones(1, 20, 20, dtype=torch.bool)
    skin[:, :, :2] = False
    attention = skin_attention(image, skin)[0]
    assert attention[4:, 2:].mean() > 0.9
    assert attention[:4, 2:].max() < 0.05
    assert attention[:, :2].max() == 0.0


def test_no_skin_no_attention() -> None:
    attention = skin_attention(torch.rand(1, 3, 5, 5), torch.zeros(1, 5, 5, dtype=torch.bool))
    assert attention.abs().max() == 0.0
    image, other = torch.rand(1, 3, 5, 5), torch.rand(1, 3, 5, 5)
    assert attended_photo_distance(image, other, attention=attention).tolist() == [0.0]


def test_full_attention_is_the_photo_distance() -> None:
    image, other = torch.rand(2, 2, 3, 6, 6).unbind(0)
    attention = torch.ones(2, 6, 6)
    attention[:, 3:] = 0.0
    expected = photo_distance(image, other, mask=attention.bool())
    torch.testing.assert_close(attended_photo_distance(image, other, attention=attention), expected)
    # Half of the attention everywhere changes nothing.
    torch.testing.assert_close(attended_photo_distance(image, other, attention=0.5 * attention), expected)
