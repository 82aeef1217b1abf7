"""The commands `mien model …`: convert face models and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console import Answer, JsonOption, QuietOption, WorkspaceOption, command, examples

app = typer.Typer(help="Convert face models and look at them.", no_args_is_help=True)

FileArgument = Annotated[
    Path | None, typer.Argument(help="A face model of any kind; default: the workspace's.", show_default=False)
]
KindOption = Annotated[str, typer.Option(help="auto, npz, ict, basel, flame or surrey.")]
LandmarksOption = Annotated[
    Path | None, typer.Option(help="Where the 68 points are: vertex indices, points, or an embedding in triangles.")
]
RegionOption = Annotated[str | None, typer.Option(help="Part of ICT-FaceKit: narrow_face, face, head or full.")]


@app.command(
    epilog=examples(
        "mien model convert model2019_face12.h5 bfm.npz",
        "mien model convert FaceXModel ict.npz --region face --identity-modes 60",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="File or folder of a face model.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="File to write: .npz or .safetensors.", show_default=False)],
    kind: KindOption = "auto",
    landmarks: LandmarksOption = None,
    region: RegionOption = None,
    identity_modes: Annotated[int | None, typer.Option(min=1, help="Keep the first modes only; default: all.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a face model of another format and write it as ours."""
    answer = Answer(as_json=as_json, quiet=quiet)
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
        if not (quiet or as_json):
            show_rows(rows)
        answer.say(f"{out}: written\n\n{next_steps(model, out)}")
        answer.document({"files": [str(out)], "face_model": model.stamp(), "about": dict(rows)})


@app.command(epilog=examples("mien model info", "mien model info flame2023.pkl --kind flame --json"))
def info(
    file: FileArgument = None,
    kind: KindOption = "auto",
    landmarks: LandmarksOption = None,
    region: RegionOption = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Say what a face model consists of."""
    with command("model", workspace):
        from flows.status import model_rows, show_rows

        if file is None:
            rows = model_rows(workspace)
        else:
            from tasks.convert import describe_face_model, read_model_file

            model, notes = read_model_file(file, kind=kind, landmarks=landmarks, region=region)
            rows = [*notes, *describe_face_model(model)]
        if as_json:
            Answer(as_json=True).document(dict(rows))
        else:
            show_rows(rows)


@app.command(epilog=examples("mien model preview", "mien model preview bfm.npz -o bfm.png --seed 3"))
def preview(
    file: FileArgument = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("face_model.png"),
    seed: Annotated[int, typer.Option(help="Chooses the random faces.")] = 0,
    kind: KindOption = "auto",
    landmarks: LandmarksOption = None,
    region: RegionOption = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
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
        Answer(as_json=as_json, quiet=quiet).files([out])
