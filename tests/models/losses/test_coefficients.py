from __future__ import annotations

import pytest
import torch

from models.face.alignment import rigid_alignment, transform
from models.face.morphable import MorphableModel
from models.losses.coefficients import geometry_embedding, light_chroma, squared_norm


def rigid_modes(mean: torch.Tensor) -> torch.Tensor:
    """Three shifts and three small turns of a mesh."""
    axes = torch.eye(3, dtype=mean.dtype)
    shifts = axes[:, None].expand(-1, len(mean), -1)
    return torch.cat([shifts, torch.linalg.cross(shifts, mean.expand(3, -1, -1))])


def test_squared_norm() -> None:
    assert squared_norm(torch.tensor([[1.0, -2.0], [0.0, 0.5]])).tolist() == [5.0, 0.25]


def test_white_light_has_no_chroma_and_coloured_light_has() -> None:
    lighting = torch.zeros(2, 9, 3)
    lighting[0] = torch.randn(9, 1)
    lighting[1, 0] = torch.tensor([0.6, 0.9, 0.3])
    # 0.6 is the mean; (0 + 0.09 + 0.09) over 27 numbers.
    torch.testing.assert_close(light_chroma(lighting), torch.tensor([0.0, 0.18 / 27]))


def test_embedding_measures_vertices_where_modes_move_no_head(face: MorphableModel) -> None:
    mean = face.mean.double()
    motions, _ = torch.linalg.qr((rigid_modes(mean)).flatten(1).T)
    basis = face.identity_basis.double().flatten(1)
    basis = (basis - basis @ motions @ motions.T).unflatten(1, (-1, 3))
    embedding = geometry_embedding(basis, mean)
    first, second = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offsets = torch.einsum("bi,ivc->bvc", first - second, basis)
    rms = offsets.square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(((first - second) @ embedding).norm(dim=1), rms, rtol=1e-5, atol=0)


def test_modes_that_only_move_the_head_have_no_length(face: MorphableModel) -> None:
    mean = face.mean.double()
    basis = torch.cat([face.identity_basis.double(), rigid_modes(mean)])
    embedding = geometry_embedding(basis, mean)
    lengths = embedding.norm(dim=1)
    assert lengths[:4].min() > 0.5
    # Each of them moves vertices by 1 mm or more.
    assert lengths[4:].max() < 5e-3


def test_embedding_is_the_distance_left_after_alignment(face: MorphableModel) -> None:
    mean, basis = face.mean.double(), face.identity_basis.double()
    coefficients = 0.02 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    meshes = mean + torch.einsum("bi,ivc->bvc", coefficients, basis)
    target = mean.expand_as(meshes)
    rotation, translation, _ = rigid_alignment(meshes, target)
    left = (transform(meshes, rotation, translation) - target).square().sum(2).mean(1).sqrt()
    found = (coefficients @ geometry_embedding(basis, mean)).norm(dim=1)
    torch.testing.assert_close(found, left, rtol=5e-3, atol=0)


@pytest.mark.parametrize("modes", [0, 1])
def test_few_modes_have_an_embedding(face: MorphableModel, modes: int) -> None:
    assert geometry_embedding(face.identity_basis[:modes], face.mean).shape == (modes, modes)
