"""Priors on coefficients: without them a self-supervised fit drifts away from faces."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def squared_norm(coefficients: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Sum of squares: the negative log of a unit Gaussian, since σ is folded into the modes.

    Source: Deng et al. 2019.
    """
    return coefficients.square().sum(1)


def light_chroma(lighting: Float[Tensor, "B 9 3"]) -> Float[Tensor, "B"]:
    """Mean squared departure from white light, so that skin colour is not explained by lamps. Source: as above."""
    return (lighting - lighting.mean(2, keepdim=True)).square().mean((1, 2))


def geometry_embedding(basis: Float[Tensor, "K V 3"], mean: Float[Tensor, "V 3"]) -> Float[Tensor, "K K"]:
    """Matrix E by which distances of coefficients become millimetres: ‖(α - α') E‖ is an RMS vertex distance.

    It is the distance that is left after the best small rigid motion, since neither pose nor position is shape.
    Source: method D, e = Lᵀα with LLᵀ = B Bᵀ / V; the removal of rigid motions is ours.
    """
    axes = torch.eye(3, dtype=mean.dtype, device=mean.device)
    centred = mean - mean.mean(0)
    turns = torch.linalg.cross(axes[:, None].expand(-1, len(mean), -1), centred.expand(3, -1, -1))
    shifts = axes[:, None].expand(-1, len(mean), -1)
    motions, _ = torch.linalg.qr(torch.cat([turns, shifts]).flatten(1).T.double())
    flat = basis.flatten(1).double()
    shape = flat - (flat @ motions) @ motions.T
    gram = shape @ shape.T / len(mean)
    # A mode that only moves the head has no length left; the floor keeps the factor defined.
    floor = 1e-6 * gram.diagonal().mean().clamp_min(1e-12)
    gram = gram + floor * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.cholesky(gram).to(basis.dtype)
