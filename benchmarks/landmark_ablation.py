"""What each part of the landmark network is worth: `python -m benchmarks.landmark_ablation --workspace W --out DIR`.

Trains small detectors on the photos of an ingested workspace, all alike but for one part, with several seeds each:

- `as designed`: poses balanced, Wing loss on warped copies, linear attention;
- `unbalanced`: every photo as often as it occurs, straight and mirrored, so that the mirror images are no advantage;
- `no copies`: the loss on warped copies weighs nothing; they are still computed, so that a step sees as many crops;
- `softmax attention`: in place of linear attention.

`--large-share 0.1` first leaves out photos with a large yaw until they are a tenth of the training set, as among photos
found in the world; synthetic photos are even over yaw, and there is nothing to balance.

Measured on the workspace's test split, which training did not see; errors are fractions of the square root of the area
of the box around the annotated points:

- `crop`: mean error on crops that are framed as in training, overall and by |yaw|: the network alone;
- `photo`, `failed`: median error from whole photos without a box, and the share of photos that fail by more than 10 %
  or show no face: the whole search;
- `ms_per_step` of training, `ms_per_crop` forward in batches: processor time of all `--threads` threads together, which
  a busy machine leaves nearly as it is.

DIR gets a JSON file per run, `ablation.json` and `ablation.md`, a table of means ± standard deviations over seeds. A
run whose file is there with the same settings is not repeated, and one that was killed goes on from its last eighth.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.landmark_evaluation.recipes import VARIANTS, fewer_large, train_variant
from models.landmarks.accuracy import MeasuredFaces, accuracy_by_yaw, face_errors, measure_accuracy
from models.landmarks.augment import Augmentation, tight_crops
from models.landmarks.cascade import HierarchicalDetector
from models.landmarks.hierarchical import HierarchicalNetwork
from tasks.annotated_photos import AnnotatedPhotos, load_annotated
from tasks.artifacts import Workspace, read_json, replace_file, write_json
from tasks.params import Params, load_params

EDGES_DEG = (0.0, 15.0, 30.0, 45.0, 60.0, 90.0)
CROP_SEED = 12345
FORWARD_BATCH, FORWARD_REPEATS = 32, 15
FAILED = 0.1

Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What all runs share; a file of other settings is made again."""

    steps: int
    large_share: float | None
    test_photos: int
    threads: int
    params: str
    """Hash of the parameters and of the photos."""


@torch.inference_mode()
def crop_accuracy(network: HierarchicalNetwork, photos: AnnotatedPhotos, *, shape: np.ndarray) -> MeasuredFaces:
    """Points found in crops that are framed with training's errors, the same crops for every network."""
    size, count = network.input_size_px, len(photos.images)
    crops = tight_crops(
        photos.images,
        photos.points,
        np.arange(count),
        shape=shape,
        size_px=size,
        flip=np.zeros(count, bool),
        augmentation=Augmentation(),
        generator=np.random.default_rng(CROP_SEED),
    )
    pixels = torch.from_numpy(crops.images).permute(0, 3, 1, 2).float() / 255.0
    found = torch.cat([network(part).points for part in pixels.split(64)]).numpy().astype(np.float64)
    return MeasuredFaces(crops.points.astype(np.float64), found, np.full((count, 68), 0.5), photos.yaw_deg)


def photo_errors(network: HierarchicalNetwork, photos: AnnotatedPhotos, *, shape: np.ndarray) -> np.ndarray:
    """Error of the best face of each whole photo over the box's size, infinite where none was found."""
    detector = HierarchicalDetector(network, input_size_px=network.input_size_px, mean_shape=shape)
    found = detector.detect(photos.images)
    points = np.array([np.full((68, 2), np.nan) if one is None else one.landmarks for one in found], np.float64)
    faces = MeasuredFaces(photos.points.astype(np.float64), points, np.full(points.shape[:2], 0.5), photos.yaw_deg)
    return np.where(faces.hits(), face_errors(faces).box68, np.inf)


@torch.inference_mode()
def forward_milliseconds(network: HierarchicalNetwork) -> float:
    """Median processor time of a crop in batches."""
    crops = torch.rand(FORWARD_BATCH, 3, network.input_size_px, network.input_size_px)
    crops = crops.contiguous(memory_format=torch.channels_last)
    taken = []
    for _ in range(FORWARD_REPEATS):
        started = time.process_time()
        network(crops)
        taken.append(1000.0 * (time.process_time() - started) / FORWARD_BATCH)
    return float(np.median(taken))


def measure(network: HierarchicalNetwork, test: AnnotatedPhotos, *, shape: np.ndarray, large_pose_deg: float) -> Row:
    """All numbers of a trained network but those of its training; bins without photos are left out."""
    faces = crop_accuracy(network, test, shape=shape)
    whole = photo_errors(network, test, shape=shape)
    large = np.abs(test.yaw_deg) > large_pose_deg
    row: Row = {"crop": measure_accuracy(faces).nme68_box}
    for name, rows in (("small", ~large), ("large", large)):
        if rows.any():
            row[f"crop {name}"] = measure_accuracy(faces.take(rows)).nme68_box
    for low, high, accuracy in accuracy_by_yaw(faces, EDGES_DEG):
        if accuracy.count:
            row[f"crop {low:g}-{high:g}°"] = accuracy.nme68_box
    found = whole[np.isfinite(whole)]
    if len(found):
        row["photo"] = float(np.median(found))
    return {**row, "failed": float((whole > FAILED).mean()), "ms_per_crop": forward_milliseconds(network)}


def summarize(runs: dict[str, list[Row]]) -> list[Row]:
    """Per variant the mean and standard deviation of every number over seeds, and how seeds differ from the design.

    `agree` lists the numbers in which every seed that both have lies on the same side of the design's.
    """
    reference = {run["seed"]: run["numbers"] for run in runs.get("as designed", [])}
    table = []
    for name, own in runs.items():
        numbers = [run["numbers"] for run in own]
        keys = [key for key in numbers[0] if all(key in one for one in numbers)]
        differences = {
            key: [
                run["numbers"][key] - reference[run["seed"]][key]
                for run in own
                if key in reference.get(run["seed"], {})
            ]
            for key in keys
        }
        table.append(
            {
                "variant": name,
                "seeds": sorted(run["seed"] for run in own),
                "mean": {key: float(np.mean([one[key] for one in numbers])) for key in keys},
                "spread": {key: float(np.std([one[key] for one in numbers])) for key in keys},
                "differences": differences,
                "agree": [
                    key for key, gaps in differences.items() if len(gaps) > 1 and abs(np.sign(gaps).sum()) == len(gaps)
                ],
            }
        )
    return table


def markdown(table: list[Row]) -> str:
    """Errors and shares in percent, times in milliseconds; * where all seeds lie on one side of the design."""
    keys = [key for key in table[0]["mean"] if all(key in row["mean"] for row in table)] if table else []
    lines = [f"| {' | '.join(['variant', 'seeds', *keys])} |", f"|{'---|' * (len(keys) + 2)}"]
    for row in table:
        cells = [row["variant"], str(len(row["seeds"]))]
        for key in keys:
            factor = 1.0 if key.startswith("ms") else 100.0
            mark = "*" if key in row["agree"] else ""
            cells.append(f"{factor * row['mean'][key]:.2f} ± {factor * row['spread'][key]:.2f}{mark}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run_one(
    name: str, seed: int, budget: Budget, training: AnnotatedPhotos, test: AnnotatedPhotos, params: Params, out: Path
) -> Row:
    """Numbers of a variant and a seed, from its file where that was made with the same settings."""
    stem = f"{name.replace(' ', '-')}-{seed}"
    path, asked = out / f"{stem}.json", {"variant": name, "seed": seed, **asdict(VARIANTS[name]), **asdict(budget)}
    if path.is_file():
        known = read_json(path)
        if known["settings"] == asked:
            return {"seed": seed, "numbers": known["numbers"]}
    network, samples, seconds, steps = train_variant(
        VARIANTS[name],
        training,
        params=params,
        steps=budget.steps,
        seed=seed,
        progress_folder=out / "progress" / stem,
        fingerprint=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
    )
    numbers = measure(network, test, shape=samples.mean_shape, large_pose_deg=params.train_detector.large_pose_deg)
    numbers["ms_per_step"] = 1000.0 * seconds / max(1, steps)
    write_json(path, {"settings": asked, "numbers": numbers})
    return {"seed": seed, "numbers": numbers}


def main(
    out: Annotated[Path, typer.Option(help="folder of the results; runs that are finished there are not repeated")],
    workspace: Annotated[Path, typer.Option(help="with params.yaml and artifacts/ingest")] = Path(),
    steps: Annotated[int, typer.Option(min=1, help="of training, each")] = 600,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each variant")] = 3,
    large_share: Annotated[
        float | None, typer.Option(min=0.001, max=0.999, help="of large yaw in the training set; default: as it is")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"variants: {', '.join(VARIANTS)}; default: all")] = None,
    test_photos: Annotated[int, typer.Option(min=1, help="of the test split, at most")] = 400,
    threads: Annotated[int, typer.Option(min=1, help="of torch")] = 2,
) -> None:
    """Train every variant with every seed and write a table."""
    console = Console(width=140) if not Console().is_terminal else Console()
    torch.set_num_threads(threads)
    unknown = sorted(set(only or []) - set(VARIANTS))
    if unknown:
        console.print(f"--only {unknown[0]}: expected one of {', '.join(VARIANTS)}", style="red", markup=False)
        raise typer.Exit(1)
    place = Workspace(workspace.absolute())
    try:
        params = load_params(place.params)
        training = load_annotated(params, place, "train", size_px=params.train_detector.input_size_px).of_face_model()
        test = load_annotated(params, place, "test", size_px=None).of_face_model().some(test_photos, seed=0)
    except (FileNotFoundError, ValueError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None
    section = params.train_detector
    if large_share is not None:
        rows = fewer_large(training.yaw_deg, large_share, limit_deg=section.large_pose_deg, seed=0)
        training = training.take(rows)
    content = repr(section) + hashlib.sha256(training.points.tobytes()).hexdigest()
    budget = Budget(steps, large_share, test_photos, threads, hashlib.sha256(content.encode()).hexdigest()[:16])
    out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[Row]] = {}
    # Seed by seed, so that a table over all variants exists early.
    for seed in range(seeds):
        for name in only or VARIANTS:
            runs.setdefault(name, []).append(run_one(name, seed, budget, training, test, params, out))
            numbers = runs[name][-1]["numbers"]
            console.print(f"{name}, seed {seed}: crop {100 * numbers['crop']:.2f} %", highlight=False)
            table = summarize(runs)
            write_json(out / "ablation.json", {"budget": asdict(budget), "variants": table})
            with replace_file(out / "ablation.md") as temporary:
                temporary.write_text(markdown(table), encoding="utf-8")
    console.print(markdown(table), highlight=False, markup=False)


if __name__ == "__main__":
    typer.run(main)
