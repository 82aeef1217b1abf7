"""One face from several photos: `python -m benchmarks.photo_sets --workspace W --json FILE [--picture FILE]`.

Persons whom no training saw are rendered, photo by photo under new light, pose and expression, detected and cropped by
the workspace's detector, and put together from 1, 2, 4, 8 and 16 photos by each method. The JSON file holds per method
and number of photos, over all seeds (each draws other persons):

- `scan_error_mm_median`: distance of scan points to the neutral surface by the NoW protocol without scale, pooled over
  all sets; `vertex_error_mm`: mean distance of corresponding vertices after rigid alignment; both with their 95 %
  bootstrap intervals over persons, and the same per seed;
- `gain`: scan error less that of one photo, as a share of it; `less_than`: differences of methods on the same sets,
  person by person;
- `shrinkage`, `norm_ratio`: norm of the mean identity, and of the one found, over that of the photos' (true faces: the
  inverse of `norm_of_photos` over `norm_of_truth`);
- `rejected`: share of photos that were taken for somebody else; `stranger_found`: share of strangers that were, where
  one photo of each set of eight was exchanged;
- `uncertainty`: rank correlation of the predicted standard deviation with the true error of vertices, over all vertices
  of all faces, within faces, and of faces with each other; with several `--checkpoint` also for how far these lie
  apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from models.face.morphable import MorphableModel
from models.losses.coefficients import geometry_embedding
from models.reconstruction.aggregate import METHODS, Aggregate, aggregate, without_outliers
from models.reconstruction.ensemble import Ensemble, nearest_identity, posterior_spread
from models.reconstruction.reconstructor import Reconstructor
from models.types import Batch, FaceCoefficients
from tasks.artifacts import Workspace, write_json
from tasks.detect import open_detector
from tasks.ensembles import open_ensemble
from tasks.params import load_params
from tasks.set_evaluation import (
    PhotoSets,
    SetBench,
    ShapeErrors,
    compare,
    draw_sets,
    encode_sets,
    joined_sets,
    render_sets,
    select,
    summarize,
)

SIZES = (1, 2, 4, 8, 16)
SINGLE = "one photo"
STRANGERS_SIZE = 8
PHOTOS_AT_ONCE = 512


class Trial:
    """The sets of one seed, with what the network says of their photos."""

    def __init__(self, reconstructor: Reconstructor, sets: PhotoSets, *, seed: int, most: int) -> None:
        self.reconstructor, self.sets, self.seed, self.most = reconstructor, sets, seed, most
        self.model: MorphableModel = reconstructor.model
        self.bench = SetBench(self.model, sets.neutral)
        self.coefficients = encode_sets(reconstructor, sets.batch)

    def fused(self, sets: Tensor, method: str) -> tuple[Tensor, Aggregate]:
        """Neutral shapes (K, V, 3) of sets (K, J), and how they came about, photo by photo."""
        shapes, parts = [], []
        for some in sets.split(max(1, PHOTOS_AT_ONCE // sets.shape[1])):
            batch, found, numbers = joined_sets(self.sets.batch, self.coefficients, some)
            part = self._aggregate(batch, found, numbers, method)
            parts.append(part)
            with torch.no_grad():
                shapes.append(self.model.vertices(part.coefficients.identity[:: sets.shape[1]]))
        names = ("weight", "kept", "shrinkage", "norm_ratio", "covariance")
        whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return torch.cat(shapes), Aggregate(coefficients=parts[0].coefficients, **whole)

    def _aggregate(self, batch: Batch, found: FaceCoefficients, numbers: Tensor, method: str) -> Aggregate:
        confidence = None
        if method == "learned":
            with torch.no_grad():
                confidence = self.reconstructor.set_confidence(batch.landmarks, batch.confidence)
        return aggregate(
            self.model,
            batch,
            found,
            method=method,
            person=numbers,
            confidence=confidence,
            identity_map=self.reconstructor.identity_map(),
        )

    def errors(self, size: int, method: str) -> tuple[ShapeErrors, Aggregate]:
        """Errors of all sets of a size; persons are numbered through over the seeds."""
        sets, owners = draw_sets(self.sets.batch.person, size, most=self.most, seed=self.seed)
        shapes, found = self.fused(sets, method)
        return self.bench.errors(shapes, owners), found

    def uncertainty(self, size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Predicted standard deviations and true errors (K, O) in mm by kind, of the analytic answer."""
        sets, owners = draw_sets(self.sets.batch.person, size, most=1, seed=self.seed)
        shapes, found = self.fused(sets, "analytic")
        errors = self.bench.distances(shapes, owners).numpy()
        outer = self.bench.outer
        photos = torch.cat([posterior_spread(self.model, one) for one in found.covariance[::size].split(16)])[:, outer]
        kinds = {"photos": photos}
        if isinstance(self.reconstructor, Ensemble):
            batch = select(self.sets.batch, sets.flatten())
            with torch.no_grad():
                answers = self.reconstructor.answers(batch.image, batch.landmarks, batch.confidence)
            weights = found.weight.view(-1, size, 1)
            means = [_with_identity(one, (weights * one.identity.unflatten(0, (-1, size))).sum(1)) for one in answers]
            kinds["ensemble"] = self.reconstructor.shapes(means).spread[:, outer]
            kinds["both"] = (kinds["photos"].square() + kinds["ensemble"].square()).sqrt()
        return {name: (values.numpy(), errors) for name, values in kinds.items()}

    def strangers(self) -> dict[str, float]:
        """How often somebody else's photo in a set is found."""
        sets, _ = draw_sets(self.sets.batch.person, STRANGERS_SIZE, most=1, seed=self.seed)
        mixed = sets.clone()
        mixed[:, 0] = sets.roll(1, 0)[:, 0]
        embedding = geometry_embedding(self.model.identity_basis, self.model.mean)
        numbers = torch.arange(len(sets)).repeat_interleave(STRANGERS_SIZE)
        kept = without_outliers(self.coefficients.identity[mixed.flatten()], embedding, numbers)
        rejected = ~kept.view(-1, STRANGERS_SIZE)
        return {
            "stranger_found": round(float(rejected[:, 0].float().mean()), 3),
            "others_rejected": round(float(rejected[:, 1:].float().mean()), 3),
        }


def _with_identity(answer: FaceCoefficients, identity: Tensor) -> FaceCoefficients:
    return FaceCoefficients(**{**vars(answer), "identity": identity})


def join_errors(parts: list[ShapeErrors], persons: int) -> ShapeErrors:
    """Errors of several seeds, whose persons are different people."""
    return ShapeErrors(
        person=np.concatenate([part.person + persons * place for place, part in enumerate(parts)]),
        scan=tuple(one for part in parts for one in part.scan),
        vertex_mm=np.concatenate([part.vertex_mm for part in parts]),
    )


def correlations(found: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Rank correlations of predicted and true errors (K, O): of all vertices, within faces, and between faces."""
    predicted, true = (np.concatenate([pair[place] for pair in found]) for place in (0, 1))
    within = [float(spearmanr(*pair).statistic) for pair in zip(predicted, true, strict=True)]
    return {
        "all_vertices": round(float(spearmanr(predicted.ravel(), true.ravel()).statistic), 3),
        "within_faces": round(float(np.mean(within)), 3),
        "between_faces": round(float(spearmanr(predicted.mean(1), true.mean(1)).statistic), 3),
        "predicted_mm": round(float(predicted.mean()), 3),
        "true_mm": round(float(true.mean()), 3),
    }


def measure(trials: list[Trial], *, sizes: tuple[int, ...], persons: int) -> dict[str, Any]:
    """Everything that the module's heading names."""
    methods = [name for name in METHODS if name != "learned" or trials[0].reconstructor.sets is not None]
    rows: dict[str, Any] = {}
    errors: dict[tuple[int, str], ShapeErrors] = {}
    for size in sizes:
        for method in methods if size > 1 else ("mean",):
            parts = [trial.errors(size, method) for trial in trials]
            joined = join_errors([part for part, _ in parts], persons)
            errors[size, method] = joined
            rows[f"{method} {size}" if size > 1 else SINGLE] = {
                "photos": size,
                "method": method,
                **summarize(joined),
                "by_seed": [
                    {
                        key: value
                        for key, value in summarize(part).items()
                        if key in ("scan_error_mm_median", "vertex_error_mm")
                    }
                    for part, _ in parts
                ],
                "shrinkage": _mean([found.shrinkage for _, found in parts]),
                "norm_ratio": _mean([found.norm_ratio for _, found in parts]),
                "rejected": round(1.0 - _mean([found.kept.float() for _, found in parts]), 4),
            }
    single = rows[SINGLE]["scan_error_mm_median"]
    for row in rows.values():
        row["gain"] = round(1.0 - row["scan_error_mm_median"] / single, 4)
    less = {}
    for size in sizes[1:]:
        for first, second in zip(methods[1:], methods[:-1], strict=True):
            found = compare(errors[size, first], errors[size, second], persons * len(trials))
            less[f"{first} less {second}, {size} photos"] = found
    truth = torch.cat([nearest_identity(trial.model, trial.sets.neutral) for trial in trials])
    return {
        "rows": rows,
        "less_than": less,
        "norm_of_photos": _mean([trial.coefficients.identity.norm(dim=1) for trial in trials]),
        "norm_of_truth": round(float(truth.norm(dim=1).mean()), 4),
        "strangers": [trial.strangers() for trial in trials],
        "missed": sum(trial.sets.missed for trial in trials),
    }


def measure_uncertainty(trials: list[Trial], *, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Correlations by number of photos and kind of uncertainty."""
    found: dict[str, Any] = {}
    for size in (size for size in (1, 8) if size in sizes):
        by_trial = [trial.uncertainty(size) for trial in trials]
        for kind in by_trial[0]:
            found[f"{kind}, {size} photos"] = correlations([one[kind] for one in by_trial])
    return found


def draw_curve(path: Path, rows: dict[str, Any]) -> None:
    """Scan error over the number of photos, a line per method."""
    figure = Figure(figsize=(6.0, 3.6))
    FigureCanvasAgg(figure)
    plot = figure.subplots()
    single = rows[SINGLE]
    for method in dict.fromkeys(row["method"] for row in rows.values()):
        line = [single, *(row for row in rows.values() if row["method"] == method and row["photos"] > 1)]
        sizes = [row["photos"] for row in line]
        middle, low, high = ([row[f"scan_error_mm_median{ending}"] for row in line] for ending in ("", "_low", "_high"))
        plot.plot(sizes, middle, marker="o", label=method)
        plot.fill_between(sizes, low, high, alpha=0.12)
    plot.axhline(0.8 * single["scan_error_mm_median"], color="#888888", linestyle=":", linewidth=1)
    plot.set_xscale("log", base=2)
    plot.set_xticks([row["photos"] for row in line], [str(row["photos"]) for row in line])
    plot.set(xlabel="photos of a person", ylabel="scan error, median (mm)")
    plot.legend(frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _mean(parts: list[Tensor]) -> float:
    return round(float(torch.cat(parts).mean()), 4)


def main(
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml and artifacts/.")],
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go.")],
    picture: Annotated[Path | None, typer.Option(help="Where the curve goes, as PNG.")] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Weights; several answer together; default: refusion of the workspace.")
    ] = None,
    persons: Annotated[int, typer.Option(min=2, help="Per seed.")] = 60,
    photos: Annotated[int, typer.Option(min=2, help="Of each person.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of persons.")] = 3,
    first_seed: Annotated[int, typer.Option(help="Of the draws.")] = 1000,
    sets: Annotated[int, typer.Option(min=1, help="At most so many sets of a person.")] = 2,
) -> None:
    """Measure one face from several photos."""
    place = Workspace(workspace)
    params = load_params(place.params)
    reader = open_ensemble(checkpoint or [place.folder("refusion")], params, place)
    detector = open_detector(params, place)
    trials = []
    for seed in range(first_seed, first_seed + seeds):
        rendered = render_sets(params, reader.reconstructor.model, detector, persons=persons, photos=photos, seed=seed)
        trials.append(Trial(reader.reconstructor, rendered, seed=seed, most=sets))
        print(f"seed {seed}: {len(rendered.batch.person)} photos", flush=True)
    sizes = tuple(size for size in SIZES if size <= photos)
    found = measure(trials, sizes=sizes, persons=persons)
    found["uncertainty"] = measure_uncertainty(trials, sizes=sizes)
    write_json(json_file, {"network": reader.origin, "persons": persons, "seeds": seeds, **found})
    table = Table("photos", "method", "scan, mm", "95 %", "gain", "vertex, mm", "norm", title="unseen persons")
    for row in found["rows"].values():
        ends = f"{row['scan_error_mm_median_low']:.3f}–{row['scan_error_mm_median_high']:.3f}"
        table.add_row(
            str(row["photos"]),
            row["method"] if row["photos"] > 1 else "",
            f"{row['scan_error_mm_median']:.3f}",
            ends,
            f"{row['gain']:.1%}",
            f"{row['vertex_error_mm']:.3f}",
            f"{row['norm_ratio']:.2f}",
        )
    Console().print(table)
    for name, row in found["uncertainty"].items():
        print(name, row)
    if picture:
        draw_curve(picture, found["rows"])


if __name__ == "__main__":
    typer.run(main)
