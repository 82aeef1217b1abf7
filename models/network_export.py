"""The reconstructor as one ONNX file that runs without our code: crop and landmarks in, mesh out.

The graph contains its face model, and takes batches of any size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.face.camera import FOCAL_PER_SIZE, project, to_camera_space
from models.onnx_graph import check_graph, write_graph
from models.reconstruction.reconstructor import Reconstructor
from models.types import LANDMARK_COUNT, Camera

TOLERANCE = 1e-4
"""Largest difference between graph and network, relative to the largest number of each output."""

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


def export_reconstructor(reconstructor: Reconstructor, path: Path) -> float:
    """Write the reconstructor and its face model as one graph; returns the largest relative difference found.

    Raises: ValueError if the graph differs from the network by more than `TOLERANCE`, which is stricter than elsewhere.
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
    write_graph(graph, example(2), path, inputs=RECONSTRUCTOR_INPUTS, outputs=RECONSTRUCTOR_OUTPUTS, metadata=origin)
    return check_graph(
        graph,
        example(3),
        path,
        inputs=RECONSTRUCTOR_INPUTS,
        outputs=RECONSTRUCTOR_OUTPUTS,
        tolerance=TOLERANCE,
    )
