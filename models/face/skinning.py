"""Linear blend skinning: jaws, eyes and necks turn about joints, exactly and not only to first order.

Convention: millimetres in model space; a joint's rotation is axis-angle in radians, relative to its parent, about the
model's axes: +x of the jaw opens the mouth, +y turns towards the subject's left. Zero everywhere is the rest pose.
Source: Loper et al. 2015 (SMPL), equations 2 to 10; Li et al. 2017 (FLAME), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class LinearModel(Protocol):
    """What skinning needs of a `MorphableModel`, which itself holds a skinning."""

    def vertices(
        self, identity: Float[Tensor, "B I"], expression: Float[Tensor, "B E"] | None = None
    ) -> Float[Tensor, "B V 3"]:
        """Vertices at rest."""
        ...


class Skinning(nn.Module):
    """Joints of a face model, and how its vertices follow them.

    A face model is linear: among its expression modes are the displacements of single joints at a stated angle, see
    `mode_rotations`. This replaces those modes by the rotations that they stand for.
    Raises: ValueError naming the array, its shape and the expected one, if the arrays do not fit together.
    """

    joint_regressor: Float[Tensor, "J V"]
    """Joints as weighted means of the vertices at rest; each row adds up to 1."""
    pose_basis: Float[Tensor, "P V 3"]
    """Correction in millimetres per entry of R - I of every joint but the root, row by row; P is 9 (J - 1)."""
    joint_weights: Float[Tensor, "V J"]
    """Each row adds up to 1."""
    joint_parents: Int[Tensor, "J"]
    """Parents come before their children; -1 for the root, which is the first."""
    mode_rotations: Float[Tensor, "E J 3"]
    """What an expression mode of the linear model means as rotations at full activation; zero if it is none."""

    def __init__(
        self,
        *,
        joint_names: Sequence[str],
        joint_regressor: Float[Tensor, "J V"],
        pose_basis: Float[Tensor, "P V 3"],
        joint_weights: Float[Tensor, "V J"],
        joint_parents: Int[Tensor, "J"],
        mode_rotations: Float[Tensor, "E J 3"],
    ) -> None:
        super().__init__()
        self.joint_names = tuple(joint_names)
        arrays = {
            "joint_regressor": joint_regressor.float(),
            "pose_basis": pose_basis.float(),
            "joint_weights": joint_weights.float(),
            "joint_parents": joint_parents.long(),
            "mode_rotations": mode_rotations.float(),
        }
        for key, array in arrays.items():
            self.register_buffer(key, array.contiguous(), persistent=False)
        self._check()

    def _check(self) -> None:
        joints, count = len(self.joint_names), self.joint_regressor.shape[-1]
        expected = {
            "joint_regressor": (joints, count),
            "pose_basis": (9 * (joints - 1), count, 3),
            "joint_weights": (count, joints),
            "joint_parents": (joints,),
            "mode_rotations": (len(self.mode_rotations), joints, 3),
        }
        for key, shape in expected.items():
            array: Tensor = getattr(self, key)
            if tuple(array.shape) != shape:
                raise ValueError(f"skinning: {key} has shape {tuple(array.shape)}, expected {shape}")
            if not torch.isfinite(array).all():
                raise ValueError(f"skinning: {key} has values that are not finite")
        parents = self.joint_parents.tolist()
        if parents[0] != -1 or any(not 0 <= parent < place for place, parent in enumerate(parents) if place):
            raise ValueError(
                f"skinning: joint_parents are {parents}, expected -1, then each parent before its children"
            )
        for key, sums in (
            ("joint_regressor", self.joint_regressor.sum(1)),
            ("joint_weights", self.joint_weights.sum(1)),
        ):
            if (sums - 1.0).abs().max() > 1e-3:
                raise ValueError(f"skinning: rows of {key} add up to {sums.min():.4g} to {sums.max():.4g}, expected 1")

    def joint_rotations(self, expression: Float[Tensor, "B E"]) -> Float[Tensor, "B J 3"]:
        """The rotations that the joint modes among an expression's coefficients stand for."""
        return (expression @ self.mode_rotations.flatten(1)).unflatten(1, (-1, 3))

    def joints(self, rest: Float[Tensor, "B V 3"]) -> Float[Tensor, "B J 3"]:
        """Where the joints of shapes at rest are."""
        return self.joint_regressor @ rest

    def pose(
        self,
        model: LinearModel,
        identity: Float[Tensor, "B I"],
        expression: Float[Tensor, "B E"],
        joint_rotations: Float[Tensor, "B J 3"] | None = None,
    ) -> Float[Tensor, "B V 3"]:
        """The exact counterpart of `model.vertices(identity, expression)`, with further rotations of the joints.

        Joint modes among the coefficients become rotations, to which `joint_rotations` are added as axis-angle
        vectors; give zeros for those modes, or no `joint_rotations`, unless both are meant.
        """
        turned = self.mode_rotations.flatten(1).any(1)
        rest = model.vertices(identity, expression.masked_fill(turned, 0.0))
        rotations = self.joint_rotations(expression)
        return self.skin(rest, rotations if joint_rotations is None else rotations + joint_rotations)

    def skin(self, rest: Float[Tensor, "B V 3"], joint_rotations: Float[Tensor, "B J 3"]) -> Float[Tensor, "B V 3"]:
        """Turn the joints of shapes at rest: add the pose's corrections, then blend the joints' rigid motions."""
        joints = self.joints(rest)
        local = rotation_matrices(joint_rotations)
        change = (local[:, 1:] - torch.eye(3).to(local)).flatten(1)
        corrected = rest + (change @ self.pose_basis.flatten(1)).unflatten(1, (-1, 3))
        turns, shifts = [local[:, 0]], [joints[:, 0]]
        for place, parent in enumerate(self.joint_parents.tolist()[1:], start=1):
            # Where the chain carries the joint itself, hence relative to the joint of the parent.
            offset = (turns[parent] @ (joints[:, place] - joints[:, parent])[..., None])[..., 0]
            shifts.append(shifts[parent] + offset)
            turns.append(turns[parent] @ local[:, place])
        turn = torch.stack(turns, 1)
        shift = torch.stack(shifts, 1) - (turn @ joints[..., None])[..., 0]
        blended = torch.einsum("vj,bjrc->bvrc", self.joint_weights, turn)
        return (blended @ corrected[..., None])[..., 0] + self.joint_weights @ shift


def rotation_matrices(axis_angle: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Rotations by axis-angle vectors, as the exponential of the cross product, smooth also at zero."""
    x, y, z = axis_angle.unbind(-1)
    none = torch.zeros_like(x)
    cross = torch.stack([none, -z, y, z, none, -x, -y, x, none], -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)
