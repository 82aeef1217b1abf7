"""What a photo's face is taken for: by the mean face, by a fit without any network, and by a trained model.

Each gives coefficients, a rendering and the 68 points in crop pixels, which is what is measured against the truth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.face.camera import project, to_camera_space
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.landmarks.detector import sigma_from_confidence
from models.reconstruction.fit import fit_face, fit_pose
from models.reconstruction.photo_fit import refine
from models.reconstruction.reconstructor import Reconstructor
from models.rendering.relight import render_under_fitted_light
from models.types import Batch, FaceCoefficients, Rendering

SUREST_SIDES = 2e-3
"""No point is taken for surer than this, in sides of the face's box: annotations come with any confidence."""


def predict_mean_face(model: MorphableModel, batch: Batch) -> tuple[FaceCoefficients, Rendering, Tensor]:
    """The baseline: mean shape and skin, the pose that fits the detected landmarks, the light that fits the photo."""
    count = len(batch.image)
    points = model.landmarks(model.mean[None]).expand(count, -1, -1)
    rotation, translation = fit_pose(points, batch.landmarks, confidence=batch.confidence, camera=batch.camera)
    coefficients = FaceCoefficients(
        identity=rotation.new_zeros(count, model.identity_size),
        expression=rotation.new_zeros(count, model.expression_size),
        albedo=rotation.new_zeros(count, model.albedo_size),
        lighting=ambient_light(count, device=rotation.device),
        rotation=rotation,
        translation=translation,
    )
    return _under_fitted_light(model, coefficients, batch)


def predict_optimised(model: MorphableModel, batch: Batch) -> tuple[FaceCoefficients, Rendering, Tensor]:
    """The baseline without any network: shape and pose fitted to the detected landmarks from the mean face, then light.

    The detector's confidences say how far each point may be off, in pixels; the face model's σ are the prior.
    """
    count = len(batch.image)
    sides = sigma_from_confidence(batch.confidence.cpu().double().numpy()).clip(SUREST_SIDES)
    spread = batch.landmarks.amax(1) - batch.landmarks.amin(1)
    sigma_px = torch.from_numpy(sides).to(batch.landmarks) * spread.amax(1, keepdim=True).clamp_min(1.0)
    found = fit_face(model, batch.landmarks, confidence=sigma_px**-2, camera=batch.camera, sigma_px=1.0)
    coefficients = FaceCoefficients(
        identity=found.identity,
        expression=found.expression,
        albedo=found.identity.new_zeros(count, model.albedo_size),
        lighting=ambient_light(count, device=found.identity.device),
        rotation=found.rotation,
        translation=found.translation,
    )
    return _under_fitted_light(model, coefficients, batch)


def predict_geometry(reconstructor: Reconstructor, batch: Batch) -> tuple[FaceCoefficients, Rendering, Tensor]:
    """What the geometry branch reads from the landmarks, under the light that fits the photo."""
    coefficients = reconstructor.from_landmarks(batch.landmarks, batch.confidence)
    return _under_fitted_light(reconstructor.model, coefficients, batch)


def predict_network(reconstructor: Reconstructor, batch: Batch) -> tuple[FaceCoefficients, Rendering, Tensor]:
    """The network's answer."""
    image = batch.image.contiguous(memory_format=torch.channels_last)
    return _draw(reconstructor, reconstructor(image, batch.landmarks, batch.confidence), batch)


def predict_refined(
    reconstructor: Reconstructor, batch: Batch, *, steps: int
) -> tuple[FaceCoefficients, Rendering, Tensor]:
    """The network's answer after so many steps of per-photo optimisation."""
    return _draw(reconstructor, refine(reconstructor, batch, photo_steps=steps), batch)


def _draw(
    reconstructor: Reconstructor, coefficients: FaceCoefficients, batch: Batch
) -> tuple[FaceCoefficients, Rendering, Tensor]:
    found = reconstructor.reconstruct(coefficients, batch.camera, shade=True)
    assert found.rendering is not None
    return coefficients, found.rendering, found.landmarks


def _under_fitted_light(
    model: MorphableModel, coefficients: FaceCoefficients, batch: Batch
) -> tuple[FaceCoefficients, Rendering, Tensor]:
    """For predictors that see no colour: what remains is compared under the best light there is."""
    vertices = model.vertices(coefficients.identity, coefficients.expression)
    seen = to_camera_space(vertices, rotation=coefficients.rotation, translation=coefficients.translation)
    rendering, lighting = render_under_fitted_light(
        seen,
        model.triangles,
        albedo=model.albedo(coefficients.albedo),
        camera=batch.camera,
        image=batch.image,
        mask=batch.mask,
    )
    lit = FaceCoefficients(
        identity=coefficients.identity,
        expression=coefficients.expression,
        albedo=coefficients.albedo,
        lighting=lighting,
        rotation=coefficients.rotation,
        translation=coefficients.translation,
    )
    return lit, rendering, project(model.landmarks(seen), batch.camera)
