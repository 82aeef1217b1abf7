"""The command `mien reconstruct`: photos in, 3D faces out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.console import (
    Answer,
    DeviceOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    WorkspaceOption,
    command,
    examples,
)

EXAMPLES = examples(
    "mien reconstruct photo.jpg -o faces",
    "mien reconstruct 'trip/**/*.jpg' -o faces --outputs glb,obj,ply,depth,normals,sheet",
    "mien reconstruct a.jpg b.jpg -o ann --refine --same-person",
    "mien reconstruct photo.jpg -o faces --json",
)


class WhichFaces(StrEnum):
    """Faces of a photo that are wanted."""

    ALL, BEST = "all", "best"


def reconstruct(
    photos: Annotated[
        list[Path], typer.Argument(help="Photos, folders of photos, or patterns in quotes.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is written.")],
    outputs: Annotated[
        str,
        typer.Option(
            help="With commas: glb, obj, ply, texture, json, camera, overlay, depth, normals, csv, sheet; or all."
        ),
    ] = "glb,overlay,json",
    faces: Annotated[
        WhichFaces, typer.Option(help="All faces of a photo, or the largest that is sure.")
    ] = WhichFaces.ALL,
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
    texture_size: Annotated[int, typer.Option(min=16, max=8192, help="Side of the skin's picture in pixels.")] = 1024,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Turn photos into 3D faces: GLB with 52 ARKit shapes, OBJ, PLY, coefficients, camera, overlay, depth, normals."""
    answer = Answer(as_json=as_json, quiet=quiet, verbose=verbose)
    with command("reconstruct", workspace):
        for option, given in (("--refine-steps", refine_steps is not None), ("--same-person", same_person)):
            if given and not refine:
                raise ValueError(f"{option} says how to refine, but --refine is missing; add it")
        from tasks.artifacts import Workspace
        from tasks.reconstruct import ReconstructionError, Refinement, Report, reconstruct_photos

        refinement = None
        if refine:
            steps = {} if refine_steps is None else {"photo_steps": refine_steps}
            refinement = Refinement(same_person=same_person, **steps)

        def tell(report: Report) -> None:
            for face in report.faces:
                answer.say_more(f"{face['photo']}: face {face['face']}, score {face['score']}, box {face['box_px']}")
            answer.files(report.files, faces=report.faces, failed=report.failed)

        try:
            with answer.progress("photos") as progress:
                report = reconstruct_photos(
                    photos,
                    out,
                    workspace=Workspace(workspace),
                    checkpoint=checkpoint,
                    landmarks=landmarks,
                    refinement=refinement,
                    outputs=outputs,
                    which=faces.value,
                    device=device,
                    texture_px=texture_size,
                    progress=progress,
                )
        except ReconstructionError as error:
            if error.report is not None:
                tell(error.report)
            raise
        tell(report)
