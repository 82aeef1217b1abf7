"""Exported graphs against their networks."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch

from models.face.camera import crop_camera
from models.face.morphable import MorphableModel
from models.network_export import RECONSTRUCTOR_INPUTS, RECONSTRUCTOR_OUTPUTS, ReconstructorGraph, export_reconstructor
from models.onnx_graph import check_graph
from models.reconstruction.reconstructor import Reconstructor, ReconstructorSettings


@pytest.fixture(scope="module")
def reconstructor(face: MorphableModel) -> Reconstructor:
    torch.manual_seed(0)
    settings = ReconstructorSettings(
        crop_size_px=32,
        crop_scale=1.35,
        geometry_width=16,
        geometry_blocks=1,
        geometry_refinements=1,
        backbone="resnet-slim",
        width=4,
        features=16,
    )
    reconstructor = Reconstructor(face, settings)
    torch.nn.init.normal_(reconstructor.encoder.correction.weight, std=0.1)
    return reconstructor.eval()


@pytest.fixture(scope="module")
def graph_path(reconstructor: Reconstructor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "reconstructor.onnx"
    assert export_reconstructor(reconstructor, path) < 1e-4
    return path


@pytest.mark.parametrize("count", [1, 4])
def test_graph_takes_any_batch(reconstructor: Reconstructor, graph_path: Path, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(count, 3, 32, 32, generator=generator)
    landmarks = 32 * torch.rand(count, 68, 2, generator=generator)
    confidence = torch.rand(count, 68, generator=generator)
    session = onnxruntime.InferenceSession(graph_path, providers=["CPUExecutionProvider"])
    inputs = (image.numpy(), landmarks.numpy(), confidence.numpy())
    found = dict(
        zip(
            RECONSTRUCTOR_OUTPUTS,
            session.run(list(RECONSTRUCTOR_OUTPUTS), dict(zip(RECONSTRUCTOR_INPUTS, inputs, strict=True))),
            strict=True,
        )
    )
    with torch.no_grad():
        coefficients = reconstructor(image, landmarks, confidence)
        expected = reconstructor.reconstruct(coefficients, crop_camera(count, 32))
    assert found["vertices"] == pytest.approx(expected.mesh.vertices.numpy(), rel=1e-4, abs=1e-2)
    assert found["landmarks_projected"] == pytest.approx(expected.landmarks.numpy(), rel=1e-4, abs=1e-2)
    assert found["colours"] == pytest.approx(reconstructor.model.albedo(coefficients.albedo).numpy(), abs=1e-4)


def test_graph_says_whose_face_model_it_holds(reconstructor: Reconstructor, graph_path: Path) -> None:
    session = onnxruntime.InferenceSession(graph_path, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert {key: found[f"face_model_{key}"] for key in reconstructor.model.stamp()} == reconstructor.model.stamp()


def test_graph_of_another_network_is_refused(reconstructor: Reconstructor, graph_path: Path) -> None:
    other = ReconstructorGraph(reconstructor)
    example = (torch.rand(2, 3, 32, 32), 32 * torch.rand(2, 68, 2), torch.rand(2, 68))
    weight = reconstructor.encoder.correction.weight
    with torch.no_grad():
        weight.mul_(2.0)
        try:
            with pytest.raises(ValueError, match=r"reconstructor.onnx: output \w+ differs from the network by"):
                check_graph(other, example, graph_path, inputs=RECONSTRUCTOR_INPUTS, outputs=RECONSTRUCTOR_OUTPUTS)
        finally:
            weight.mul_(0.5)
