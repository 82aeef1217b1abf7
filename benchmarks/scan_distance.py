"""Scan errors by the NoW protocol, how exact and how quick: `python -m benchmarks.scan_distance --json FILE`.

Predictions and scans are faces of the procedural model; every scan is cropped as the protocol asks, in full, and with
`--subdivide` as fine as a scanner's. The time is that of the whole protocol for one face: tree, alignment, refinement
without and with scale, and both distances of every point. The JSON file holds:

- `vertices`, `triangles`, `points`: of a prediction, and the mean of a cropped scan;
- `largest_difference_mm`: of the distances of some points to those that trimesh finds by trying every triangle;
- `microseconds_per_point`: one question about the nearest point of an aligned scan;
- `times_trimesh`: trimesh's time per point over ours: its `closest_point` where it has its optional index, else the one
  that tries every triangle (`against` says which);
- `milliseconds_per_face`, `seconds_per_1000_faces`: of the protocol on two cores, by the processor's time of one
  thread; on a machine that is busy otherwise it is rather too long than too short.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import trimesh
import typer

from models.face.formats import build_face_model
from models.face.surface import SurfaceTopology, align_by_landmarks, now_crop, now_distance, refine_to_surface
from models.rendering.shade import vertex_normals

CORES = 2
AIM_SECONDS = 60.0
"""For 1,000 faces."""
AIM_DIFFERENCE_MM = 1e-6


def measure(*, faces: int = 6, subdivide: int = 1, checked: int = 100, seed: int = 0) -> dict[str, Any]:
    """Everything that the module's heading names."""
    model = build_face_model("procedural", identity_modes=40)
    generator = torch.Generator().manual_seed(seed)
    shapes = model.vertices(torch.randn(2 * faces, model.identity_size, generator=generator))
    normals = vertex_normals(shapes, model.triangles).double().numpy()
    landmarks, vertices = model.landmarks(shapes).double().numpy(), shapes.double().numpy()
    triangles = model.triangles.numpy()
    topology = SurfaceTopology.build(triangles, model.vertex_count)
    jobs = []
    for prediction in range(0, 2 * faces, 2):
        mesh = trimesh.Trimesh(vertices[prediction + 1], triangles, process=False)
        for _ in range(subdivide):
            mesh = mesh.subdivide()
        scan, truth = np.asarray(mesh.vertices), landmarks[prediction + 1]
        scan = np.random.default_rng(seed).permutation(scan[now_crop(scan, truth)])
        jobs.append((scan, truth, vertices[prediction], normals[prediction], landmarks[prediction]))
    # Once before the clock starts, so that everything is compiled.
    now_distance(*jobs[0], topology)
    start = time.process_time()
    for job in jobs:
        now_distance(*job, topology)
    per_face = (time.process_time() - start) / len(jobs)
    exactness = _against_trimesh(jobs[0], topology, checked)
    return {
        "vertices": model.vertex_count,
        "triangles": len(triangles),
        "points": int(np.mean([len(scan) for scan, *_ in jobs])),
        **exactness,
        "milliseconds_per_face": round(1e3 * per_face, 2),
        "seconds_per_1000_faces": round(1e3 * per_face / CORES, 1),
    }


def _against_trimesh(job: tuple[np.ndarray, ...], topology: SurfaceTopology, checked: int) -> dict[str, Any]:
    scan, truth, vertices, normals, landmarks = job
    aligned = align_by_landmarks(scan, truth, landmarks)
    points, _ = refine_to_surface(aligned, vertices, normals, topology)
    tree = topology.tree(vertices)
    start = time.process_time()
    found = tree.nearest(points).distance
    ours = (time.process_time() - start) / len(points)
    mesh = trimesh.Trimesh(vertices, topology.triangles, process=False)
    few = points[:checked]
    _, exact, _ = trimesh.proximity.closest_point_naive(mesh, few)
    against = "closest_point"
    try:
        import rtree  # noqa: F401

        query = trimesh.proximity.closest_point
        query(mesh, few[:2])
    except ImportError:
        against, query = "closest_point_naive", trimesh.proximity.closest_point_naive
    start = time.process_time()
    query(mesh, few)
    theirs = (time.process_time() - start) / len(few)
    return {
        "largest_difference_mm": float(np.abs(found[:checked] - exact).max()),
        "microseconds_per_point": round(1e6 * ours, 2),
        "times_trimesh": round(theirs / ours, 1),
        "against": against,
    }


def missed_aims(row: dict[str, Any]) -> list[str]:
    """A line for each number beyond its aim."""
    missed = []
    if row["seconds_per_1000_faces"] > AIM_SECONDS:
        missed.append(f"seconds_per_1000_faces {row['seconds_per_1000_faces']}, aim {AIM_SECONDS:g}")
    if not row["largest_difference_mm"] <= AIM_DIFFERENCE_MM:
        missed.append(f"largest_difference_mm {row['largest_difference_mm']:.3g}, aim {AIM_DIFFERENCE_MM:g}")
    return missed


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the numbers there")] = None,
    faces: Annotated[int, typer.Option(min=1, help="how many are measured")] = 6,
    subdivide: Annotated[int, typer.Option(min=0, max=3, help="how often the scans' triangles are cut in four")] = 1,
) -> None:
    """Measure and print."""
    row = measure(faces=faces, subdivide=subdivide)
    if json_file:
        unfinished = json_file.with_name(f"{json_file.name}.unfinished")
        unfinished.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(json_file)
    for name, value in row.items():
        print(f"{name:24} {value}")
    for line in missed_aims(row):
        print(f"missed: {line}")


if __name__ == "__main__":
    typer.run(main)
