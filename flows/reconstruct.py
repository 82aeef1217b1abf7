"""The command `mien reconstruct`: photos in, 3D faces out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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
    "mien reconstruct film.mp4 -o faces --outputs glb,csv,overlay",
    "mien reconstruct a.jpg b.jpg c.jpg -o ann --same-person",
    "mien reconstruct people/ -o faces --folder-per-person",
    "mien reconstruct photo.jpg -o faces --face-model bfm2019.h5",
    "mien reconstruct photo.jpg -o faces --checkpoint run1/artifacts/refusion --checkpoint run2/artifacts/refusion",
    "mien reconstruct photo.jpg -o faces --json",
)


class Aggregation(StrEnum):
    """How the photos of a person are put together."""

    MEAN, ANALYTIC, LEARNED = "mean", "analytic", "learned"


class WhichFaces(StrEnum):
    """Faces of a photo that are wanted."""

    ALL, BEST = "all", "best"


def reconstruct(
    photos: Annotated[
        list[Path], typer.Argument(help="Photos, films, folders, or patterns in quotes.", show_default=False)
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
        list[Path] | None,
        typer.Option(help="Weights of a training stage; several answer together; default: the registry's champion."),
    ] = None,
    face_model: Annotated[
        Path | None,
        typer.Option(help="Another face model; without --checkpoint it is fitted photo by photo, with no network."),
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
        bool, typer.Option("--same-person", help="All photos show one person: one identity, and how sure it is.")
    ] = False,
    folder_per_person: Annotated[
        bool, typer.Option("--folder-per-person", help="The same for every folder, or every folder in one.")
    ] = False,
    aggregate: Annotated[
        Aggregation | None,
        typer.Option(help="How photos of a person are put together; default: analytic.", show_default=False),
    ] = None,
    texture_size: Annotated[int, typer.Option(min=16, max=8192, help="Side of the skin's picture in pixels.")] = 512,
    smooth: Annotated[bool, typer.Option(help="Films: steady expression and pose by the One-Euro filter.")] = True,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Turn photos and films into 3D faces: GLB with ARKit's shapes, OBJ, PLY, coefficients, cameras, pictures."""
    answer = Answer(as_json=as_json, quiet=quiet, verbose=verbose)
    with command("reconstruct", workspace):
        if refine_steps is not None and not refine:
            raise ValueError("--refine-steps says how to refine, but --refine is missing; add it")
        together = same_person or folder_per_person
        if aggregate is not None and not together:
            raise ValueError("--aggregate is about photos of one person; add --same-person or --folder-per-person")
        if face_model is not None and folder_per_person:
            raise ValueError("--face-model and --folder-per-person exclude each other; make a workspace with the model")
        if same_person and folder_per_person:
            raise ValueError("--same-person and --folder-per-person exclude each other; give one")
        from tasks.artifacts import Workspace
        from tasks.photo_sets import photos_by_person
        from tasks.reconstruct import ReconstructionError, Refinement, Report, reconstruct_photos
        from tasks.reconstruct_persons import reconstruct_persons

        refinement = None
        if refine:
            steps = {} if refine_steps is None else {"photo_steps": refine_steps}
            refinement = Refinement(same_person=together, **steps)

        def tell(report: Report) -> None:
            for face in report.faces:
                about = ", ".join(f"{key} {face[key]}" for key in ("score", "box_px", "frames") if key in face)
                answer.say_more(f"{face['photo']}: face {face['face']}, {about}")
            answer.files(report.files, faces=report.faces, failed=report.failed)

        try:
            with answer.progress("photos") as progress:
                common: dict[str, Any] = {
                    "workspace": Workspace(workspace),
                    "checkpoint": checkpoint,
                    "face_model": face_model,
                    "landmarks": landmarks,
                    "refinement": refinement,
                    "outputs": outputs,
                    "which": faces.value,
                    "device": device,
                    "texture_px": texture_size,
                    "smooth": smooth,
                    "progress": progress,
                    "aggregate": (aggregate or Aggregation.ANALYTIC).value if together else None,
                }
                if folder_per_person:
                    report = reconstruct_persons(photos_by_person(photos), out, **common)
                else:
                    report = reconstruct_photos(photos, out, **common)
        except ReconstructionError as error:
            if error.report is not None:
                tell(error.report)
            raise
        tell(report)
