"""What is timed: triangle ids, the forward pass, and forward plus backward, for every backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.rendering.scene import Scene
from models.reconstruction.backbones import slim_resnet
from models.rendering.rasterize import rasterize_ids
from models.rendering.render import render
from models.rendering.shade import interpolate

Run = Callable[[], object]


@dataclass(frozen=True)
class Runs:
    """One backend on one scene; each can be called again and again and returns what it computed."""

    ids: Run
    forward: Run
    forward_backward: Run
    """Returns the image and the gradients of vertices and attributes."""
    render_forward_backward: Run | None
    """The whole `render`, light included, and the gradients of vertices, albedo and light."""


def available_backends(device: torch.device | str) -> list[str]:
    """The backends that run here, our own first."""
    if torch.device(device).type != "cpu":
        return ["torch"]
    return ["numba", "torch", *(["pytorch3d"] if importlib.util.find_spec("pytorch3d") else [])]


def prepare_runs(scene: Scene, backend: str) -> Runs:
    """Closures over the scene.

    Ours rasterise by the backend and shade by our own function. PyTorch3D stands beside us as its users call it:
    `rasterize_meshes` with its own gradients, then `interpolate_face_attributes`; only its ids come from our adapter.
    """
    picture = _their_picture if backend == "pytorch3d" else _our_picture

    def ids() -> object:
        return rasterize_ids(scene.vertices, scene.triangles, scene.camera, rasterizer=backend)

    @torch.no_grad()
    def forward() -> object:
        return picture(scene, scene.vertices, scene.attributes, backend)

    def forward_backward() -> object:
        vertices, attributes = (value.detach().requires_grad_() for value in (scene.vertices, scene.attributes))
        image = picture(scene, vertices, attributes, backend)
        return image.detach(), *torch.autograd.grad(image, (vertices, attributes), scene.weights)

    def render_forward_backward() -> object:
        inputs = [value.detach().requires_grad_() for value in (scene.vertices, scene.attributes, scene.lighting)]
        vertices, albedo, lighting = inputs
        drawn = render(
            vertices, scene.triangles, albedo=albedo, lighting=lighting, camera=scene.camera, rasterizer=backend
        )
        return drawn.image.detach(), *torch.autograd.grad(drawn.image, inputs, scene.weights)

    return Runs(ids, forward, forward_backward, None if backend == "pytorch3d" else render_forward_backward)


def network_run(scene: Scene) -> Run:
    """Forward and backward of the training stages' image network on a batch of the scene's size."""
    network = slim_resnet(width=24, features=256).to(scene.vertices.device)

    def forward_backward() -> None:
        network.zero_grad()
        network(scene.weights).sum().backward()

    return forward_backward


def _our_picture(scene: Scene, vertices: Tensor, attributes: Tensor, backend: str) -> Tensor:
    ids, _ = rasterize_ids(vertices.detach(), scene.triangles, scene.camera, rasterizer=backend)
    return interpolate(attributes, vertices, scene.triangles, ids, scene.camera)


def _their_picture(scene: Scene, vertices: Tensor, attributes: Tensor, _: str) -> Tensor:
    from pytorch3d.ops import interpolate_face_attributes
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    from models.rendering.rasterize_pytorch3d import to_pytorch3d

    meshes = Meshes(
        verts=to_pytorch3d(vertices, scene.camera), faces=scene.triangles.expand(len(vertices), -1, -1).contiguous()
    )
    packed, _, barycentrics, _ = rasterize_meshes(
        meshes, image_size=scene.camera.size, faces_per_pixel=1, perspective_correct=True, cull_backfaces=True
    )
    corners = attributes[:, scene.triangles].flatten(0, 1)
    image: Tensor = interpolate_face_attributes(packed, barycentrics, corners)[..., 0, :].permute(0, 3, 1, 2)
    return image
