"""The command `mien`: reconstruct photos, find landmarks, let faces speak, run the pipeline, look at a face model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import animate, deployments, export, landmarks, reconstruct, verify
from flows.console import JsonOption, WorkspaceOption, command, examples, settings
from flows.demo import EXAMPLES as DEMO_EXAMPLES
from flows.demo import demo
from flows.doctor import EXAMPLES as DOCTOR_EXAMPLES
from flows.doctor import doctor
from flows.experiment import app as experiment_app
from flows.face_models import app as model_app
from flows.failures import StageError
from flows.processes import run_child
from flows.registry import app as registry_app
from flows.server import prefect_server
from flows.stages import FUNCTIONS
from flows.workspace import allow_without_git, create_workspace, preset_names, preset_path, refresh_graph

app = typer.Typer(
    name="mien",
    help="Learn to turn face photographs into 3D faces, and do it.",
    epilog=examples(
        "mien run",
        "mien reconstruct photo.jpg -o faces",
        "mien landmarks photo.jpg -o points",
        "mien animate speech.wav -o spoken --face faces/photo.glb",
        "mien --install-completion",
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(epilog=DEMO_EXAMPLES)(demo)
app.command(epilog=DOCTOR_EXAMPLES)(doctor)
app.command(epilog=reconstruct.EXAMPLES)(reconstruct.reconstruct)
app.command(epilog=landmarks.EXAMPLES)(landmarks.landmarks)
app.command(epilog=animate.EXAMPLES)(animate.animate)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.command(epilog=deployments.SERVE_EXAMPLES)(deployments.serve)
app.command(epilog=deployments.DEPLOY_EXAMPLES)(deployments.deploy)
app.command(epilog=deployments.MONITOR_EXAMPLES)(deployments.monitor)
# A group of commands is one line here; what it does stands in a file of its own.
app.add_typer(model_app, name="model")
app.add_typer(experiment_app, name="experiment")
app.add_typer(registry_app, name="registry")


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False) -> None:
    """Learn to turn face photographs into 3D faces, and do it."""
    settings.debug = debug


@app.command(epilog=examples("mien run", "mien run evaluate --workspace workspaces/portraits"))
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
        from flows.status import up_to_date

        # Prefect's server takes longer to start than DVC to say that there is nothing to do.
        if up_to_date(workspace, stages or ()):
            print("Data and pipelines are up to date.")
        else:
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


@app.command(
    epilog=examples(
        "mien workspace workspaces/portraits --preset portraits --set face_model.path=ict.npz "
        "--set ingest.sources.portraits.path=photos",
        "mien workspace workspaces/ict --set face_model.kind=npz --set face_model.path=ict.npz",
    )
)
def workspace(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    preset: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Name ({', '.join(preset_names())}) or file of parameters; later ones change earlier ones; "
            "default: the parameters of the default run."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a parameter; may be repeated.")
    ] = None,
    start: Annotated[bool, typer.Option("--run", help="Run the pipeline in it at once.")] = False,
) -> None:
    """Make a folder with parameters, artifacts and registry of its own, beside the default run."""
    with command("workspace", folder):
        create_workspace(folder, further=[preset_path(name) for name in preset or []], settings=settings or [])
        print(f"{folder}: ready; `mien run --workspace {folder}` runs the pipeline in it")
    if start:
        run(workspace=folder)


@app.command(epilog=examples("mien status", "mien status --json"))
def status(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Say which stages are up to date, and what the last evaluation measured."""
    with command("status", workspace):
        _require_workspace(workspace)
        allow_without_git(workspace)
        # Prefect warns where its folder has to be made with what lies above it.
        (workspace / ".mien").mkdir(exist_ok=True)
        from flows.status import last_evaluation, show_status, stage_states

        if as_json:
            print(json.dumps({"stages": stage_states(workspace), "evaluation": last_evaluation(workspace)}))
        else:
            show_status(workspace)


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
