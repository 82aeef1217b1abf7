"""Faces without any trained network: the face model fitted to landmarks and pixels, photo by photo.

Slower than a network, and it works with every face model at once. See models/reconstruction/photo_fit.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.face.camera import crop_camera
from models.face.morphable import MorphableModel
from models.reconstruction.photo_fit import PHOTO_STEPS, mean_start, refine_coefficients
from models.reconstruction.reconstructor import Reconstructor, ReconstructorSettings
from models.types import Batch, FaceCoefficients

CROP_SIZE_PX, CROP_SCALE = 112, 1.35


class FaceFitter(Reconstructor):
    """Takes the place of a trained reconstructor."""

    def __init__(self, model: MorphableModel, *, photo_steps: int = PHOTO_STEPS) -> None:
        nn.Module.__init__(self)
        self.model = model
        self.settings = ReconstructorSettings(
            crop_size_px=CROP_SIZE_PX,
            crop_scale=CROP_SCALE,
            geometry_width=0,
            geometry_blocks=0,
            geometry_refinements=0,
            backbone="none",
            width=0,
            features=0,
        )
        self.sets = None
        self.photo_steps = photo_steps

    def identity_map(self) -> tuple[Float[Tensor, "I I"], Float[Tensor, "I"]]:
        """A fit leaves identities where they are probable."""
        mean = self.model.mean
        size = self.model.identity_size
        return torch.eye(size, device=mean.device), torch.zeros(size, device=mean.device)

    def forward(
        self,
        image: Float[Tensor, "B 3 S S"],
        landmarks: Float[Tensor, "B 68 2"],
        confidence: Float[Tensor, "B 68"],
    ) -> FaceCoefficients:
        """Image in [0, 1], landmarks in pixels of the crop."""
        count, size = len(image), image.shape[-1]
        batch = Batch(
            source="photo",
            sample_ids=tuple(str(row) for row in range(count)),
            camera=crop_camera(count, size, device=image.device),
            image=image,
            # Beyond the photo a crop is black.
            mask=(image > 0.0).any(1),
            landmarks=landmarks,
            confidence=confidence,
            person=torch.arange(count, device=image.device),
        )
        with torch.no_grad():
            start = mean_start(self.model, batch)
        return refine_coefficients(
            self.model, batch, start, anchor=None, landmark_steps=0, photo_steps=self.photo_steps
        )  # fmt: skip
