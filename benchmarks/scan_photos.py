"""Photos of a person against the person's scan: `python -m benchmarks.scan_photos --workspace W --json FILE`.

FOLDER (`--scan`) holds a mesh `<folder>.obj` or `.ply` in millimetres, its 68 points beside it (see docs/scans.md),
and photos `view_*.jpg`. Each face is measured by the NoW protocol: the neutral mesh of its identity, the part of the
scan around the nose, alignment by seven points, point-to-plane refinement, and the distance of every scan point to the
surface:

- `mean face`: what any estimate has to beat;
- `landmarks, PHOTO`: the fit to the detected points from the mean face, without any network;
- `network, PHOTO`: the workspace's model alone; left out where there is none yet;
- `mean, all` and `analytic, all`: the network's answers to all photos put together, see
  models/reconstruction/aggregate.py; from the latter the refinement of all begins;
- `refined, PHOTO` and `refined, all`: per-photo optimisation from the network, or from the landmarks without one,
  for each photo alone and for all with one identity; `landmarks, all` and `landmark steps, all` stop before the pixels.

`median_mm`, `mean_mm`: rigid alignment, the metrical variant; `scaled_…`: with a scale, NoW's own. `expressive_…`: the
mesh with the expression of the first photo. `iterations`, `seconds`: the work of the refinement.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import trimesh
import typer
from rich.console import Console
from rich.table import Table

from models.face.camera import crop_camera
from models.face.morphable import MorphableModel
from models.face.surface import SurfaceTopology, now_distance
from models.landmarks.detector import LandmarkDetector, build_detector
from models.reconstruction.aggregate import aggregate
from models.reconstruction.photo_fit import ANCHOR, LANDMARK_STEPS, PHOTO_STEPS, mean_start, refine_coefficients
from models.reconstruction.photos import crop_photo, detect_reduced
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor
from models.rendering.shade import vertex_normals
from models.types import Batch
from tasks.artifacts import Workspace, load_checkpoint, write_json
from tasks.detect import open_detector
from tasks.face_model import load_face_model
from tasks.images import decode, read_file
from tasks.params import Params, load_params
from tasks.scan_landmarks import find_scan_landmarks, read_scan_landmarks

SCAN = Path("../shared/data/scans/james")


def read_scan(folder: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """Points (N, 3) and landmarks (68, 3) in millimetres, and the photos.

    Raises: FileNotFoundError or ValueError with a one-line remedy.
    """
    meshes = [folder / f"{folder.name}{suffix}" for suffix in (".obj", ".ply")]
    mesh = next((path for path in meshes if path.is_file()), None)
    photos = sorted(folder.glob("view_*.jpg"))
    if mesh is None or not photos:
        raise FileNotFoundError(
            f"{folder}: expected {meshes[0].name} or .ply and view_*.jpg; name a folder of a scan with --scan"
        )
    landmarks = read_scan_landmarks(find_scan_landmarks(mesh))
    if not np.isfinite(landmarks).all():
        raise ValueError(f"{folder}: landmarks of the scan that are not finite, expected all {len(landmarks)}")
    vertices = np.unique(np.asarray(trimesh.load(mesh, process=False, force="mesh").vertices, np.float64), axis=0)
    return vertices, landmarks, photos


def find_crops(photos: list[Path], detector: LandmarkDetector, params: Params) -> list[Batch]:
    """The crop of each photo, a batch of one.

    Raises: ValueError if a photo shows no face.
    """
    crops = []
    for path in photos:
        content = read_file(path, max_bytes=params.ingest.max_image_bytes)
        photo = decode(content, max_bytes=params.ingest.max_image_bytes, max_pixels=params.ingest.max_image_pixels)
        (found,) = detect_reduced(detector, [photo], params.ingest.max_side_px)
        if not found:
            raise ValueError(f"{path}: no face was found; train the detector on photos like this one")
        size, scale = params.project.crop_size_px, params.validate_labels.crop_scale
        crops.append(crop_photo(photo, found[0], size_px=size, scale=scale, name=path.stem)[0])
    return crops


def join(crops: list[Batch]) -> Batch:
    """All photos as one batch of one person."""
    first = crops[0]
    return Batch(
        source=first.source,
        sample_ids=tuple(name for crop in crops for name in crop.sample_ids),
        camera=crop_camera(len(crops), first.camera.size[0]),
        image=torch.cat([crop.image for crop in crops]),
        mask=torch.cat([crop.mask for crop in crops]),
        landmarks=torch.cat([crop.landmarks for crop in crops]),
        confidence=torch.cat([crop.confidence for crop in crops]),
        person=torch.zeros(len(crops), dtype=torch.int64),
    )


class Measurement:
    """Distances of one scan to any prediction of a face model."""

    def __init__(self, model: MorphableModel, points: np.ndarray, landmarks: np.ndarray) -> None:
        self.model, self.points, self.landmarks = model, points, landmarks
        self.topology = SurfaceTopology.build(model.triangles.numpy(), model.vertex_count)

    def of(self, identity: torch.Tensor, expression: torch.Tensor) -> dict[str, float]:
        """Errors of the first face of a batch, in millimetres."""
        numbers = {}
        for prefix, expressed in (("", None), ("expressive_", expression[:1])):
            vertices = self.model.vertices(identity[:1], expressed)
            rigid, scaled = now_distance(
                self.points,
                self.landmarks,
                vertices[0].double().numpy(),
                vertex_normals(vertices, self.model.triangles)[0].double().numpy(),
                self.model.landmarks(vertices)[0].double().numpy(),
                self.topology,
            )
            for kind, distance in (("", rigid), ("scaled_", scaled)):
                numbers[f"{prefix}{kind}median_mm"] = round(float(np.median(distance)), 4)
                numbers[f"{prefix}{kind}mean_mm"] = round(float(distance.mean()), 4)
        return numbers


def measure(
    model: MorphableModel,
    reconstructor: Reconstructor | None,
    crops: list[Batch],
    measurement: Measurement,
    *,
    photo_steps: int,
) -> dict[str, Any]:
    """The rows of the table by name."""
    none = torch.zeros(1, model.identity_size), torch.zeros(1, model.expression_size)
    rows: dict[str, Any] = {"mean face": measurement.of(*none)}
    sets = {crop.sample_ids[0]: crop for crop in crops}
    if len(crops) > 1:
        sets["all"] = join(crops)
    for name, batch in sets.items():
        person = torch.zeros(len(batch.sample_ids), dtype=torch.int64)
        start = mean_start(model, batch, person=person)
        rows[f"landmarks, {name}"] = measurement.of(start.identity, start.expression)
        anchor = None
        if reconstructor is not None:
            with torch.no_grad():
                start, anchor = reconstructor(batch.image, batch.landmarks, batch.confidence), ANCHOR
            if name == "all":
                for method in ("mean", "analytic"):
                    fused = aggregate(
                        model, batch, start, method=method, person=person, identity_map=reconstructor.identity_map()
                    ).coefficients
                    rows[f"{method}, all"] = measurement.of(fused.identity, fused.expression)
                start = fused
                held = refine_coefficients(model, batch, start, anchor=anchor, person=person, photo_steps=0)
                rows["landmark steps, all"] = measurement.of(held.identity, held.expression)
            else:
                rows[f"network, {name}"] = measurement.of(start.identity, start.expression)
        begun = time.perf_counter()
        refined = refine_coefficients(
            model, batch, start, anchor=anchor, person=person, photo_steps=photo_steps, landmark_steps=LANDMARK_STEPS
        )
        seconds = round(time.perf_counter() - begun, 2)
        work = {"iterations": photo_steps, "seconds": seconds}
        rows[f"refined, {name}"] = {**measurement.of(refined.identity, refined.expression), **work}
    return rows


def main(
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml and artifacts/.")],
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go.")],
    scan: Annotated[Path, typer.Option(help="Folder with a mesh, its 68 points and photos.")] = SCAN,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of a training stage; default: the workspace's refusion, if any.")
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(help="Checkpoint of a detector of ours; default: the workspace's.")
    ] = None,
    photo_steps: Annotated[int, typer.Option(min=1, help="Steps by the photo.")] = PHOTO_STEPS,
) -> None:
    """Measure the reconstructions of a workspace's model against a scan."""
    place = Workspace(workspace)
    params = load_params(place.params)
    points, landmarks, photos = read_scan(scan)
    model = load_face_model(params, place)
    path = checkpoint or place.folder("refusion") / "checkpoint.pt"
    if checkpoint is not None and not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; name one such as artifacts/refusion/checkpoint.pt")
    reconstructor = load_reconstructor(load_checkpoint(path), model) if path.is_file() else None
    finder = (
        open_detector(params, place)
        if detector is None
        else build_detector("hierarchical", content=load_checkpoint(detector), convention="model", runtime="torch")
    )
    crops = find_crops(photos, finder, params)
    rows = measure(model, reconstructor, crops, Measurement(model, points, landmarks), photo_steps=photo_steps)
    write_json(json_file, {"scan": scan.name, "face_model": model.stamp(), "network": str(path), "faces": rows})
    table = Table("face", "median", "mean", "scaled median", "scaled mean", title=f"{scan.name}: scan to mesh, mm")
    for name, row in rows.items():
        keys = ("median_mm", "mean_mm", "scaled_median_mm", "scaled_mean_mm")
        table.add_row(name, *[f"{row[key]:.2f}" for key in keys])
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
