from __future__ import annotations

import pytest
import torch

from models.face.morphable import MorphableModel
from models.reconstruction.encoder import Encoder


def encoder_of(face: MorphableModel) -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        model=face,
        geometry_width=32,
        geometry_blocks=1,
        geometry_refinements=1,
        backbone="resnet-slim",
        width=4,
        features=16,
    )


@pytest.mark.parametrize("size_px", [32, 48, 112])
def test_shapes_at_any_crop_size(face: MorphableModel, size_px: int) -> None:
    encoder = encoder_of(face)
    found = encoder(torch.rand(2, 3, size_px, size_px), torch.randn(2, 68, 2), torch.ones(2, 68))
    assert [tuple(value.shape) for value in found] == [(2, 4), (2, 3), (2, 6), (2, 2), (2, 27)]


def test_corrections_start_at_zero(face: MorphableModel) -> None:
    encoder = encoder_of(face).eval()
    landmarks, confidence = torch.randn(3, 68, 2), torch.rand(3, 68)
    identity, expression, pose, _, _ = encoder(torch.rand(3, 3, 32, 32), landmarks, confidence)
    _, states = encoder.geometry(landmarks, confidence)
    assert torch.equal(torch.cat([identity, expression, pose], 1), states[-1])


def test_the_image_reaches_every_output_once_training_starts(face: MorphableModel) -> None:
    encoder = encoder_of(face)
    outputs = encoder(torch.rand(4, 3, 32, 32), torch.randn(4, 68, 2), torch.ones(4, 68))
    sum(value.square().sum() for value in outputs).backward()
    gradient = encoder.correction.weight.grad
    assert gradient is not None
    assert (gradient.abs().amax(1) > 0).all()
    first = encoder.image[0].weight.grad
    assert first is not None
    assert first.any()
