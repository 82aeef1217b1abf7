"""The command `mien export`: the trained model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console import Answer, CheckpointOption, JsonOption, QuietOption, WorkspaceOption, command, examples

EXAMPLES = examples(
    "mien export model",
    "mien export model --checkpoint artifacts/refusion",
    "python -c 'from models.reconstruction import load_package; print(load_package(\"model\"))'",
)


def export(
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    checkpoint: CheckpointOption = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the trained model as a folder: ONNX graphs that run anywhere, weights and face model for Python."""
    answer = Answer(as_json=as_json, quiet=quiet)
    with command("export", workspace):
        from tasks.artifacts import Workspace
        from tasks.export_package import export_package

        files, deviation = export_package(out, workspace=Workspace(workspace), checkpoint=checkpoint)
        answer.files(files, onnx_difference=deviation)
        answer.say(f"reconstructor.onnx differs from its network by {deviation:.1g} of each output's range")
