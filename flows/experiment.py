"""The commands `mien experiment …`: what stages, losses, labels and fusion are worth, with error bars."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import WorkspaceOption, command

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.trials import Experiment

app = typer.Typer(
    help="Train variants on the data of a workspace, with several seeds, and compare them.", no_args_is_help=True
)

SeedsOption = Annotated[int, typer.Option(min=1, help="Trainings of every variant.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder; default: .mien/experiments/NAME of the workspace.")
]
VariantsOption = Annotated[
    list[str] | None, typer.Option(help="Only these variants; may be repeated.", show_default=False)
]
FactorOption = Annotated[float, typer.Option(min=1e-4, help="Steps of every stage relative to params.yaml.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a parameter; may be repeated.")
]
ImageOption = Annotated[
    bool, typer.Option("--image-only", help="Train the image branch alone: the network sees no landmarks.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained and how long it takes.")]


@app.command()
def ablation(
    workspace: WorkspaceOption = Path(),
    seeds: SeedsOption = 3,
    out: OutOption = None,
    variants: VariantsOption = None,
    steps_factor: FactorOption = 1.0,
    settings: SetOption = None,
    image_only: ImageOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """The three stages, with re-fusion, beside either kind of data alone and each loss left out."""
    with _prepared(workspace, settings, steps_factor, image_only) as params:
        from tasks.ablation import ablation_experiment
        from tasks.artifacts import Workspace
        from tasks.trials import seconds_per_step

        experiment = ablation_experiment(params, seconds_per_step(Workspace(workspace)))
        _run(experiment, params, workspace, out, variants, image_only=image_only, seeds=seeds, dry_run=dry_run)


@app.command()
def labels(
    workspace: WorkspaceOption = Path(),
    seeds: SeedsOption = 3,
    counts: Annotated[
        list[int] | None, typer.Option(help="Labelled persons; default: 10, 20, 50, 100, 500, as many as there are.")
    ] = None,
    out: OutOption = None,
    variants: VariantsOption = None,
    steps_factor: FactorOption = 1.0,
    settings: SetOption = None,
    image_only: ImageOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """The three stages with few labelled persons and with more."""
    with _prepared(workspace, settings, steps_factor, image_only) as params:
        from tasks.artifacts import Workspace
        from tasks.trials import Experiment, labelled_persons, seconds_per_step
        from tasks.variants import LABEL_COUNTS, label_variants

        place = Workspace(workspace)
        made = label_variants(
            params,
            seconds_per_step(place),
            available=labelled_persons(params, place),
            counts=counts or LABEL_COUNTS,
        )
        experiment = Experiment(
            name="labels",
            title="How many labelled persons it takes",
            variants=tuple(made),
            reference="self_supervised",
            headline=(made[-1].name, "self_supervised"),
            axis="persons",
        )
        _run(experiment, params, workspace, out, variants, image_only=image_only, seeds=seeds, dry_run=dry_run)


@app.command()
def fusion(
    workspace: WorkspaceOption = Path(),
    seeds: SeedsOption = 3,
    noise: Annotated[
        list[float] | None, typer.Option(help="Errors of the labels in mm; default: 0, 1, 2 and 4.")
    ] = None,
    out: OutOption = None,
    variants: VariantsOption = None,
    steps_factor: FactorOption = 1.0,
    settings: SetOption = None,
    image_only: ImageOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Ratios of unlabelled to labelled samples in stage 3, for labels from exact to bad."""
    with _prepared(workspace, settings, steps_factor, image_only) as params:
        from tasks.artifacts import Workspace
        from tasks.trials import Experiment, seconds_per_step
        from tasks.variants import NOISE_MM, fusion_variants

        made = fusion_variants(params, seconds_per_step(Workspace(workspace)), noise_mm=noise or NOISE_MM)
        experiment = Experiment(
            name="fusion",
            title="Ratio of fusion and quality of labels",
            variants=tuple(made),
            reference="self_supervised",
            axis="noise_mm",
        )
        _run(experiment, params, workspace, out, variants, image_only=image_only, seeds=seeds, dry_run=dry_run)


@app.command()
def identity(
    workspace: WorkspaceOption = Path(),
    seeds: SeedsOption = 3,
    out: OutOption = None,
    variants: VariantsOption = None,
    steps_factor: FactorOption = 1.0,
    settings: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Stage 3 without and with the losses of persons, and each of them alone."""
    with _prepared(workspace, settings, steps_factor, False) as params:
        from tasks.trials import Experiment
        from tasks.variants import identity_variants

        experiment = Experiment(
            name="identity",
            title="What makes faces distinct",
            variants=tuple(identity_variants(params)),
            reference="without",
            headline=("all", "without"),
        )
        _run(experiment, params, workspace, out, variants, image_only=False, seeds=seeds, dry_run=dry_run)


@app.command()
def priors(
    workspace: WorkspaceOption = Path(),
    seeds: SeedsOption = 3,
    out: OutOption = None,
    variants: VariantsOption = None,
    steps_factor: FactorOption = 1.0,
    settings: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """The three stages with priors of symmetry and skin, and without."""
    with _prepared(workspace, settings, steps_factor, False) as params:
        from tasks.prior_variants import prior_variants
        from tasks.trials import Experiment

        experiment = Experiment(
            name="priors",
            title="What priors of symmetry and skin are worth",
            variants=tuple(prior_variants(params)),
            reference="without",
            headline=("all", "without"),
            by_tone=True,
        )
        _run(experiment, params, workspace, out, variants, image_only=False, seeds=seeds, dry_run=dry_run)


@contextmanager
def _prepared(workspace: Path, settings: list[str] | None, factor: float, image_only: bool) -> Iterator[Params]:
    """The parameters of the workspace with the changes asked for, and errors in one line."""
    with command("experiment", workspace):
        from flows.workspace import changed, read_yaml
        from tasks.params import load_params, parse_params
        from tasks.variants import scaled, without_landmarks

        params = load_params(workspace / "params.yaml")
        if settings:
            data: dict[str, Any] = read_yaml(workspace / "params.yaml")
            for setting in settings:
                data = changed(data, setting)
            params = parse_params(data, name="params.yaml with the settings given")
        yield scaled(without_landmarks(params) if image_only else params, factor)


def _run(
    experiment: Experiment,
    params: Params,
    workspace: Path,
    out: Path | None,
    names: list[str] | None,
    *,
    image_only: bool,
    seeds: int,
    dry_run: bool,
) -> None:
    from dataclasses import replace

    from flows.stages import CHATTY
    from tasks.artifacts import Workspace
    from tasks.experiment import run_experiment
    from tasks.trials import estimate, plan

    place = Workspace(workspace)
    folder = out or workspace / ".mien" / "experiments" / f"{experiment.name}{'_image_only' if image_only else ''}"
    if image_only:
        # What the landmarks say by themselves is no baseline of a network that does not see them.
        kept = (variant for variant in experiment.variants if variant.name != "geometry")
        experiment = replace(
            experiment,
            title=f"{experiment.title} (image alone, no landmarks)",
            variants=tuple(replace(variant, landmarks=False) for variant in kept),
        )
    known = [variant.name for variant in experiment.variants]
    for name in names or ():
        if name not in known:
            raise ValueError(f"--variants {name}: no such variant, expected one of {', '.join(known)}")
    trials = [
        trial for trial in plan(experiment, params, place, seeds=seeds) if not names or trial.variant.name in names
    ]
    trainings, seconds = estimate(trials, place, folder)
    chosen = list({trial.variant.name: trial.variant for trial in trials}.values())
    if dry_run:
        for variant in chosen:
            steps = [f"{name} {getattr(variant.params, name).steps}" for name in variant.stages]
            print(f"{variant.name:24} {variant.title:48} {' + '.join(steps) or 'nothing to train'}")
    print(
        f"{len(chosen)} variants, {len(trials)} runs, {trainings} trainings to do: about "
        f"{seconds / 60:.0f} minutes; results in {folder}"
    )
    if dry_run:
        return
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    typed = " ".join(["mien", *(shlex.quote(argument) for argument in sys.argv[1:])])
    run_experiment(experiment, params, place, folder, seeds=seeds, command=typed, only=names or (), say=_say)
    print((folder / f"{experiment.name}.md").read_text(encoding="utf-8"))


def _say(line: str) -> None:
    # Not held back, whoever reads along: a training takes minutes.
    print(line, flush=True)
