"""The command `mien verify`: whether persons can be told apart by the shapes that the model finds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console import Answer, CheckpointOption, JsonOption, QuietOption, WorkspaceOption, command, examples

EXAMPLES = examples(
    "mien verify lfw --pairs lfw/pairs.txt",
    "mien verify agedb --pairs agedb/pairs.csv --checkpoint artifacts/refusion",
)

SHOWN = {"geometry": "RMS distance of shapes", "euclidean": "distance of coefficients", "cosine": "their angle"}


def verify(
    photos: Annotated[Path, typer.Argument(help="Folder of photos.", show_default=False)],
    pairs: Annotated[
        Path, typer.Option(help="List in LFW's format, or lines of two photos and 1 (one person) or 0 (two).")
    ],
    checkpoint: CheckpointOption = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tell pairs of photos of one person from pairs of two by their shapes: ten-fold accuracy, AUC, TAR at 1 % FAR."""
    answer = Answer(as_json=as_json, quiet=quiet)
    with command("verify", workspace):
        from tasks.artifacts import Workspace
        from tasks.verify import verify_photos

        with answer.progress("photos") as progress:
            found = verify_photos(
                photos, pairs, workspace=Workspace(workspace), checkpoint=checkpoint, progress=progress
            )
        for name, title in SHOWN.items():
            accuracy, auc, tar = (found[f"{name}_{key}"] for key in ("accuracy", "auc", "tar"))
            if accuracy is None:
                answer.say(f"{title:26} unknown: it takes pairs of both kinds in more than one fold")
            else:
                answer.say(f"{title:26} {accuracy:.1%} right, AUC {auc:.3f}, {tar:.1%} accepted at 1 % false")
        answer.say(
            f"{found['pairs_same']} pairs of one person, {found['pairs_different']} of two; "
            f"{found['pairs_failed']} left out for a photo that could not be used"
        )
        answer.document(found)
