"""Experiments: train several variants of the stages on the same data with several seeds, and compare them.

Every training is kept under a key of all it depends on, so that variants share what they have in common, a finished
training is never repeated, and a killed experiment goes on where it stopped. Nothing of the workspace is changed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.face.morphable import MorphableModel
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor, reconstructor_content
from models.training.data import CropSet
from models.training.loop import build_fabric
from models.types import Batch
from tasks.artifacts import (
    CLEAN,
    Workspace,
    load_checkpoint,
    read_json,
    read_table,
    replace_file,
    save_checkpoint,
    write_json,
)
from tasks.compare import Result, write_comparison
from tasks.dataset import load_crops
from tasks.evaluate import predict_mean_face
from tasks.face_model import load_face_model
from tasks.measure import Measured, Predict, Truth, measure_stage, prepare_truth, summarize
from tasks.params import Params
from tasks.refusion import best_round, fuse_again, write_rows
from tasks.tracking import TrackedRun, finite, track_experiment, tracking_uri
from tasks.train import fingerprint, fit, labelled_shares, load_trainee, write_curve
from tasks.variants import STAGES, LabelChange, Variant, labelled_sources, seeded, with_changed_labels

LOADING_SECONDS = 4.0
"""Guess of what starting a training costs beside its steps."""

EVALUATION_SECONDS_PER_PHOTO = 0.03


@dataclass(frozen=True)
class Training:
    """One stage of one variant with one seed, and where its weights are kept."""

    key: str
    stage: str
    params: Params
    labels: LabelChange
    init: str
    """Key of what it starts from."""
    steps: int


@dataclass(frozen=True)
class Trial:
    """A variant with a seed."""

    variant: Variant
    seed: int
    start: str
    """Key of the untrained network of this seed."""
    trainings: tuple[Training, ...]

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.variant.name}-{self.seed}"

    @property
    def key(self) -> str:
        """Key of the weights that are measured."""
        return self.trainings[-1].key if self.trainings else self.start


@dataclass(frozen=True)
class Experiment:
    """Variants to be compared."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    reference: str
    """Name of the variant with which the others are compared photo by photo."""
    headline: tuple[str, str] | None = None
    """The comparison that matters most: first minus second."""


def run_experiment(
    experiment: Experiment,
    params: Params,
    workspace: Workspace,
    out: Path,
    *,
    seeds: int,
    command: str,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Train and measure what is missing, then write table and plot; `say` is told what is done.

    Raises: FileNotFoundError if the workspace lacks the stages before training.
    """
    trials = plan(experiment, params, workspace, seeds=seeds)
    bench = Bench.open(params, workspace)
    noted = out / "mlflow.json"
    before = read_json(noted) if noted.exists() else {}
    same_server = before.get("tracking_uri") == tracking_uri(params, workspace)
    run_id = before.get("run_id") if same_server else None
    with track_experiment(params, workspace, experiment.name, run_id=run_id) as run:
        out.mkdir(parents=True, exist_ok=True)
        write_json(noted, {"tracking_uri": tracking_uri(params, workspace), "run_id": run.run_id})
        for number, trial in enumerate(trials):
            if not _finished(trial, out):
                say(f"[{number + 1}/{len(trials)}] {trial.variant.title}, seed {trial.seed}")
                _run_trial(trial, workspace, out, bench, run, say)
        results = [_read_result(trial, out) for trial in trials]
        paths = write_comparison(
            out,
            results,
            name=experiment.name,
            title=experiment.title,
            reference=experiment.reference,
            headline=experiment.headline,
            persons=bench.crops.person.numpy(),
            command=command,
        )
        for path in paths:
            run.artifact(path)


def plan(experiment: Experiment, params: Params, workspace: Workspace, *, seeds: int) -> list[Trial]:
    """Every variant with every seed; baselines once."""
    first = params.project.seed
    geometry = workspace.folder("train_geometry") / "checkpoint.pt"
    data = workspace.folder("validate_labels") / "clean.parquet"
    for path in (geometry, data):
        if not path.exists():
            raise FileNotFoundError(f"{path}: missing; run the stage {path.parent.name} first")
    given = hashlib.sha256(geometry.read_bytes() + data.read_bytes()).hexdigest()
    trials = []
    for variant in experiment.variants:
        for seed in range(first, first + (1 if variant.baseline else seeds)):
            own = seeded(variant.params, seed)
            start = key = _digest(given, "start", seed)
            trainings = []
            for stage in variant.stages:
                init = key
                fused = repr(own.train_fused) if stage == "refusion" else ""
                key = _digest(fingerprint(own, stage, []), fused, variant.labels, init)
                trainings.append(Training(key, stage, own, variant.labels, init, _steps(own, stage)))
            trials.append(Trial(variant, seed, start, tuple(trainings)))
    return trials


def labelled_persons(params: Params, workspace: Workspace) -> int:
    """Persons with label meshes in the training split."""
    return len(set(_clean(workspace, split="train", sources=labelled_sources(params))))


def estimate(trials: Sequence[Trial], workspace: Workspace, out: Path) -> tuple[int, float]:
    """Trainings that are still to be done, and a guess of the seconds that they and the measuring take."""
    cost = seconds_per_step(workspace)
    todo = {
        training.key: training for trial in trials for training in trial.trainings if not _kept(training, out).exists()
    }
    # Re-fusion trains as stage 3 does.
    seconds = sum(
        training.steps * cost.get(training.stage, cost.get("train_fused", 0.2)) + LOADING_SECONDS
        for training in todo.values()
    )
    measured = sum(not _finished(trial, out) for trial in trials)
    photos = len(_clean(workspace, split="test"))
    return len(todo), seconds + measured * photos * EVALUATION_SECONDS_PER_PHOTO


def seconds_per_step(workspace: Workspace) -> dict[str, float]:
    """What a step of each stage cost in the workspace's own run, validations included; stages not run are left out."""
    found = {}
    for stage in STAGES:
        path = workspace.folder(stage) / "metrics.json"
        if path.exists():
            metrics = read_json(path)
            if metrics.get("steps") and metrics.get("seconds"):
                found[stage] = metrics["seconds"] / metrics["steps"]
    return found


@dataclass(frozen=True)
class Bench:
    """What every variant is measured with: face model and test split."""

    model: MorphableModel
    crops: CropSet
    truth: Truth
    batch_size: int
    device: torch.device

    @classmethod
    def open(cls, params: Params, workspace: Workspace) -> Bench:
        """Read the test split and prepare its meshes."""
        model = load_face_model(params, workspace)
        crops = load_crops(workspace, params, split="test")
        device = build_fabric(device=params.project.device, precision=params.project.precision).device
        return cls(model, crops, prepare_truth(model, crops), params.evaluate.batch_size, device)

    def measure(self, predict: Predict) -> Measured:
        """Measure every photo of the split."""
        return measure_stage(
            predict, self.crops, model=self.model, truth=self.truth, batch_size=self.batch_size, device=self.device
        )


def _run_trial(
    trial: Trial, workspace: Workspace, out: Path, bench: Bench, parent: TrackedRun, say: Callable[[str], None]
) -> None:
    with parent.child(trial.name) as run:
        run.tags({"mien.variant": trial.variant.name})
        run.params({"seed": trial.seed, "labels": asdict(trial.variant.labels)})
        run.params({name: getattr(trial.variant.params, name).model_dump(mode="json") for name in trial.variant.stages})
        checkpoint = _start(trial, workspace, out)
        seconds, steps, offset = 0.0, 0, 0
        rounds: list[dict[str, Any]] = []
        for training in trial.trainings:
            path = _kept(training, out)
            if not path.exists():
                began = time.monotonic()
                _train(training, checkpoint, workspace, out, run)
                say(f"    {training.stage}: {time.monotonic() - began:.0f} s")
            done = read_json(path.with_suffix(".json"))
            seconds, steps = seconds + done["seconds"], steps + done["steps"]
            rounds = done.get("rounds", [])
            run.metrics({f"best/{name}": value for name, value in finite(done["validation"]).items()}, step=offset)
            offset += training.steps
            checkpoint = path
        began = time.monotonic()
        measured = bench.measure(_predictor(trial, checkpoint, bench))
        everyone = np.ones(len(bench.crops), dtype=bool)
        summary = summarize(measured, bench.crops.person.numpy(), everyone)
        run.metrics(finite(summary))
        with replace_file(out / "results" / f"{trial.name}.npz") as temporary:
            np.savez(temporary, moments=measured.moments.numpy(), **measured.values)
        write_json(
            out / "results" / f"{trial.name}.json",
            {
                "fingerprint": trial.key,
                "variant": trial.variant.name,
                "seed": trial.seed,
                "steps": steps,
                "seconds": round(seconds, 1),
                "measuring_seconds": round(time.monotonic() - began, 1),
                "rounds": rounds,
                "summary": summary,
            },
        )


def _train(training: Training, checkpoint: Path, workspace: Workspace, out: Path, run: TrackedRun) -> None:
    """Train one stage as the pipeline does, from other weights and with other labels; keeps weights and numbers."""
    params, stage = training.params, training.stage
    section = params.train_fused if stage == "refusion" else getattr(params, stage)
    trainee = load_trainee(params, workspace, checkpoint, sources=[source.source for source in section.sources])
    changed = with_changed_labels(
        trainee.crops,
        training.labels,
        labelled=sorted(trainee.labelled),
        model=trainee.reconstructor.model,
        seed=params.project.seed,
    )
    trainee = replace(trainee, crops=changed)
    progress, path = out / "progress" / training.key, _kept(training, out)
    done: dict[str, Any]
    if stage == "refusion":
        began = time.monotonic()
        found = fuse_again(trainee, params, progress=progress, identity=training.key, run=run)
        kept = best_round(found.rounds)
        done = {
            "steps": params.refusion.steps * (len(found.rounds) - 1),
            "seconds": time.monotonic() - began,
            "validation": {"similarity": kept.similarity, "vertex_error_mm": kept.geometry},
            "stopped": found.stopped,
            "rounds": [asdict(row) for row in found.rounds],
        }
        curve = found.curve
        write_rows(path.with_suffix(".groups.csv"), found.groups)
    else:
        result = fit(
            trainee,
            section,
            shares=labelled_shares(section.sources, trainee, share=section.labelled_share),
            seed=params.project.seed,
            progress_folder=progress,
            identity=training.key,
            name=stage,
        )
        done = {"steps": result.steps, "seconds": result.seconds, "validation": result.best}
        done["best_step"] = result.best_step
        curve = result.curve
    run.curve({**row, "split": f"{stage}/{row['split']}"} for row in curve)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_curve(path.with_suffix(".csv"), curve)
    write_json(path.with_suffix(".json"), {"stage": stage, **done})
    # Last, because it says that the rest is there.
    save_checkpoint(path, reconstructor_content(trainee.reconstructor))
    (progress / "rounds.pt").unlink(missing_ok=True)


def _start(trial: Trial, workspace: Workspace, out: Path) -> Path:
    """The pretrained geometry branch with an image branch of the trial's seed.

    The seed of the workspace gives the image branch that its own stages started from.
    """
    geometry = workspace.folder("train_geometry") / "checkpoint.pt"
    first = trial.variant.params.project.seed
    path = out / "checkpoints" / f"{trial.start}.pt"
    if trial.seed == first:
        return geometry
    if not path.exists():
        model = load_face_model(trial.variant.params, workspace)
        trained = load_reconstructor(load_checkpoint(geometry), model)
        torch.manual_seed(trial.seed)
        fresh = Reconstructor(model, trained.settings)
        fresh.encoder.geometry.load_state_dict(trained.encoder.geometry.state_dict())
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, reconstructor_content(fresh))
    return path


def _predictor(trial: Trial, checkpoint: Path, bench: Bench) -> Predict:
    if trial.variant.name == "mean_face":
        model = bench.model.to(bench.device)
        return lambda batch: predict_mean_face(model, batch)
    reconstructor = load_reconstructor(load_checkpoint(checkpoint), bench.model).to(bench.device)

    def predict(batch: Batch) -> Any:
        image = batch.image.contiguous(memory_format=torch.channels_last)
        coefficients = reconstructor(image, batch.landmarks, batch.confidence)
        drawn = reconstructor.reconstruct(coefficients, batch.camera, shade=True)
        assert drawn.rendering is not None
        return coefficients, drawn.rendering, drawn.landmarks

    return predict


def _steps(params: Params, stage: str) -> int:
    if stage == "refusion":
        return params.refusion.steps * params.refusion.max_rounds
    return int(getattr(params, stage).steps)


def _kept(training: Training, out: Path) -> Path:
    return out / "checkpoints" / f"{training.key}.pt"


def _finished(trial: Trial, out: Path) -> bool:
    path = out / "results" / f"{trial.name}.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["fingerprint"] == trial.key


def _read_result(trial: Trial, out: Path) -> Result:
    content = read_json(out / "results" / f"{trial.name}.json")
    with np.load(out / "results" / f"{trial.name}.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return Result(
        variant=trial.variant.name,
        title=trial.variant.title,
        seed=trial.seed,
        steps=content["steps"],
        seconds=content["seconds"],
        summary=content["summary"],
        rounds=content["rounds"],
        moments=arrays.pop("moments"),
        values=arrays,
    )


def _clean(workspace: Workspace, *, split: str, sources: Sequence[str] | None = None) -> list[str]:
    """The person of every validated photo of a split."""
    table = read_table(workspace.folder("validate_labels") / "clean.parquet", CLEAN)
    rows = zip(*(table[name].to_pylist() for name in ("split", "source", "person")), strict=True)
    return [person for found, source, person in rows if found == split and (sources is None or source in sources)]


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:20]
