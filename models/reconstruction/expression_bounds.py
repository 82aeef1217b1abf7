"""Weights of ARKit's shapes that lie where programs expect them, between 0 and 1.

A network's answer may be negative: brows that are lowered by less than nothing of the shape that raises them. Programs
that wear ARKit's shapes cut such weights off, and the face changes. Other shapes can often say the same within bounds.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.face.morphable import MorphableModel
from models.face.sampling import is_arkit_shape

STEPS = 400
"""Of accelerated descent; vertices then lie within 0.003 mm of where an exact solver puts them."""

ALONE = ("eyeLook", "tongueOut")
"""Beginnings of the names of shapes that stand for eyeballs and tongue: they never speak for others."""

RIDGE = 1e-3
"""Share of the mean square of a shape's vertices that a weight costs by itself, so that shapes which do the same do not
trade places."""


def expression_bounds(model: MorphableModel, like: Tensor) -> tuple[Float[Tensor, "E"], Float[Tensor, "E"]]:
    """Shapes with ARKit's names lie between 0 and 1, statistical modes anywhere."""
    bounded = torch.tensor([is_arkit_shape(name) for name in model.expression_names], device=like.device)
    infinite = like.new_full((len(bounded),), torch.inf)
    return torch.where(bounded, 0.0, -infinite), torch.where(bounded, 1.0, infinite)


class ExpressionBounds:
    """Finds the nearest expression within bounds; what depends on the face model alone is computed once."""

    def __init__(self, model: MorphableModel) -> None:
        self.low, self.high = (bound.double() for bound in expression_bounds(model, model.mean))
        self.alone = torch.tensor([name.startswith(ALONE) for name in model.expression_names])
        shapes = model.expression_basis.flatten(1).double()
        metric = shapes @ shapes.T
        metric.diagonal().add_(RIDGE * metric.diagonal().mean())
        # In units in which every shape moves the face as far, descent needs fewer steps.
        size = metric.diagonal().sqrt()
        metric = metric / size / size[:, None]
        self.descent = metric / torch.linalg.eigvalsh(metric)[-1] * size[:, None] / size

    @torch.no_grad()
    def hold(self, expression: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """The expressions within bounds whose vertices are nearest, by the sum of their squared distances.

        What lies within bounds already is returned as it is; weights of gaze and tongue are only cut off.
        Method: projected gradients with Nesterov's momentum (FISTA, Beck & Teboulle 2009).
        """
        wanted = expression.double()
        outside = ((wanted < self.low) | (wanted > self.high)).any(1)
        if not outside.any():
            return expression
        wanted = wanted[outside]
        cut = torch.minimum(torch.maximum(wanted, self.low), self.high)
        low, high = (torch.where(self.alone, cut, bound) for bound in (self.low, self.high))
        found = ahead = cut
        pace = 1.0
        for _ in range(STEPS):
            moved = torch.minimum(torch.maximum(ahead - (ahead - wanted) @ self.descent, low), high)
            faster = (1.0 + (1.0 + 4.0 * pace * pace) ** 0.5) / 2.0
            ahead = moved + (pace - 1.0) / faster * (moved - found)
            found, pace = moved, faster
        held = expression.clone()
        held[outside] = found.to(expression)
        return held
