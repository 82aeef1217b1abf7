"""Experiments: train several variants of the stages on the same data with several seeds, and compare them.

Every training is kept under a key of all it depends on, so that variants share what they have in common, a finished
training is never repeated, and a killed experiment goes on where it stopped. Nothing of the workspace is changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from models.face.morphable import MorphableModel
from models.losses.coefficients import geometry_embedding
from models.reconstruction.geometry_branch import GeometryBranch
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor, reconstructor_content
from models.training.data import CropSet
from models.training.loop import build_fabric
from models.training.progress import forget_progress
from tasks.artifacts import (
    Workspace,
    load_checkpoint,
    read_json,
    replace_file,
    save_checkpoint,
    write_curve,
    write_json,
)
from tasks.compare import Result, write_comparison
from tasks.dataset import load_crops
from tasks.face_model import load_face_model
from tasks.identity_report import identity_metrics, true_shapes
from tasks.measure import Measured, Predict, Truth, measure_stage, prepare_truth, summarize, tone_groups
from tasks.params import Params
from tasks.predictions import predict_mean_face, predict_network, predict_optimised
from tasks.refusion import best_round, fuse_again, write_rows
from tasks.tracking import TrackedRun, finite, track_experiment, tracking_uri
from tasks.train import EVALUATION_BATCH, fit, labelled_shares, load_trainee
from tasks.trials import Experiment, Training, Trial, is_measured, plan, weights_path
from tasks.variants import with_changed_labels


def run_experiment(
    experiment: Experiment,
    params: Params,
    workspace: Workspace,
    out: Path,
    *,
    seeds: int,
    command: str,
    only: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Train and measure what is missing, then write table and plot of all that is there; `say` is told what is done.

    With `only` the variants of these names alone are trained.

    Raises: FileNotFoundError if the workspace lacks the stages before training.
    """
    planned = plan(experiment, params, workspace, seeds=seeds)
    trials = [trial for trial in planned if not only or trial.variant.name in only]
    bench = Bench.open(params, workspace)
    noted = out / "mlflow.json"
    before = read_json(noted) if noted.exists() else {}
    same_server = before.get("tracking_uri") == tracking_uri(params, workspace)
    run_id = before.get("run_id") if same_server else None
    with track_experiment(params, workspace, experiment.name, run_id=run_id) as run:
        out.mkdir(parents=True, exist_ok=True)
        write_json(noted, {"tracking_uri": tracking_uri(params, workspace), "run_id": run.run_id})
        for number, trial in enumerate(trials):
            if not is_measured(trial, out):
                say(f"[{number + 1}/{len(trials)}] {trial.variant.title}, seed {trial.seed}")
                _run_trial(trial, workspace, out, bench, run, say)
        results = [_read_result(trial, out) for trial in planned if is_measured(trial, out)]
        paths = write_comparison(
            out,
            results,
            name=experiment.name,
            title=experiment.title,
            reference=experiment.reference,
            headline=experiment.headline,
            axis=experiment.axis,
            persons=bench.crops.person.numpy(),
            command=command,
            photo_groups=skin_tones(workspace, bench.crops) if experiment.by_tone else None,
        )
        for path in paths:
            run.artifact(path)


def skin_tones(workspace: Workspace, crops: CropSet) -> dict[str, np.ndarray]:
    """Photos (N,) of each group of skin tones, as the workspace's last evaluation saw them; none without one."""
    path = workspace.folder("evaluate") / "samples.parquet"
    if not path.exists():
        return {}
    seen = pq.read_table(path, columns=["sample_id", "tone_deg"]).to_pydict()
    tones = dict(zip(seen["sample_id"], seen["tone_deg"], strict=True))
    found = tone_groups(np.array([tones.get(name, np.nan) for name in crops.sample_ids]))
    return {f"{name} skin": mask for name, mask in found.items()}


@dataclass(frozen=True)
class Bench:
    """What every variant is measured with: face model and test split."""

    model: MorphableModel
    crops: CropSet
    truth: Truth
    device: torch.device

    @classmethod
    def open(cls, params: Params, workspace: Workspace) -> Bench:
        """Read the test split and prepare its meshes."""
        model = load_face_model(params, workspace)
        crops = load_crops(workspace, params, split="test")
        device = build_fabric(device=params.project.device, precision=params.project.precision).device
        return cls(model, crops, prepare_truth(model, crops), device)

    def measure(self, predict: Predict) -> Measured:
        """Measure every photo of the split."""
        return measure_stage(
            predict, self.crops, model=self.model, truth=self.truth, batch_size=EVALUATION_BATCH, device=self.device
        )

    def identity(self, measured: Measured) -> dict[str, float | None]:
        """Whether the faces tell persons apart; None where nobody was photographed twice."""
        found = identity_metrics(
            measured.coefficients.identity,
            embedding=geometry_embedding(self.model.identity_basis, self.model.mean).cpu(),
            person=self.crops.person.numpy(),
            gallery=true_shapes(self.model, self.truth, self.crops),
            intervals=False,
        )
        keys = {"accuracy": "geometry_accuracy", "auc": "geometry_auc", "rank1": "rank1_neutral"}
        numbers = {f"identity_{name}": found.get(key) for name, key in keys.items()}
        return {**numbers, "distinctness": found["distinctness"]}


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
            path = weights_path(training, out)
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
        summary = summarize(measured, bench.crops.person.numpy(), everyone, intervals=False)
        summary |= bench.identity(measured)
        run.metrics(finite(summary))
        with replace_file(out / "results" / f"{trial.name}.npz") as temporary:
            arrays: dict[str, Any] = {"moments": measured.moments.numpy(), **measured.values}
            np.savez(temporary, **arrays)
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
    progress, path = out / "progress" / training.key, weights_path(training, out)
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
            keep_progress=True,
        )
        done = {"steps": result.steps, "seconds": result.seconds, "validation": result.best}
        done["best_step"] = result.best_step
        curve = result.curve
    run.curve({**row, "split": f"{stage}/{row['split']}"} for row in curve)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_curve(path.with_suffix(".csv"), curve)
    write_json(path.with_suffix(".json"), {"stage": stage, **done})
    # Last, because it says that the rest is there.
    save_checkpoint(path, trainee.content())
    forget_progress(progress)
    (progress / "rounds.pt").unlink(missing_ok=True)


def _start(trial: Trial, workspace: Workspace, out: Path) -> Path:
    """The pretrained geometry branch with an image branch of the trial's seed.

    The seed of the workspace gives the image branch that its own stages started from; a pretrained one is the same for
    all seeds. Without landmarks the geometry branch says nothing: the mean face from the front, whatever the points.
    """
    geometry = workspace.folder("train_geometry") / "checkpoint.pt"
    params = trial.variant.params
    own_image = trial.seed == params.project.seed or params.encoder.pretrained
    if own_image and trial.variant.landmarks:
        return geometry
    path = out / "checkpoints" / f"{trial.start}.pt"
    if path.exists():
        return path
    trained = load_reconstructor(load_checkpoint(geometry), load_face_model(params, workspace))
    fresh = trained
    if not own_image:
        torch.manual_seed(trial.seed)
        fresh = Reconstructor(trained.model, trained.settings)
        fresh.encoder.geometry.load_state_dict(trained.encoder.geometry.state_dict())
    if not trial.variant.landmarks:
        silence(fresh.encoder.geometry)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, reconstructor_content(fresh))
    return path


@torch.no_grad()
def silence(branch: GeometryBranch) -> None:
    """Make every number that the geometry branch gives zero, features and coefficients alike."""
    for parameter in branch.parameters():
        parameter.zero_()


def _predictor(trial: Trial, checkpoint: Path, bench: Bench) -> Predict:
    without_network = {"mean_face": predict_mean_face, "optimised": predict_optimised}.get(trial.variant.name)
    if without_network is not None:
        model = bench.model.to(bench.device)
        return lambda batch: without_network(model, batch)
    reconstructor = load_reconstructor(load_checkpoint(checkpoint), bench.model).to(bench.device)
    return lambda batch: predict_network(reconstructor, batch)


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
        labels=asdict(trial.variant.labels),
        line=trial.variant.line,
        rounds=content["rounds"],
        moments=arrays.pop("moments"),
        values=arrays,
    )
