"""The whole model: crop and landmarks in, coefficients and a 3D face out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.face.camera import project, to_camera_space
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.reconstruction.encoder import Encoder
from models.reconstruction.geometry_branch import place
from models.reconstruction.set_confidence import SetConfidence
from models.rendering.render import render
from models.types import Camera, FaceCoefficients, Mesh, Reconstruction

LIGHT_SCALE = 0.3


@dataclass(frozen=True)
class ReconstructorSettings:
    """What it takes to build the network again beside its weights and its face model."""

    crop_size_px: int
    crop_scale: float
    geometry_width: int
    geometry_blocks: int
    geometry_refinements: int
    backbone: str
    width: int
    features: int


class Reconstructor(nn.Module):
    """Encoder plus face model."""

    def __init__(self, model: MorphableModel, settings: ReconstructorSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.encoder = Encoder(
            model=model,
            geometry_width=settings.geometry_width,
            geometry_blocks=settings.geometry_blocks,
            geometry_refinements=settings.geometry_refinements,
            backbone=settings.backbone,
            width=settings.width,
            features=settings.features,
        )
        self.sets: SetConfidence | None = None
        """How much photos of a set deserve to be heard; None until that is learned."""

    def forward(
        self,
        image: Float[Tensor, "B 3 S S"],
        landmarks: Float[Tensor, "B 68 2"],
        confidence: Float[Tensor, "B 68"],
    ) -> FaceCoefficients:
        """Image in [0, 1], landmarks in pixels of the crop."""
        return self.decode(self.encoder(image, self.normalize(landmarks), confidence))

    def decode(self, raw: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> FaceCoefficients:
        """Coefficients from the encoder's raw numbers."""
        identity, expression, pose, albedo, light = raw
        rotation, translation = self.pose(pose.float())
        lighting = ambient_light(light.shape[0], device=light.device) + LIGHT_SCALE * light.float().unflatten(1, (9, 3))
        return FaceCoefficients(
            identity=identity.float(),
            expression=expression.float(),
            albedo=albedo.float(),
            lighting=lighting,
            rotation=rotation,
            translation=translation,
        )

    def from_landmarks(self, landmarks: Float[Tensor, "B 68 2"], confidence: Float[Tensor, "B 68"]) -> FaceCoefficients:
        """What the geometry branch says by itself; mean albedo under ambient light."""
        _, states = self.encoder.geometry(self.normalize(landmarks), confidence)
        identity, expression, pose = states[-1].split(self.encoder.sizes, 1)
        rotation, translation = self.pose(pose)
        return FaceCoefficients(
            identity=identity,
            expression=expression,
            albedo=identity.new_zeros(len(identity), self.model.albedo_size),
            lighting=ambient_light(len(identity), device=identity.device),
            rotation=rotation,
            translation=translation,
        )

    def set_confidence(
        self, landmarks: Float[Tensor, "B 68 2"], confidence: Float[Tensor, "B 68"]
    ) -> Float[Tensor, "B I"]:
        """Factors of what each photo says about its person, see models/reconstruction/aggregate.py.

        Landmarks in pixels of the crop.
        Raises: ValueError if they were not learned.
        """
        if self.sets is None:
            raise ValueError(
                "the checkpoint has learned nothing about sets of photos; use --aggregate analytic, or train again "
                "with train_geometry.set_steps above 0"
            )
        features, _ = self.encoder.geometry(self.normalize(landmarks), confidence)
        found: Tensor = self.sets(features)
        return found

    def identity_map(self) -> tuple[Float[Tensor, "I I"], Float[Tensor, "I"]]:
        """Matrix A and offset b by which the encoder ends: identity = A x + b, and x is what a photo makes probable."""
        last = self.encoder.identity_map
        one = torch.eye(len(last.weight), dtype=last.weight.dtype, device=last.weight.device)
        return one + last.weight.detach(), last.bias.detach()

    def normalize(self, landmarks: Float[Tensor, "B 68 2"]) -> Float[Tensor, "B 68 2"]:
        """Pixels of the crop to units of half the crop."""
        half = self.settings.crop_size_px / 2.0
        return (landmarks - half) / half

    def pose(self, raw: Float[Tensor, "B 6"]) -> tuple[Float[Tensor, "B 3"], Float[Tensor, "B 3"]]:
        """Rotation and translation; the network places the middle of the landmarks, not the model's origin.

        So a turn of the head moves nothing that the translation would have to undo.
        """
        rotation, position = raw.split(3, 1)
        middle = self.model.landmark_mean.mean(0).expand(raw.shape[0], 1, 3)
        turned = to_camera_space(middle, rotation=rotation, translation=torch.zeros_like(position))
        return rotation, place(position) - turned[:, 0]

    def reconstruct(self, coefficients: FaceCoefficients, camera: Camera, *, shade: bool = False) -> Reconstruction:
        """Meshes, projected landmarks and, with `shade`, the rendered face."""
        vertices = self.model.vertices(coefficients.identity, coefficients.expression)
        seen = to_camera_space(vertices, rotation=coefficients.rotation, translation=coefficients.translation)
        rendering = None
        if shade:
            rendering = render(
                seen,
                self.model.triangles,
                albedo=self.model.albedo(coefficients.albedo),
                lighting=coefficients.lighting,
                camera=camera,
            )
        return Reconstruction(
            coefficients=coefficients,
            mesh=Mesh(vertices=seen, triangles=self.model.triangles),
            neutral=self.model.vertices(coefficients.identity),
            landmarks=project(self.model.landmarks(seen), camera),
            rendering=rendering,
        )


def reconstructor_content(reconstructor: Reconstructor) -> dict[str, Any]:
    """What a checkpoint holds: settings, weights, hash and stamp of the face model, and what is known of sets."""
    sets = {} if reconstructor.sets is None else {"sets": reconstructor.sets.content()}
    return {
        **sets,
        "kind": "reconstructor",
        "settings": asdict(reconstructor.settings),
        "face_model": reconstructor.model.content_hash(),
        "face_model_stamp": reconstructor.model.stamp(),
        "weights": {key: value.detach().cpu().clone() for key, value in reconstructor.encoder.state_dict().items()},
    }


def load_reconstructor(content: dict[str, Any], model: MorphableModel) -> Reconstructor:
    """Rebuild a reconstructor from a checkpoint's content, in evaluation mode.

    Raises: ValueError if the content is no such checkpoint or belongs to another face model.
    """
    if content.get("kind") != "reconstructor":
        raise ValueError(f"checkpoint of kind {content.get('kind')!r}, expected 'reconstructor'")
    if content["face_model"] != model.content_hash():
        raise ValueError(
            f"the checkpoint was trained with face model {content['face_model']}, the params name "
            f"{model.content_hash()} ({model.name}); set face_model as it was or train again"
        )
    reconstructor = Reconstructor(model, ReconstructorSettings(**content["settings"]))
    # Checkpoints from before there was a map of identities have none; theirs changes nothing.
    none = reconstructor.encoder.identity_map.state_dict()
    unmapped = {f"identity_map.{name}": torch.zeros_like(value) for name, value in none.items()}
    reconstructor.encoder.load_state_dict({**unmapped, **content["weights"]})
    if "sets" in content:
        reconstructor.sets = SetConfidence.build(content["sets"])
    return reconstructor.eval()
