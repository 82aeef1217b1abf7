"""The command `mien animate`: speech in, an animated face out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console import AnimatorOption, Answer, JsonOption, QuietOption, WorkspaceOption, command, examples

EXAMPLES = examples(
    "mien animate speech.wav -o spoken",
    "mien animate speech.wav -o spoken --face faces/photo.glb",
    "mien animate film.mp4 -o spoken --face head.glb --emotion joy --no-preview",
)


def animate(
    speech: Annotated[Path, typer.Argument(help="A sound file or a film with speech.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for GLB, CSV, JSON and MP4.")],
    face: Annotated[
        Path | None,
        typer.Option(help="JSON or GLB of mien reconstruct, or any GLB with ARKit's shapes; default: the mean face."),
    ] = None,
    emotion: Annotated[str | None, typer.Option(help="An emotion that was learned; default: any.")] = None,
    style: Annotated[str | None, typer.Option(help="A speaking style that was learned; default: any.")] = None,
    checkpoint: AnimatorOption = None,
    preview: Annotated[bool, typer.Option(help="Write the film as well.")] = True,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let a face speak: animated morph targets (GLB), Live Link CSV, curves (JSON) and a film with sound (MP4)."""
    with command("animate", workspace):
        from tasks.animate import animate_speech
        from tasks.artifacts import Workspace

        written = animate_speech(
            speech,
            out,
            workspace=Workspace(workspace),
            checkpoint=checkpoint,
            face=face,
            emotion=emotion,
            style=style,
            preview=preview,
        )
        Answer(as_json=as_json, quiet=quiet).files(written)
