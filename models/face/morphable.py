"""The 3D morphable face model, whatever its origin: a mean face plus linear identity, expression and albedo modes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.face.skinning import Skinning
from models.types import LANDMARK_COUNT, PART_NAMES


class MorphableModel(nn.Module):
    """Linear face model in millimetres with modes scaled so that a coefficient of 1 is one standard deviation.

    Convention: +x the subject's left, +y up, +z out of the face; triangles are counter-clockwise from outside.
    A landmark is a vertex, or a point within a triangle: three vertices (68, 3) with barycentric weights.
    Albedo is RGB in [0, 1], display-referred as in the Basel models: albedo times light is the photo's pixel, without a
    gamma, because that is the space in which photos are compared. Expression modes of ARKit-named models are
    displacements at full activation. The model is linear; where its file has joints, `skinning` gives the exact mesh.
    Raises: ValueError naming the array, its shape and the expected one, if the arrays do not fit together.
    """

    mean: Float[Tensor, "V 3"]
    identity_basis: Float[Tensor, "I V 3"]
    expression_basis: Float[Tensor, "E V 3"]
    albedo_mean: Float[Tensor, "V 3"]
    albedo_basis: Float[Tensor, "T V 3"]
    triangles: Int[Tensor, "F 3"]
    landmark_corners: Int[Tensor, "68 3"]
    landmark_weights: Float[Tensor, "68 3"]
    uv: Float[Tensor, "V 2"]
    parts: Int[Tensor, "V"]

    def __init__(
        self,
        *,
        name: str,
        licence: str,
        mean: Float[Tensor, "V 3"],
        identity_basis: Float[Tensor, "I V 3"],
        expression_basis: Float[Tensor, "E V 3"],
        expression_names: Sequence[str],
        albedo_mean: Float[Tensor, "V 3"],
        albedo_basis: Float[Tensor, "T V 3"],
        triangles: Int[Tensor, "F 3"],
        landmark_vertices: Int[Tensor, "68"] | Int[Tensor, "68 3"],
        uv: Float[Tensor, "V 2"],
        parts: Int[Tensor, "V"],
        landmark_weights: Float[Tensor, "68 3"] | None = None,
        source_sha256: str = "",
        skinning: Skinning | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.licence = licence
        self.source_sha256 = source_sha256
        self.expression_names = tuple(expression_names)
        corners = (LANDMARK_COUNT,) if landmark_weights is None else (LANDMARK_COUNT, 3)
        _require_shape(name, "landmark_vertices", landmark_vertices, corners)
        if landmark_weights is None:
            landmark_weights = torch.tensor([1.0, 0.0, 0.0]).expand(LANDMARK_COUNT, 3)
            landmark_vertices = landmark_vertices[:, None].expand(LANDMARK_COUNT, 3)
        arrays = {
            "mean": mean.float(),
            "identity_basis": identity_basis.float(),
            "expression_basis": expression_basis.float(),
            "albedo_mean": albedo_mean.float(),
            "albedo_basis": albedo_basis.float(),
            "triangles": triangles.long(),
            "landmark_corners": landmark_vertices.long(),
            "landmark_weights": landmark_weights.float(),
            "uv": uv.float(),
            "parts": parts.long(),
        }
        for key, array in arrays.items():
            # The model is data that a checkpoint refers to by hash, so it stays out of the state dict.
            self.register_buffer(key, array.contiguous(), persistent=False)
        self.skinning = skinning
        self._check()

    def _check(self) -> None:
        count = self.vertex_count
        expected = {
            "mean": (count, 3),
            "identity_basis": (self.identity_size, count, 3),
            "expression_basis": (len(self.expression_names), count, 3),
            "albedo_mean": (count, 3),
            "albedo_basis": (self.albedo_size, count, 3),
            "triangles": (len(self.triangles), 3),
            "landmark_weights": (LANDMARK_COUNT, 3),
            "uv": (count, 2),
            "parts": (count,),
        }
        for key, shape in expected.items():
            _require_shape(self.name, key, getattr(self, key), shape)
        if self.skinning is not None:
            joints = len(self.skinning.joint_names)
            _require_shape(self.name, "skinning_joint_weights", self.skinning.joint_weights, (count, joints))
            modes = (self.expression_size, joints, 3)
            _require_shape(self.name, "skinning_mode_rotations", self.skinning.mode_rotations, modes)
        indices = {"triangles": self.triangles, "landmark_vertices": self.landmark_corners, "parts": self.parts}
        for (key, values), limit in zip(indices.items(), (count, count, len(PART_NAMES)), strict=True):
            if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < limit):
                raise ValueError(
                    f"face model {self.name}: {key} holds {int(values.min())} to {int(values.max())}, "
                    f"expected 0 to {limit - 1}"
                )
        for key in ("mean", "identity_basis", "expression_basis", "albedo_mean", "albedo_basis", "landmark_weights"):
            if not torch.isfinite(getattr(self, key)).all():
                raise ValueError(f"face model {self.name}: {key} has values that are not finite")

    @property
    def vertex_count(self) -> int:
        """V."""
        return len(self.mean)

    @property
    def identity_size(self) -> int:
        """I."""
        return len(self.identity_basis)

    @property
    def expression_size(self) -> int:
        """E."""
        return len(self.expression_basis)

    @property
    def albedo_size(self) -> int:
        """T."""
        return len(self.albedo_basis)

    def vertices(
        self, identity: Float[Tensor, "B I"], expression: Float[Tensor, "B E"] | None = None
    ) -> Float[Tensor, "B V 3"]:
        """Vertices in model space, millimetres; neutral where no expression is given."""
        offsets = identity @ self.identity_basis.flatten(1)
        if expression is not None:
            offsets = offsets + expression @ self.expression_basis.flatten(1)
        return self.mean + offsets.unflatten(1, (-1, 3))

    def albedo(self, coefficients: Float[Tensor, "B T"]) -> Float[Tensor, "B V 3"]:
        """Display-referred RGB per vertex, clamped to [0, 1]."""
        offsets = (coefficients @ self.albedo_basis.flatten(1)).unflatten(1, (-1, 3))
        return (self.albedo_mean + offsets).clamp(0.0, 1.0)

    def landmarks(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B 68 3"]:
        """The 68 iBUG points of meshes in this topology, on the device of the vertices."""
        corners, weights = self.landmark_corners.to(vertices.device), self.landmark_weights.to(vertices)
        return (vertices[:, corners] * weights[..., None]).sum(2)

    def landmark_points(
        self, identity: Float[Tensor, "B I"], expression: Float[Tensor, "B E"] | None = None
    ) -> Float[Tensor, "B 68 3"]:
        """The 68 iBUG points of `vertices(identity, expression)`, without computing the other vertices."""
        offsets = identity @ self.landmark_identity_basis.flatten(1)
        if expression is not None:
            offsets = offsets + expression @ self.landmark_expression_basis.flatten(1)
        return self.landmark_mean + offsets.unflatten(1, (-1, 3))

    @property
    def landmark_mean(self) -> Float[Tensor, "68 3"]:
        """The 68 iBUG points of the mean face."""
        return self.landmarks(self.mean[None])[0]

    @property
    def landmark_identity_basis(self) -> Float[Tensor, "I 68 3"]:
        """What each identity mode does to the 68 points."""
        return self.landmarks(self.identity_basis)

    @property
    def landmark_expression_basis(self) -> Float[Tensor, "E 68 3"]:
        """What each expression does to the 68 points."""
        return self.landmarks(self.expression_basis)

    @property
    def landmark_vertices(self) -> Int[Tensor, "68"]:
        """The vertex nearest to each landmark within its triangle."""
        nearest = self.landmark_weights.argmax(1, keepdim=True)
        return self.landmark_corners.gather(1, nearest)[:, 0]

    def part(self, name: str) -> Tensor:
        """Mask (V,) of the vertices of one of `PART_NAMES`.

        Raises: ValueError if there is no such part.
        """
        if name not in PART_NAMES:
            raise ValueError(f"part {name!r} is unknown, expected one of {', '.join(PART_NAMES)}")
        return self.parts == PART_NAMES.index(name)

    def stamp(self) -> dict[str, str]:
        """What every output says of the model: name, licence, hash of its arrays, SHA-256 of the file it was read from.

        The last is empty for a model made by code.
        """
        return {
            "name": self.name,
            "licence": self.licence,
            "hash": self.content_hash(),
            "source_sha256": self.source_sha256,
        }

    def content_hash(self) -> str:
        """Hash of every array, so that a checkpoint can refuse a face model that it was not trained with."""
        digest = hashlib.sha256(repr(self.expression_names).encode())
        for key, array in self.named_buffers():
            digest.update(key.encode())
            digest.update(array.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def _require_shape(name: str, key: str, array: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(array.shape) != expected:
        raise ValueError(f"face model {name}: {key} has shape {tuple(array.shape)}, expected {expected}")
