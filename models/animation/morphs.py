"""The morph targets that a face is exported with: ARKit's 52 where its model knows them, else the model's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from models.animation.rig import NEEDED, arkit_basis
from models.face.morphable import MorphableModel
from models.face.procedural_expressions import ARKIT_NAMES


def has_arkit_shapes(model: MorphableModel) -> bool:
    """Whether the model's expressions are ARKit's, so far as a speaking face needs them."""
    return all(name in model.expression_names for name in NEEDED)


def morph_targets(model: MorphableModel) -> tuple[tuple[str, ...], Float[np.ndarray, "N V 3"]]:
    """Names and displacements in mm at weight 1.

    Shapes that the model halves, such as browInnerUpLeft and browInnerUpRight, are added up; those of ARKit's that it
    lacks do nothing.
    """
    if has_arkit_shapes(model):
        return ARKIT_NAMES, arkit_basis(model).numpy()
    return model.expression_names, model.expression_basis.numpy()


def morph_weights(model: MorphableModel, expression: Float[np.ndarray, "*T E"]) -> Float[np.ndarray, "*T N"]:
    """Weights of `morph_targets` for coefficients of the model; halves of a shape are averaged."""
    if not has_arkit_shapes(model):
        return expression
    places = {name: place for place, name in enumerate(model.expression_names)}
    columns = []
    for name in ARKIT_NAMES:
        found = [places[part] for part in (name, f"{name}Left", f"{name}Right") if part in places]
        columns.append(expression[..., found].mean(-1) if found else np.zeros(expression.shape[:-1], expression.dtype))
    return np.stack(columns, -1)


def morphs_note(model: MorphableModel) -> dict[str, Any]:
    """Which shapes a file holds, in words, for those who read it without us."""
    if not has_arkit_shapes(model):
        return {"shapes": f"expressions of {model.name} under their own names; they are not ARKit's"}
    # A half is enough: browInnerUpLeft stands for browInnerUp.
    known = {*model.expression_names, *(name.removesuffix("Left") for name in model.expression_names)}
    missing = [name for name in ARKIT_NAMES if name not in known]
    return {"shapes": "ARKit's 52", **({"shapes_without_effect": missing} if missing else {})}
