"""Second-order spherical-harmonics light.

Convention: unit normals in camera space; nine bands in the order 1, y, z, x, xy, yz, 3z²-1, xz, x²-y². The Lambertian
kernel and 1/π are folded into the constants, so that a light of (1, 0, …) shades every normal with 1.
Source: Ramamoorthi and Hanrahan 2001, equations 3 and 13, divided by the constant of band 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

BAND_1 = 2.0 / math.sqrt(3.0)
BAND_2 = math.sqrt(15.0) / 4.0


def irradiance_basis(normals: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 9"]:
    """The nine bands at every normal."""
    x, y, z = normals.unbind(-1)
    return torch.stack(
        [
            torch.ones_like(x),
            BAND_1 * y,
            BAND_1 * z,
            BAND_1 * x,
            BAND_2 * x * y,
            BAND_2 * y * z,
            BAND_2 / (2.0 * math.sqrt(3.0)) * (3.0 * z * z - 1.0),
            BAND_2 * x * z,
            BAND_2 / 2.0 * (x * x - y * y),
        ],
        dim=-1,
    )


def irradiance(normals: Float[Tensor, "B N 3"], lighting: Float[Tensor, "B 9 3"]) -> Float[Tensor, "B N 3"]:
    """Light that reaches a surface, per colour channel; multiply by albedo for colour."""
    return irradiance_basis(normals) @ lighting


def ambient_light(count: int, *, device: torch.device | str = "cpu") -> Float[Tensor, "B 9 3"]:
    """White light from everywhere, a little more from the camera (camera-space -z); the encoder's starting point."""
    lighting = torch.zeros(count, 9, 3, device=device)
    lighting[:, 0] = 0.8
    lighting[:, 2] = -0.25
    return lighting
