"""The command `mien`: reconstruct photos, find landmarks, let faces speak, run the pipeline, look at a face model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.environment import prepare
from flows.experiment import app as experiment_app
from flows.failures import StageError, reported
from flows.processes import run_child
from flows.server import prefect_server
from flows.stages import FUNCTIONS
from flows.workspace import allow_without_git, create_workspace, preset_names, preset_path, refresh_graph

app = typer.Typer(
    name="mien",
    help="Learn to turn face photographs into 3D faces, and do it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="Convert face models and look at them.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(experiment_app, name="experiment")

WorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder with params.yaml and artifacts/.")]
FileArgument = Annotated[
    Path | None, typer.Argument(help="A face model of any kind; default: the workspace's.", show_default=False)
]
KindOption = Annotated[str, typer.Option(help="auto, npz, ict, basel, flame or surrey.")]
LandmarksOption = Annotated[
    Path | None, typer.Option(help="Where the 68 points are: vertex indices, points, or an embedding in triangles.")
]
RegionOption = Annotated[str | None, typer.Option(help="Part of ICT-FaceKit: narrow_face, face, head or full.")]
debugging = False


class PointConvention(StrEnum):
    """Where the points of a face lie."""

    ANNOTATED, HANDMADE, MODEL = "annotated", "handmade", "model"


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False) -> None:
    """Learn to turn face photographs into 3D faces, and do it."""
    global debugging
    debugging = debug


@contextmanager
def command(name: str, workspace: Path) -> Iterator[None]:
    """Environment and error handling of every command."""
    prepare(workspace)
    with reported(workspace, name, debug=debugging):
        yield


@app.command()
def reconstruct(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for meshes, overlays, coefficients and cameras.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of a training stage; default: the registry's champion.")
    ] = None,
    landmarks: Annotated[
        Path | None, typer.Option(help="CSV with columns file, x0, y0 … x67, y67: use these points, detect the others.")
    ] = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Go on from the network's answer by per-photo optimisation.")
    ] = False,
    refine_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps by the photo itself; 0: landmarks only; default: 120.")
    ] = None,
    same_person: Annotated[
        bool, typer.Option("--same-person", help="All photos show one person: refine one identity for all of them.")
    ] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Turn photos into coloured meshes (OBJ), overlays (PNG), coefficients and camera (JSON)."""
    with command("reconstruct", workspace):
        for option, given in (("--refine-steps", refine_steps is not None), ("--same-person", same_person)):
            if given and not refine:
                raise ValueError(f"{option} says how to refine, but --refine is missing; add it")
        from tasks.artifacts import Workspace
        from tasks.reconstruct import Refinement, reconstruct_photos

        refinement = None
        if refine:
            steps = {} if refine_steps is None else {"photo_steps": refine_steps}
            refinement = Refinement(same_person=same_person, **steps)
        for path in reconstruct_photos(
            photos,
            out,
            workspace=Workspace(workspace),
            checkpoint=checkpoint,
            landmarks=landmarks,
            refinement=refinement,
        ):
            print(path)


@app.command()
def landmarks(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for pictures, .pts files and landmarks.csv.")],
    detector: Annotated[str, typer.Option(help="hierarchical or face_alignment.")] = "hierarchical",
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint of ours, or a folder of exported files; default: the workspace's.")
    ] = None,
    convention: Annotated[
        PointConvention,
        typer.Option(
            help="Points where photos are annotated, at the face model's vertices, or with the visible jawline."
        ),
    ] = PointConvention.ANNOTATED,
    min_score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Faces that score less are left out.")] = 0.5,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Find the 68 points of every face: drawn over the photo, as .pts files and as one table."""
    with command("landmarks", workspace):
        from tasks.artifacts import Workspace
        from tasks.landmarks import find_landmarks

        for path in find_landmarks(
            photos,
            out,
            workspace=Workspace(workspace),
            detector=detector,
            weights=weights,
            convention=convention.value,
            min_score=min_score,
        ):
            print(path)


@app.command()
def animate(
    speech: Annotated[Path, typer.Argument(help="A sound file or a film with speech.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for GLB, CSV, JSON and MP4.")],
    face: Annotated[
        Path | None, typer.Option(help="JSON of mien reconstruct, or GLB with ARKit's shapes; default: the mean face.")
    ] = None,
    emotion: Annotated[str | None, typer.Option(help="An emotion that was learned; default: any.")] = None,
    style: Annotated[str | None, typer.Option(help="A speaking style that was learned; default: any.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of train_animator; default: the registry's champion.")
    ] = None,
    preview: Annotated[bool, typer.Option(help="Write the film as well.")] = True,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Let a face speak: animated morph targets (GLB), Live Link CSV, curves (JSON) and a film with sound (MP4)."""
    with command("animate", workspace):
        from tasks.animate import animate_speech
        from tasks.artifacts import Workspace

        for path in animate_speech(
            speech,
            out,
            workspace=Workspace(workspace),
            checkpoint=checkpoint,
            face=face,
            emotion=emotion,
            style=style,
            preview=preview,
        ):
            print(path)


@app.command()
def run(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Up to which stages; default: the whole pipeline.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Bring the pipeline up to date: `dvc repro` with one Prefect server for the run."""
    with command("run", workspace):
        for stage in stages or ():
            if stage not in FUNCTIONS:
                raise ValueError(f"{stage}: no such stage, expected one of {', '.join(FUNCTIONS)}")
        _require_workspace(workspace)
        allow_without_git(workspace)
        refresh_graph(workspace)
        with prefect_server(workspace):
            code = run_child([sys.executable, "-m", "dvc", "repro", *(stages or ())], cwd=workspace)
        if code:
            raise StageError(
                "the pipeline stopped, see above; after the remedy the same command goes on where it stopped"
            )
        if stages:
            print(f"Done: {', '.join(stages)} and what comes before.")
        else:
            _say_what_next(workspace)


@app.command()
def workspace(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    preset: Annotated[
        list[str],
        typer.Option(help=f"Name ({', '.join(preset_names())}) or file of parameters; later ones change earlier ones."),
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a parameter; may be repeated.")
    ] = None,
    start: Annotated[bool, typer.Option("--run", help="Run the pipeline in it at once.")] = False,
) -> None:
    """Make a folder with parameters, artifacts and registry of its own, beside the default run."""
    with command("workspace", folder):
        first, *further = (preset_path(name) for name in preset)
        create_workspace(folder, preset=first, further=further, settings=settings or [])
        print(f"{folder}: ready; `mien run --workspace {folder}` runs the pipeline in it")
    if start:
        run(workspace=folder)


@app.command()
def status(workspace: WorkspaceOption = Path()) -> None:
    """Say which stages are up to date, and what the last evaluation measured."""
    with command("status", workspace):
        _require_workspace(workspace)
        allow_without_git(workspace)
        from flows.status import show_status

        show_status(workspace)


@model_app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="File or folder of a face model.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="File to write: .npz or .safetensors.", show_default=False)],
    kind: KindOption = "auto",
    landmarks: LandmarksOption = None,
    region: RegionOption = None,
    identity_modes: Annotated[int | None, typer.Option(min=1, help="Keep the first modes only; default: all.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Check a face model of another format and write it as ours."""
    with command("model", Path()):
        from flows.status import show_rows
        from tasks.convert import convert_face_model, next_steps

        model, rows = convert_face_model(
            source,
            out,
            kind=kind,
            landmarks=landmarks,
            region=region,
            identity_modes=identity_modes,
            overwrite=force,
        )
        show_rows(rows)
        print(f"{out}: written\n\n{next_steps(model, out)}")


@model_app.command()
def info(
    file: FileArgument = None,
    kind: KindOption = "auto",
    landmarks: LandmarksOption = None,
    region: RegionOption = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Say what a face model consists of."""
    with command("model", workspace):
        from flows.status import show_model, show_rows

        if file is None:
            show_model(workspace)
            return
        from tasks.convert import describe_face_model, read_model_file

        model, rows = read_model_file(file, kind=kind, landmarks=landmarks, region=region)
        show_rows([*rows, *describe_face_model(model)])


@model_app.command()
def preview(
    file: FileArgument = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("face_model.png"),
    seed: Annotated[int, typer.Option(help="Chooses the random faces.")] = 0,
    kind: KindOption = "auto",
    landmarks: LandmarksOption = None,
    region: RegionOption = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Draw mean, modes, random identities, expressions, poses and landmarks of a face model."""
    with command("model", workspace):
        from tasks.artifacts import Workspace
        from tasks.convert import read_model_file
        from tasks.face_model import load_face_model
        from tasks.params import load_params
        from tasks.preview import draw_model_sheet

        if file is None:
            place = Workspace(workspace)
            model = load_face_model(load_params(place.params), place)
        else:
            model, _ = read_model_file(file, kind=kind, landmarks=landmarks, region=region)
        draw_model_sheet(model, out, seed=seed, every_expression=file is not None)
        print(out)


def _require_workspace(workspace: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        if not (workspace / name).is_file():
            raise FileNotFoundError(
                f"{workspace / name}: no such file; run in a Mien workspace or name one with --workspace"
            )
    # DVC would complain about parameters, too, but not in words that help.
    from tasks.params import load_params

    load_params(workspace / "params.yaml")


def _say_what_next(workspace: Path) -> None:
    root = workspace.resolve()
    summary = json.loads((root / "artifacts" / "register" / "summary.json").read_text(encoding="utf-8"))
    failed = [name for name, rule in summary["rules"].items() if rule["outcome"] == "failed"]
    verdict = f"  (not promoted: {', '.join(failed)})" if failed else ""
    here = f" --workspace {workspace}" if workspace != Path() else ""
    print(f"""
Done: {len(FUNCTIONS)} stages are up to date.

  report            {root / "artifacts" / "evaluate" / "report.html"}
  label checks      {root / "artifacts" / "validate_labels" / "data_docs" / "index.html"}
  model             {summary["uri"]}{verdict}

  MLflow page       mlflow ui --backend-store-uri sqlite:///{root / "mlruns" / "mlflow.db"}
  Prefect page      PREFECT_HOME={root / ".mien" / "prefect"} prefect server start

To try next (first: source .venv/bin/activate):
  mien reconstruct PHOTO.jpg --out reconstructions{here}
  mien model preview --out face_model.png{here}
  change a value in params.yaml, then: mien run{here}""")


def main() -> None:
    """Entry point of `mien`."""
    app()


if __name__ == "__main__":
    main()
