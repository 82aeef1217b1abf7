"""Muon: momentum whose matrices are made orthogonal, so that every direction of a layer learns at the same pace.

Convolutions count as matrices of outputs by everything else. Biases, gains, thin matrices and depthwise kernels have no
directions to balance; they take AdamW's step.
Source: Jordan et al. 2024 (Newton–Schulz coefficients); the size of the step follows Liu et al. 2025, so that a
learning rate means what it means to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic that drives singular values towards one; steep at zero, so it ends near one, not at it."""

ITERATIONS = 5

STEP_RMS = 0.2
"""Root mean square of an AdamW step of rate one."""

MIN_SIDE = 16
"""Thinner matrices are left to AdamW."""


def orthogonalize(matrix: Float[Tensor, "M N"]) -> Float[Tensor, "M N"]:
    """Nearest matrix with orthonormal rows or columns, roughly: singular values end between 0.7 and 1.2.

    Computes in bfloat16, which is accurate enough here. Degenerate: zero stays zero.
    """
    first, second, third = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    current = (matrix.T if tall else matrix).bfloat16()
    current = current / (current.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = current @ current.T
        current = first * current + (second * gram + third * gram @ gram) @ current
    return (current.T if tall else current).to(matrix.dtype)


class Muon(Optimizer):
    """Orthogonalised momentum for matrices and AdamW for the rest, under one learning rate."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": 1e-8}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    # Weights decay towards zero by the same share whichever rule moves them.
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    update = self._matrix if is_matrix(parameter) else self._adaptive
                    update(parameter, parameter.grad, group)
        return loss

    def _matrix(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(gradient, 1.0 - group["momentum"])
        ahead = gradient.lerp(state["average"], group["momentum"]).flatten(1)
        direction = orthogonalize(ahead) * (STEP_RMS * max(ahead.shape) ** 0.5)
        parameter.add_(direction.view(parameter.shape), alpha=-group["lr"])

    def _adaptive(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["average"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = torch.zeros(())
        state["step"] += 1
        first, second = group["betas"]
        state["average"].lerp_(gradient, 1.0 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        count = float(state["step"])
        deviation = (state["square"] / (1.0 - second**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["average"], deviation, value=-group["lr"] / (1.0 - first**count))


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has enough rows and columns to be orthogonalised."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= MIN_SIDE
