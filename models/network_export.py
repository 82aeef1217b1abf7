"""The networks as ONNX files that run without our code, and the proof that they compute the same.

Every graph takes batches of any size. The reconstructor's contains its face model: crop and landmarks in, mesh out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, config
from torch import Tensor, nn

from models.face.camera import FOCAL_PER_SIZE, project, to_camera_space
from models.landmarks.hierarchical import HierarchicalNetwork
from models.reconstruction.reconstructor import Reconstructor
from models.types import LANDMARK_COUNT, Camera

RECONSTRUCTOR_INPUTS = ("image", "landmarks", "confidence")
RECONSTRUCTOR_OUTPUTS = (
    "identity",
    "expression",
    "albedo",
    "lighting",
    "rotation",
    "translation",
    "vertices",
    "model_vertices",
    "colours",
    "landmarks_projected",
)
LANDMARK_INPUTS = ("image",)
LANDMARK_OUTPUTS = ("points", "log_sigma", "presence")

TOLERANCE = 1e-3
"""Largest difference between an exported graph and its network, relative to the largest number of that output."""


class ReconstructorGraph(nn.Module):
    """Crop in [0, 1], landmarks in crop pixels and confidence to `RECONSTRUCTOR_OUTPUTS`.

    `vertices` are in camera space, `model_vertices` before pose, `colours` the albedo of every vertex.
    """

    def __init__(self, reconstructor: Reconstructor) -> None:
        super().__init__()
        self.reconstructor = reconstructor

    def forward(
        self, image: Float[Tensor, "B 3 S S"], landmarks: Float[Tensor, "B 68 2"], confidence: Float[Tensor, "B 68"]
    ) -> tuple[Tensor, ...]:
        """Everything that a consumer without the face model needs."""
        found = self.reconstructor(image, landmarks, confidence)
        model = self.reconstructor.model
        vertices = model.vertices(found.identity, found.expression)
        seen = to_camera_space(vertices, rotation=found.rotation, translation=found.translation)
        size = self.reconstructor.settings.crop_size_px
        # One camera that broadcasts over the batch, so that the graph holds no batch size.
        camera = Camera(
            focal_px=image.new_full((1,), FOCAL_PER_SIZE * size),
            principal_px=image.new_full((1, 2), size / 2.0),
            size=(size, size),
        )
        return (
            found.identity,
            found.expression,
            found.albedo,
            found.lighting,
            found.rotation,
            found.translation,
            seen,
            vertices,
            model.albedo(found.albedo),
            project(model.landmarks(seen), camera),
        )


class LandmarkGraph(nn.Module):
    """Crops in [0, 1] to `LANDMARK_OUTPUTS`."""

    def __init__(self, network: HierarchicalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Float[Tensor, "B 3 S S"]) -> tuple[Tensor, ...]:
        """Points in crop pixels, log of their error in crop pixels, logit of a face."""
        found = self.network(image)
        return found.points, found.log_sigma, found.presence


def export_reconstructor(reconstructor: Reconstructor, path: Path) -> float:
    """Write the reconstructor and its face model as one graph; returns the largest relative difference found.

    Raises: ValueError if the graph differs from the network by more than `TOLERANCE`.
    """
    size = reconstructor.settings.crop_size_px

    def example(count: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(count)
        image = torch.rand(count, 3, size, size, generator=generator)
        landmarks = size * torch.rand(count, LANDMARK_COUNT, 2, generator=generator)
        return image, landmarks, torch.rand(count, LANDMARK_COUNT, generator=generator)

    graph = ReconstructorGraph(reconstructor).eval()
    # The graph holds the face model, so it says whose it is.
    origin = {f"face_model_{key}": value for key, value in reconstructor.model.stamp().items()}
    _export(graph, example(2), path, inputs=RECONSTRUCTOR_INPUTS, outputs=RECONSTRUCTOR_OUTPUTS, metadata=origin)
    return _checked(graph, example(3), path, inputs=RECONSTRUCTOR_INPUTS, outputs=RECONSTRUCTOR_OUTPUTS)


def export_landmark_network(network: HierarchicalNetwork, path: Path) -> float:
    """Write the landmark network; returns the largest relative difference found.

    Raises: ValueError if the graph differs from the network by more than `TOLERANCE`.
    """
    size = network.input_size_px

    def example(count: int) -> tuple[Tensor, ...]:
        return (torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count)),)

    graph = LandmarkGraph(network).eval()
    _export(graph, example(2), path, inputs=LANDMARK_INPUTS, outputs=LANDMARK_OUTPUTS)
    return _checked(graph, example(3), path, inputs=LANDMARK_INPUTS, outputs=LANDMARK_OUTPUTS)


def _export(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    metadata: Mapping[str, str] | None = None,
) -> None:
    logger = logging.getLogger("torch.onnx")
    level, unchecked = logger.level, config.jaxtyping_disable
    logger.setLevel(logging.ERROR)
    # While tests check types: the batch size is a symbol here, and no int.
    config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            # The exporter warns of its own inner workings and of packages that it looks for and does not need.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                # The runtime optimises when it loads; doing it here as well takes as long as the rest.
                optimize=False,
                verbose=False,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=tuple({0: "batch"} for _ in example),
            )
            assert program is not None
            program.model.metadata_props.update(metadata or {})
            program.save(path, external_data=False)
    finally:
        logger.setLevel(level)
        config.update("jaxtyping_disable", unchecked)


def _checked(
    graph: nn.Module, example: tuple[Tensor, ...], path: Path, *, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(list(outputs), {name: value.numpy() for name, value in zip(inputs, example, strict=True)})
    with torch.no_grad():
        expected = graph(*example)
    worst = 0.0
    for name, exported, computed in zip(outputs, found, expected, strict=True):
        reference = computed.numpy()
        scale = max(float(np.abs(reference).max(initial=0.0)), 1e-6)
        difference = float(np.abs(exported - reference).max(initial=0.0)) / scale
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path.name}: output {name} differs from the network by {difference:.2g} of its range, "
                f"expected at most {TOLERANCE:g}; check the versions of torch and onnxruntime"
            )
        worst = max(worst, difference)
    return worst
