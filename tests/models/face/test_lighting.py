"""The constants of the light against the integral that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.face.lighting import ambient_light, irradiance, irradiance_basis

NORMALS = torch.nn.functional.normalize(
    torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.3, -0.5, 0.8], [-0.7, 0.2, -0.4]]).double(), dim=1
)


def harmonics(directions: np.ndarray) -> np.ndarray:
    """The nine polynomials, unnormalised, in the order of the module."""
    x, y, z = directions.T
    return np.stack([x * 0 + 1, y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y], 1)


def sphere(nodes: int, low: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quadrature that is exact for these polynomials: Gauss over the height from `low` to 1, equal steps around."""
    heights, weights = np.polynomial.legendre.leggauss(nodes)
    heights, weights = (heights + 1) / 2 * (1 - low) + low, weights * (1 - low) / 2
    around = np.arange(nodes) * 2 * np.pi / nodes
    height, angle = (axis.ravel() for axis in np.meshgrid(heights, around, indexing="ij"))
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)
    return points, np.repeat(weights, nodes) * 2 * np.pi / nodes, height


def lambertian(normal: np.ndarray) -> np.ndarray:
    """Integral of each harmonic light, scaled to a mean square of 1, times max(0, cosine) / π around a normal."""
    whole, whole_weights, _ = sphere(12, -1.0)
    scale = np.sqrt((harmonics(whole) ** 2 * whole_weights[:, None]).sum(0) / (4 * np.pi))
    local, weights, cosine = sphere(12, 0.0)
    frame = np.linalg.svd(normal[None])[2]
    axes = np.stack([frame[1], frame[2], normal])
    return (harmonics(local @ axes) / scale * (weights * cosine)[:, None]).sum(0) / np.pi


@pytest.mark.parametrize("place", range(len(NORMALS)))
def test_bands_are_the_lambertian_response_to_harmonic_lights(place: int) -> None:
    found = irradiance_basis(NORMALS[place])
    np.testing.assert_allclose(found.numpy(), lambertian(NORMALS[place].numpy()), atol=1e-12)


def test_the_first_band_shades_every_normal_with_one() -> None:
    lighting = torch.zeros(1, 9, 3).double()
    lighting[:, 0] = torch.tensor([1.0, 0.5, 0.25])
    found = irradiance(NORMALS[None], lighting)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 0.25]).double().expand(1, len(NORMALS), 3))


def test_the_starting_light_is_white_and_stronger_from_the_camera() -> None:
    lighting = ambient_light(2)
    assert torch.equal(lighting, lighting[..., :1].expand(-1, -1, 3))
    towards, away = irradiance(torch.tensor([[[0.0, 0, -1], [0, 0, 1]]]).expand(2, -1, -1), lighting)[0, :, 0]
    assert towards.item() == pytest.approx(0.8 + 0.25 * 2 / np.sqrt(3))
    assert away.item() == pytest.approx(0.8 - 0.25 * 2 / np.sqrt(3))
