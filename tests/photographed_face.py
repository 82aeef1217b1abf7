"""A rendered photo of a face model with its face as a perfect network would read it."""

from __future__ import annotations

import numpy as np
import torch

from models.face.camera import crop_camera, project, rotation_from_angles, to_camera_space
from models.face.crop import photo_camera
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.landmarks.detector import Detection
from models.reconstruction.photos import PhotoFace, crop_photo
from models.rendering.render import render
from models.types import FaceCoefficients, Mesh, Reconstruction

PHOTO_PX, CROP_PX = 320, 64


def photo_face(model: MorphableModel, *, jaw: float = 0.6) -> PhotoFace:
    """A rendered photo of the model, and its face as a perfect network would read it."""
    expression = torch.zeros(1, model.expression_size)
    expression[0, model.expression_names.index("jawOpen")] = jaw
    generator = torch.Generator().manual_seed(4)
    found = FaceCoefficients(
        identity=0.5 * torch.randn(1, model.identity_size, generator=generator),
        expression=expression,
        albedo=torch.zeros(1, model.albedo_size),
        lighting=ambient_light(1),
        rotation=rotation_from_angles(torch.tensor([0.25]), torch.tensor([0.1]), torch.tensor([0.05])),
        translation=torch.tensor([[5.0, 8.0, 1250.0]]),
    )
    vertices = model.vertices(found.identity, found.expression)
    seen = to_camera_space(vertices, rotation=found.rotation, translation=found.translation)
    camera = crop_camera(1, PHOTO_PX)
    drawn = render(seen, model.triangles, albedo=model.albedo(found.albedo), lighting=found.lighting, camera=camera)
    photo = (drawn.image[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous().numpy()
    points = project(model.landmarks(seen), camera)[0].numpy()
    box = np.concatenate([points.min(0), points.max(0)])
    detection = Detection(points, np.full(68, 0.9, np.float32), box, 1.0)
    batch, affine = crop_photo(photo, detection, size_px=CROP_PX, scale=1.35, name="photo.png")
    return PhotoFace(
        name="photo.png",
        photo=photo,
        detection=detection,
        affine=affine[0],
        intrinsics=photo_camera(camera, torch.eye(3)[None])[0],
        batch=batch,
        reconstruction=Reconstruction(
            coefficients=found,
            mesh=Mesh(vertices=seen, triangles=model.triangles),
            neutral=model.vertices(found.identity),
            landmarks=torch.from_numpy(points)[None],
        ),
    )
