"""Whether persons can be told apart by their reconstructed shapes, on photos of persons whom no training saw.

`python -m benchmarks.identity persons --workspace W --json FILE` renders new persons, detects and crops them as the
workspace does, and compares checkpoints: `--checkpoint` may be repeated, the first is what the others are compared
with. The JSON file holds for each, over all `--seeds` (each draws other persons):

- `geometry_accuracy`, `geometry_auc`, `geometry_tar`: ten-fold accuracy, AUC and the share of pairs of one person that
  is accepted at 1 % false, by the RMS distance of neutral shapes; the same by distance (`euclidean_…`) and angle
  (`cosine_…`) of coefficients; all pairs of one person, as many as fit of two, both kinds counting alike;
- `distinctness`, `rank1_neutral` (nearest true face is the own one), `rank1_photo`; with `by_yaw` by the larger angle;
- `shape_error_mm`: RMS distance to the true shape after rigid alignment, and `of_first`: all of these over the first's.

`python -m benchmarks.identity bias` prints what the divergence of a batch's own moments is where it should be zero, the
reason why `distribution` keeps running moments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.face.morphable import MorphableModel
from models.losses.coefficients import geometry_embedding
from models.losses.identity import batch_bias, distribution, divergence
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor
from models.training.person_memory import FACES_REMEMBERED
from tasks.artifacts import Workspace, load_checkpoint, write_json
from tasks.detect import open_detector
from tasks.face_model import load_face_model
from tasks.identity_report import identity_metrics
from tasks.params import load_params
from tasks.set_evaluation import PhotoSets, render_sets

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)

AT_ONCE = 64
SHOWN = {
    "geometry_accuracy": ("same or not, by shape, %", 100.0, 1),
    "geometry_auc": ("AUC", 1.0, 3),
    "geometry_tar": ("accepted at 1 % false, %", 100.0, 1),
    "euclidean_accuracy": ("by coefficients, %", 100.0, 1),
    "cosine_accuracy": ("by their angle, %", 100.0, 1),
    "distinctness": ("distinctness", 1.0, 3),
    "rank1_neutral": ("own true face nearest, %", 100.0, 1),
    "shape_error_mm": ("shape error, mm", 1.0, 3),
}


@app.command()
def persons(
    json: Annotated[Path, typer.Option(help="File for the numbers.")],
    workspace: Annotated[Path, typer.Option(help="Whose detector, face model and crops.")] = Path(),
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoints to compare; default: train_supervised, train_fused, refusion."),
    ] = None,
    count: Annotated[int, typer.Option("--persons", min=10)] = 150,
    photos: Annotated[int, typer.Option(min=2, help="Of each person.")] = 4,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Compare checkpoints on new persons."""
    place = Workspace(workspace)
    params = load_params(place.params)
    model = load_face_model(params, place)
    stages = ("train_supervised", "train_fused", "refusion")
    paths = checkpoint or [place.folder(stage) / "checkpoint.pt" for stage in stages]
    networks = {str(path): load_reconstructor(load_checkpoint(path), model) for path in paths}
    detector = open_detector(params, place)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in networks}
    for seed in range(seeds):
        # Far from the seeds of workspaces, whose persons training may have seen.
        sets = render_sets(params, model, detector, persons=count, photos=photos, seed=10_000 + seed)
        for name, network in networks.items():
            rows[name].append(measure(network, model, sets, edges_deg=params.evaluate.yaw_bins_deg))
    found = summarize(rows)
    write_json(json, {"persons": count, "photos": photos, "seeds": seeds, "checkpoints": found})
    Console().print(table_of(found))


@torch.no_grad()
def measure(
    network: Reconstructor, model: MorphableModel, sets: PhotoSets, *, edges_deg: tuple[float, ...]
) -> dict[str, Any]:
    """One checkpoint on the photos of one seed."""
    batch = sets.batch
    identity = torch.cat(
        [
            network(
                batch.image[part].contiguous(memory_format=torch.channels_last),
                batch.landmarks[part],
                batch.confidence[part],
            ).identity
            for part in torch.arange(len(batch.image)).split(AT_ONCE)
        ]
    )
    embedding = geometry_embedding(model.identity_basis, model.mean)
    truth = true_coefficients(model, sets.neutral) @ embedding
    found = identity_metrics(
        identity,
        embedding=embedding,
        person=batch.person.numpy(),
        yaw_deg=sets.yaw_deg,
        edges_deg=edges_deg,
        gallery=(truth.double().numpy(), np.arange(len(truth))),
        intervals=False,
    )
    apart = torch.linalg.vector_norm(identity @ embedding - truth[batch.person], dim=1)
    return {**found, "shape_error_mm": float(apart.mean())}


def true_coefficients(model: MorphableModel, neutral: Tensor) -> Tensor:
    """Coefficients (N, I) of shapes (N, V, 3) that the face model itself made."""
    basis = model.identity_basis.flatten(1).double().T
    return torch.linalg.lstsq(basis, (neutral - model.mean).flatten(1).double().T).solution.T.float()


def summarize(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and each over the first checkpoint's, seed by seed."""
    first = next(iter(rows.values()))
    found: dict[str, Any] = {}
    for name, seeds in rows.items():
        numbers: dict[str, Any] = {"by_seed": seeds}
        for key in SHOWN:
            values = np.array([row[key] for row in seeds], dtype=np.float64)
            base = np.array([row[key] for row in first], dtype=np.float64)
            numbers[key] = {
                "mean": float(values.mean()),
                "deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
                "gain": (values - base).tolist(),
                "of_first": float((values / base).mean()),
            }
        found[name] = numbers
    return found


def table_of(found: dict[str, Any]) -> Table:
    """The numbers for people; in brackets the difference to the first checkpoint."""
    table = Table("checkpoint", *(title for title, _, _ in SHOWN.values()))
    for place, (name, numbers) in enumerate(found.items()):
        cells = []
        for key, (_, factor, digits) in SHOWN.items():
            text = f"{numbers[key]['mean'] * factor:.{digits}f}"
            if place:
                text += f" ({np.mean(numbers[key]['gain']) * factor:+.{digits}f})"
            cells.append(text)
        table.add_row(name, *cells)
    return table


@app.command()
def bias(
    draws: Annotated[int, typer.Option(min=10, help="Batches of each size.")] = 2000,
    dimensions: Annotated[int, typer.Option(min=1)] = 40,
) -> None:
    """What batches of perfect coefficients, N(0, 1), are told they lack."""
    table = Table("batch", "closed form", "measured", "running moments", "pull, own moments", "pull, running moments")
    for batch_size, row in bias_rows(draws=draws, dimensions=dimensions).items():
        table.add_row(str(batch_size), *(f"{value:.4f}" for value in row))
    Console().print(table)


def bias_rows(
    *, draws: int, dimensions: int, sizes: tuple[int, ...] = (10, 32, 256)
) -> dict[int, tuple[float, float, float, float, float]]:
    """Of each batch size: bias in closed form, measured, and with running moments.

    Then the root mean square of how strongly the loss asks faces to spread or to shrink, dL/dt under α -> (1 + t) α, by
    either: faces are as they should be, so that all of it is noise.
    """
    generator = torch.Generator().manual_seed(0)
    rows = {}
    for size in sizes:
        measured, running, pull, running_pull = 0.0, 0.0, 0.0, 0.0
        mean, square = torch.zeros(dimensions), torch.ones(dimensions)
        for _ in range(draws):
            faces = torch.randn(size, dimensions, generator=generator).requires_grad_()
            own = divergence(faces.mean(0), faces.square().mean(0))
            (slope,) = torch.autograd.grad(own, faces)
            measured += float(own.detach()) / draws
            pull += float((slope * faces.detach()).sum()) ** 2 / draws
            value = distribution(faces, mean, square).mean()
            (slope,) = torch.autograd.grad(value, faces)
            running += float(value.detach()) / draws
            running_pull += float((slope * faces.detach()).sum()) ** 2 / draws
            share = size / max(FACES_REMEMBERED, size)
            mean = mean.lerp(faces.detach().mean(0), share)
            square = square.lerp(faces.detach().square().mean(0), share)
        rows[size] = (batch_bias(size), measured, running, pull**0.5, running_pull**0.5)
    return rows


if __name__ == "__main__":
    app()
