"""Stage ablation: what the three stages are worth beside as much training without labels, for every run's report.

It is `mien experiment ablation` at its small size. What the stages themselves have trained is not trained again.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.artifacts import Workspace, read_json, replace_file, replace_folder, write_json
from tasks.experiment import run_experiment
from tasks.params import Params
from tasks.trials import Experiment, Training, plan, seconds_per_step, weights_path
from tasks.variants import STAGES, LabelChange, ablation_variants

NAME = "ablation"
"""Of the experiment and its files, as `mien experiment ablation` has it."""


def ablation(params: Params, workspace: Workspace) -> None:
    """Train the variants that the parameters name, measure all on the test split, and write table and plot.

    Raises: ValueError for the name of a variant that there is not.
    """
    section = params.ablation
    if not section.variants:
        with replace_folder(workspace.folder(NAME)) as folder:
            write_json(folder / "metrics.json", {})
        return
    # By steps and not by time: what a stage of the pipeline makes must not depend on how busy the machine was.
    experiment = ablation_experiment(params, {})
    known = [variant.name for variant in experiment.variants]
    for name in section.variants:
        if name not in known:
            raise ValueError(f"ablation.variants: {name!r} is unknown, expected one of {', '.join(known)}")
    # Outside the outputs: trainings that are finished outlive a kill.
    kept = workspace.progress(NAME)
    adopt_stages(experiment, params, workspace, kept)
    run_experiment(
        experiment,
        params,
        workspace,
        kept,
        seeds=section.seeds,
        command=f"mien run {NAME}",
        only=section.variants,
    )
    with replace_folder(workspace.folder(NAME)) as folder:
        for suffix in (".json", ".md", ".png"):
            shutil.copy2(kept / f"{NAME}{suffix}", folder)
        write_json(folder / "metrics.json", _headline(folder / f"{NAME}.json"))
    shutil.rmtree(kept)


def ablation_experiment(params: Params, seconds: Mapping[str, float]) -> Experiment:
    """The stages beside either kind of data alone, and each loss left out.

    `seconds`: of a step of each stage, by which all train equally long; without them all train as many steps.
    """
    return Experiment(
        name=NAME,
        title="What each part of the training is worth",
        variants=tuple(ablation_variants(params, dict(seconds))),
        reference="three_stages",
        headline=("three_stages", "self_supervised"),
    )


def adopt_stages(experiment: Experiment, params: Params, workspace: Workspace, out: Path) -> list[Training]:
    """Lay what the workspace's own stages have trained where the experiment looks for it; returns what was laid there.

    The stages must be up to date, as they are for a stage that DVC runs after them.
    """
    adopted = []
    for trial in plan(experiment, params, workspace, seeds=1):
        for training, before in zip(trial.trainings, ("train_geometry", *STAGES), strict=False):
            if not _is_own(training, params, before=before):
                break
            folder, path = workspace.folder(training.stage), weights_path(training, out)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / "curve.csv", path.with_suffix(".csv"))
            write_json(path.with_suffix(".json"), _done(training, workspace, params))
            # Last, because it says that the rest is there.
            with replace_file(path) as temporary:
                shutil.copy2(folder / "checkpoint.pt", temporary)
            adopted.append(training)
    return adopted


def _is_own(training: Training, params: Params, *, before: str) -> bool:
    """Whether the pipeline's stage of that name trains the same, from the weights of the stage before."""
    section = getattr(params, training.stage)
    # Re-fusion goes on from stage 3, wherever that has begun.
    init = "train_fused" if training.stage == "refusion" else section.init
    same = getattr(training.params, training.stage) == section and training.labels == LabelChange()
    return same and init == before


def _done(training: Training, workspace: Workspace, params: Params) -> dict[str, Any]:
    """What the experiment notes of a training, from what its stage has written."""
    folder = workspace.folder(training.stage)
    metrics = read_json(folder / "metrics.json")
    if training.stage != "refusion":
        return {"stage": training.stage, **{name: metrics[name] for name in ("steps", "seconds", "validation")}}
    with (folder / "rounds.csv").open(newline="", encoding="utf-8") as file:
        rounds = [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]
    steps = params.refusion.steps * (len(rounds) - 1)
    return {
        "stage": "refusion",
        "steps": steps,
        "seconds": steps * seconds_per_step(workspace).get("train_fused", 0.0),
        "validation": {"similarity": metrics["similarity"], "vertex_error_mm": metrics["geometry"]},
        "stopped": metrics["stopped"],
        "rounds": rounds,
    }


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _headline(path: Path) -> dict[str, Any]:
    """Three stages minus self-supervised training, as metrics; empty where one of them was left out."""
    found = read_json(path).get("headline") or {}
    return {
        f"{name}_{key}": value
        for name in ("vertex_error_mm", "similarity", "depth_slope", "depth_correlation")
        for key, value in found.get(name, {}).items()
        if key in ("difference", "low", "high")
    }
