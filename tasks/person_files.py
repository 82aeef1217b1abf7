"""What is written about a person whom several photos or several networks agree upon: the face, and how sure it is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.face.camera import rotation_from_angles, to_camera_space
from models.face.lighting import ambient_light
from models.face.morphable import MorphableModel
from models.reconstruction.ensemble import Ensemble
from models.reconstruction.photos import PhotoFace
from models.reconstruction.reconstructor import Reconstructor
from models.rendering.render import render
from models.types import Camera
from tasks.artifacts import write_json
from tasks.photo_sets import PersonFace, fuse_faces

VIEWS_DEG = (0.0, 40.0, 80.0)
SIDE_PX = 320
DISTANCE_MM = 1000.0
LEAST_SCALE_MM = 0.5
"""The colours reach at least to this, so that a sure face does not look unsure."""

COLOURS = "viridis"
PERSON = "person"


class FaceOfPhoto(Protocol):
    """A face with the stem of its files, as `mien reconstruct` keeps it."""

    @property
    def face(self) -> PhotoFace:
        """What was found."""
        ...

    @property
    def stem(self) -> str:
        """Of the names of its files."""
        ...


Found = TypeVar("Found", bound=FaceOfPhoto)


def fuse_found(reconstructor: Reconstructor, found: Sequence[Found], *, method: str) -> tuple[list[Found], PersonFace]:
    """The same faces with one identity for all, and the person; see `fuse_faces`."""
    faces, person = fuse_faces(reconstructor, [one.face for one in found], method=method)
    return [replace(one, face=face) for one, face in zip(found, faces, strict=True)], person  # type: ignore[type-var]


def write_certainty(
    reconstructor: Reconstructor, found: Sequence[FaceOfPhoto], folder: Path, *, person: PersonFace | None
) -> list[Path]:
    """The files of a person with the identity that all faces have now; or of each face that an ensemble answered."""
    model = reconstructor.model
    if person is not None:
        now = found[0].face.coefficients
        stems = {one.stem for one in found}
        stem = PERSON if PERSON not in stems else f"{PERSON}_of_{len(found)}_photos"
        settled = replace(person, identity=now.identity[0], albedo=now.albedo[0])
        return write_person(settled, folder, model, stem=stem)
    if not isinstance(reconstructor, Ensemble):
        return []
    files: list[Path] = []
    for one in found:
        alone = fuse_faces(reconstructor, [one.face], method="mean")[1]
        alone = replace(alone, identity=one.face.coefficients.identity[0])
        files += write_person(alone, folder, model, stem=f"{one.stem}_ensemble")
    return files


def write_person(person: PersonFace, folder: Path, model: MorphableModel, *, stem: str = PERSON) -> list[Path]:
    """Write all files of a person or none; returns their paths.

    `<stem>.json`: photos with their weights, identity, shrinkage, uncertainty in a few numbers. `<stem>_neutral.ply`:
    the neutral face with the property `uncertainty_mm`. `<stem>_uncertainty.npz` and `.png`: the same as arrays and
    as a picture.
    """
    names = [f"{stem}.json", f"{stem}_neutral.ply", f"{stem}_uncertainty.npz", f"{stem}_uncertainty.png"]
    with torch.no_grad():
        vertices = model.vertices(person.identity[None])[0]
    uncertainty = person.uncertainty_mm
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".person-", dir=folder))
    try:
        write_json(scratch / names[0], {**person.document(), "face_model": model.stamp()})
        write_measured_ply(scratch / names[1], vertices.numpy(), model, uncertainty.numpy())
        arrays: dict[str, Any] = {
            "vertices_mm": vertices.numpy(),
            "triangles": model.triangles.numpy(),
            "uncertainty_mm": uncertainty.numpy(),
            "photos_mm": person.spread_mm.numpy(),
            "licence": np.array(model.stamp()["licence"]),
        }
        if person.ensemble_mm is not None:
            arrays["ensemble_mm"] = person.ensemble_mm.numpy()
        np.savez_compressed(scratch / names[2], **arrays)
        draw_uncertainty(scratch / names[3], vertices, uncertainty, model)
        for name in names:
            (scratch / name).replace(folder / name)
    finally:
        shutil.rmtree(scratch)
    return [folder / name for name in names]


def write_measured_ply(
    path: Path, vertices: Float[np.ndarray, "V 3"], model: MorphableModel, values: Float[np.ndarray, "V"]
) -> None:
    """A mesh whose vertices carry `uncertainty_mm`, and colours that show it."""
    corners = model.triangles.numpy()
    stamp = [f"comment face model {key}: {' '.join(value.split())}" for key, value in model.stamp().items() if value]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment neutral face; x to the subject's left, y up, z out of the face, millimetres",
        *stamp,
        f"element vertex {len(vertices)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
        "property float uncertainty_mm",
        f"element face {len(corners)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    rows = np.zeros(len(vertices), [("place", "<f4", 3), ("colour", "u1", 3), ("value", "<f4")])
    rows["place"], rows["value"] = vertices, values
    rows["colour"] = np.rint(255.0 * colours_of(values))
    faces = np.zeros(len(corners), [("count", "u1"), ("corner", "<i4", 3)])
    faces["count"], faces["corner"] = 3, corners
    text = "\n".join(header).encode("ascii", "replace") + b"\n"
    path.write_bytes(text + rows.tobytes() + faces.tobytes())


def colours_of(values: Float[np.ndarray, "V"]) -> Float[np.ndarray, "V 3"]:
    """RGB in [0, 1] of uncertainties, from sure to the most unsure."""
    scaled = np.asarray(values, np.float64) / _limit(values)
    return np.asarray(matplotlib.colormaps[COLOURS](scaled.clip(0.0, 1.0))[:, :3])


@torch.no_grad()
def draw_uncertainty(path: Path, vertices: torch.Tensor, values: torch.Tensor, model: MorphableModel) -> None:
    """The neutral face from the front and from the side, coloured by its uncertainty, with a scale."""
    colours = torch.from_numpy(colours_of(values.numpy())).float()
    low, high = vertices.amin(0), vertices.amax(0)
    yaw = torch.tensor(VIEWS_DEG).deg2rad()
    count, none = len(yaw), torch.zeros(len(yaw))
    seen = to_camera_space(
        (vertices - (low + high) / 2.0).expand(count, -1, -1),
        rotation=rotation_from_angles(yaw, none, none),
        translation=torch.tensor([0.0, 0.0, DISTANCE_MM]).expand(count, 3),
    )
    focal = SIDE_PX * DISTANCE_MM / (1.1 * float((high - low).max()))
    camera = Camera(
        focal_px=torch.full((count,), focal),
        principal_px=torch.full((count, 2), SIDE_PX / 2.0),
        size=(SIDE_PX, SIDE_PX),
    )
    light = ambient_light(count)
    # From above and in front, so that the face is seen and not its colours alone.
    light[:, 1], light[:, 2] = -0.12, -0.3
    drawn = render(seen, model.triangles, albedo=colours.expand(count, -1, -1), lighting=light, camera=camera)
    pictures = torch.where(drawn.mask[:, None], drawn.image.clamp(0.0, 1.0), 1.0).permute(0, 2, 3, 1).numpy()
    figure = Figure(figsize=(8.0, 2.6))
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        1, count, gridspec_kw={"left": 0.01, "right": 0.84, "bottom": 0.02, "top": 0.9, "wspace": 0.02}
    )
    for axis, picture, turn in zip(axes, pictures, VIEWS_DEG, strict=True):
        axis.imshow(picture)
        axis.set_axis_off()
        axis.set_title(f"{turn:g}°", fontsize=8)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0.0, _limit(values.numpy())), COLOURS)
    figure.colorbar(scale, ax=list(axes), label="standard deviation (mm)", shrink=0.9)
    stamp = {f"face_model_{key}": value for key, value in model.stamp().items()}
    figure.savefig(path, dpi=110, metadata=stamp)


def _limit(values: Float[np.ndarray, "V"]) -> float:
    return max(LEAST_SCALE_MM, float(np.quantile(values, 0.98)))
