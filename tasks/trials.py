"""What an experiment trains and measures: every variant with every seed, what they share, and what is left to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts import CLEAN, Workspace, read_json, read_table
from tasks.params import Params
from tasks.train import fingerprint
from tasks.variants import STAGES, LabelChange, Variant, labelled_sources, seeded

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
    axis: str | None = None
    """What of the labels a plot of curves runs over; None: one line of dots per variant."""
    by_tone: bool = False
    """Whether the table gives every group of skin tones of the workspace's last evaluation by itself."""


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
            start = key = _digest(given, "start", seed, variant.landmarks)
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
    return len(set(_persons(workspace, split="train", sources=labelled_sources(params))))


def estimate(trials: Sequence[Trial], workspace: Workspace, out: Path) -> tuple[int, float]:
    """Trainings that are still to be done, and a guess of the seconds that they and the measuring take."""
    cost = seconds_per_step(workspace)
    todo = {
        training.key: training
        for trial in trials
        for training in trial.trainings
        if not weights_path(training, out).exists()
    }
    # Re-fusion trains as stage 3 does.
    seconds = sum(
        training.steps * cost.get(training.stage, cost.get("train_fused", 0.2)) + LOADING_SECONDS
        for training in todo.values()
    )
    measured = sum(not is_measured(trial, out) for trial in trials)
    photos = len(_persons(workspace, split="test"))
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


def weights_path(training: Training, out: Path) -> Path:
    """Where a training's weights are kept; there they are, it is done."""
    return out / "checkpoints" / f"{training.key}.pt"


def is_measured(trial: Trial, out: Path) -> bool:
    """Whether the folder holds what these very weights reached."""
    path = out / "results" / f"{trial.name}.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["fingerprint"] == trial.key


def _steps(params: Params, stage: str) -> int:
    if stage == "refusion":
        return params.refusion.steps * params.refusion.max_rounds
    return int(getattr(params, stage).steps)


def _persons(workspace: Workspace, *, split: str, sources: Sequence[str] | None = None) -> list[str]:
    """The person of every validated photo of a split."""
    table = read_table(workspace.folder("validate_labels") / "clean.parquet", CLEAN)
    rows = zip(*(table[name].to_pylist() for name in ("split", "source", "person")), strict=True)
    return [person for found, source, person in rows if found == split and (sources is None or source in sources)]


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:20]
