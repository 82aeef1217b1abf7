"""The command `mien landmarks`: the 68 points of every face."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.console import Answer, JsonOption, QuietOption, WorkspaceOption, command, examples

EXAMPLES = examples(
    "mien landmarks photo.jpg -o points",
    "mien landmarks photos/ -o points --convention handmade",
    "mien landmarks 'photos/*.png' -o points --detector face_alignment --json",
)


class PointConvention(StrEnum):
    """Where the points of a face lie."""

    ANNOTATED, HANDMADE, MODEL = "annotated", "handmade", "model"


def landmarks(
    photos: Annotated[
        list[Path], typer.Argument(help="Photos, folders of photos, or patterns in quotes.", show_default=False)
    ],
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
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find the 68 points of every face: drawn over the photo, as .pts files and as one table."""
    with command("landmarks", workspace):
        from tasks.artifacts import Workspace
        from tasks.landmarks import find_landmarks

        written = find_landmarks(
            photos,
            out,
            workspace=Workspace(workspace),
            detector=detector,
            weights=weights,
            convention=convention.value,
            min_score=min_score,
        )
        Answer(as_json=as_json, quiet=quiet).files(written)
