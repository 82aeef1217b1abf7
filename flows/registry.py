"""The commands `mien registry …`: which versions there are, which is in use, and the way forth and back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import Answer, JsonOption, WorkspaceOption, command, examples
from flows.failures import StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tasks.params import Params

app = typer.Typer(help="List, promote, roll back and reproduce versions of the models.", no_args_is_help=True)

ModelOption = Annotated[str, typer.Option(help="reconstructor, animator, or a name in the registry.")]
VersionArgument = Annotated[str, typer.Argument(help="Number or alias, such as 3 or challenger.", show_default=False)]


@app.command(name="list", epilog=examples("mien registry list", "mien registry list --model animator --json"))
def list_versions(
    model: ModelOption = "reconstructor", workspace: WorkspaceOption = Path(), as_json: JsonOption = False
) -> None:
    """Say which versions there are, what they reached, and which is in use."""
    with _opened(workspace, model) as (_, client, name):
        from tasks.registry import version_rows

        rows = version_rows(client, name)
        answer = Answer(as_json=as_json)
        answer.document({"model": name, "versions": rows})
        if not as_json:
            _show(name, rows)


@app.command(epilog=examples("mien registry promote 3", "mien registry promote challenger --despite-metrics"))
def promote(
    version: VersionArgument,
    model: ModelOption = "reconstructor",
    despite_metrics: Annotated[
        bool, typer.Option("--despite-metrics", help="Let rules about metrics fail; not those about reproducibility.")
    ] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Hold a version to the rules once more and make it champion; refused where it could not be made again."""
    with _opened(workspace, model) as (params, client, name):
        from flows.champion import policy_of, present_data
        from tasks.registry import get_version, promote_version

        found = get_version(client, name, version)
        decision = promote_version(
            client,
            name,
            found,
            policy=policy_of(params, name),
            data=present_data(client, found, workspace),
            despite=despite_metrics,
        )
        answer = Answer(as_json=as_json)
        before = decision.champion_before
        instead = f" instead of {before}" if before is not None else ""
        answer.say(f"{name} {decision.version} is champion{instead}")
        answer.document({"model": name, "champion": decision.version, "champion_before": before})


@app.command(epilog=examples("mien registry rollback --reason 'side views'", "mien registry rollback --to 2"))
def rollback(
    to: Annotated[str | None, typer.Option(help="A version that has been champion; default: the one before.")] = None,
    reason: Annotated[str, typer.Option(help="Kept with the version that is left.")] = "",
    model: ModelOption = "reconstructor",
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Make the champion before this one champion again; the one that is left is marked."""
    with _opened(workspace, model) as (_, client, name):
        from tasks.registry import get_version, roll_back

        left, now = roll_back(client, name, reason=reason, to=None if to is None else get_version(client, name, to))
        answer = Answer(as_json=as_json)
        answer.say(f"{name} {now} is champion again; {left} is marked as rolled back")
        answer.document({"model": name, "champion": now, "champion_before": left})


@app.command(epilog=examples("mien registry reproduce champion", "mien registry reproduce 3 --train --out again"))
def reproduce(
    version: VersionArgument,
    train: Annotated[bool, typer.Option("--train", help="Train anew, instead of fetching weights.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep the checkout in this folder; default: it is removed.")
    ] = None,
    model: ModelOption = "reconstructor",
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Check out code, parameters and data of a version, and see whether the weights are the same."""
    with _opened(workspace, model) as (_, client, name), tempfile.TemporaryDirectory() as scratch:
        from flows.reproduction import reproduce_version
        from flows.server import prefect_server
        from tasks.registry import get_version

        answer = Answer(as_json=as_json)
        folder = Path(scratch) / "again" if out is None else out.resolve()
        found = get_version(client, name, version)
        options: dict[str, Any] = {"workspace": workspace, "out": folder, "train": train, "say": answer.say}
        if train:
            with prefect_server(workspace):
                compared = reproduce_version(client, found, **options)
        else:
            compared = reproduce_version(client, found, **options)
        for one in compared:
            same = "same" if one.same else f"DIFFERS from {one.recorded[:64]}"
            answer.say(f"{one.what:32} {one.found[:64]}  {same}")
        differing = [one.what for one in compared if not one.same]
        rows = [{"what": one.what, "recorded": one.recorded, "found": one.found, "same": one.same} for one in compared]
        answer.document({"model": name, "version": int(found.version), "same": not differing, "compared": rows})
        if compared[-1].what in differing or (differing and not train):
            raise StageError(f"{name} {found.version} was not reproduced: {', '.join(differing)}")
        answer.say(f"{name} {found.version} is reproduced: the same weights")


@contextmanager
def _opened(workspace: Path, model: str) -> Iterator[tuple[Params, MlflowClient, str]]:
    """The registry of a workspace, and the name there of the model that is meant."""
    with command("registry", workspace):
        from flows.champion import model_name
        from tasks.artifacts import Workspace
        from tasks.params import load_params
        from tasks.registry import open_registry

        if not (workspace / "params.yaml").is_file():
            raise FileNotFoundError(
                f"{workspace / 'params.yaml'}: no such file; run in a Mien workspace or name one with --workspace"
            )
        params = load_params(workspace / "params.yaml")
        yield params, open_registry(params, Workspace(workspace)), model_name(params, model)


def _show(name: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = sorted({key for row in rows for key in row["metrics"]})
    headings = (key.partition(".")[2].replace("_", " ") for key in metrics)
    table = Table(title=name)
    for heading in ("version", "alias", "made", "rules", "repro-\nducible", *headings):
        table.add_column(heading, overflow="fold", no_wrap=heading == "alias")
    for row in rows:
        failed = ", ".join(row["failed_rules"])
        rules = row["promotion"] or "–"
        states = set(row["reproducible"].values())
        again = "no" if "no" in states else "unknown" if "unknown" in states else "yes"
        aliases = [*row["aliases"], *(["rolled back"] if row["rolled_back"] else [])]
        table.add_row(
            str(row["version"]),
            "\n".join(aliases),
            row["made"][:10],
            f"{rules}: {failed}" if failed else rules,
            again,
            *(f"{row['metrics'][key]:.4g}" if key in row["metrics"] else "–" for key in metrics),
        )
    Console().print(table)
