from __future__ import annotations

import torch

from models.face.camera import project, to_camera_space
from models.landmarks.detector import ProvidedDetector
from models.reconstruction.face_fitter import CROP_SCALE, CROP_SIZE_PX, FaceFitter
from models.reconstruction.photos import PhotoReader
from tests.photographed_face import photo_face
from tests.tiny_face import tiny_face


def test_a_fitted_face_explains_its_photo_better_than_the_mean_face() -> None:
    model = tiny_face()
    truth = photo_face(model)
    reader = PhotoReader(FaceFitter(model, photo_steps=6), ProvidedDetector())
    ((face,),) = reader.read([truth.photo], points=[truth.detection.landmarks])
    assert face.batch.image.shape[-1] == CROP_SIZE_PX
    assert reader.reconstructor.settings.crop_scale == CROP_SCALE
    found = face.coefficients
    seen = to_camera_space(model.landmark_points(found.identity, found.expression), rotation=found.rotation,
                           translation=found.translation)  # fmt: skip
    error = (project(seen, face.batch.camera) - face.batch.landmarks).norm(dim=2).mean()
    assert error < 0.6, "pixels of the crop"
    jaw = model.expression_names.index("jawOpen")
    assert abs(float(found.expression[0, jaw]) - float(truth.coefficients.expression[0, jaw])) < 0.25
    assert torch.isfinite(found.lighting).all()
