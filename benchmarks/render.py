"""Speed of the renderer: `python -m benchmarks.render --json FILE`.

For face-like meshes and several image sizes: time per image of the triangle ids alone, of the forward pass, and of
forward plus backward to vertices, albedo and light. Beside it stands, measured in the same run, the image network of
the training stages, so that the ratio can be compared between machines.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from models.face.camera import crop_camera, rotation_from_angles, to_camera_space
from models.face.lighting import ambient_light
from models.reconstruction.encoder import slim_resnet
from models.rendering.rasterize import rasterize_ids
from models.rendering.render import render

REPEATS = 7


def dome(vertices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A face-sized dome (V, 3) mm of about so many vertices and its triangles (F, 3)."""
    side = round(vertices**0.5)
    line = torch.linspace(-1.0, 1.0, side)
    y, x = torch.meshgrid(-line, line, indexing="ij")
    points = torch.stack([75.0 * x, 95.0 * y, 60.0 * (1.0 - 0.6 * (x * x + y * y))], -1).flatten(0, 1)
    corner = (torch.arange(side - 1)[:, None] * side + torch.arange(side - 1)).flatten()
    upper = torch.stack([corner, corner + side, corner + 1], 1)
    lower = torch.stack([corner + 1, corner + side, corner + side + 1], 1)
    return points, torch.cat([upper, lower])


def median_ms(run: Callable[[], object]) -> float:
    """Median milliseconds of repeated runs after one to warm up."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000.0 * statistics.median(times)


def measure(vertices: int, size_px: int, batch: int) -> dict[str, float | int | str]:
    """One row: milliseconds per image."""
    points, triangles = dome(vertices)
    yaw = torch.linspace(-1.2, 1.2, batch)
    rotation = rotation_from_angles(yaw, 0.2 * yaw, 0.1 * yaw)
    translation = torch.tensor([0.0, 0.0, 1000.0]).expand(batch, 3)
    seen = to_camera_space(points.expand(batch, -1, -1), rotation=rotation, translation=translation)
    camera = crop_camera(batch, size_px)
    albedo, light = torch.full_like(seen, 0.6), ambient_light(batch)

    def forward() -> torch.Tensor:
        return render(seen, triangles, albedo=albedo, lighting=light, camera=camera).image

    def forward_backward() -> None:
        inputs = [value.clone().requires_grad_() for value in (seen, albedo, light)]
        drawn = render(inputs[0], triangles, albedo=inputs[1], lighting=inputs[2], camera=camera)
        drawn.image.sum().backward()

    network = slim_resnet(width=24, features=256)
    photo = torch.rand(batch, 3, size_px, size_px).contiguous(memory_format=torch.channels_last)

    def network_forward_backward() -> None:
        network.zero_grad()
        network(photo).sum().backward()

    beside = median_ms(network_forward_backward) / batch
    whole = median_ms(forward_backward) / batch
    return {
        "backend": "torch",
        "vertices": len(points),
        "size_px": size_px,
        "batch": batch,
        "ids_ms": round(median_ms(lambda: rasterize_ids(seen, triangles, camera)) / batch, 3),
        "forward_ms": round(median_ms(forward) / batch, 3),
        "forward_backward_ms": round(whole, 3),
        "network_ms": round(beside, 3),
        "ratio_to_network": round(whole / beside, 3),
    }


def main(json_file: Annotated[Path | None, typer.Option("--json", help="write the rows there")] = None) -> None:
    """Measure all sizes and print a row each."""
    rows = []
    for vertices, size_px in ((3_300, 112), (5_000, 128), (10_000, 224)):
        for batch in (1, 8, 32):
            rows.append(measure(vertices, size_px, batch))
            print(json.dumps(rows[-1]), flush=True)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
