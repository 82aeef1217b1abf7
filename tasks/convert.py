"""Face models that people own: read from their files, described in a table, converted to our own format."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from models.face.adapters.assemble import UNKNOWN_PART, borrow_appearance, cylindrical_uv
from models.face.formats import build_face_model, detect_kind, save_face_model
from models.face.morphable import MorphableModel
from models.types import PART_NAMES
from tasks.artifacts import replace_file

AUTO = "auto"
"""The kind is told from the file."""

SUFFIXES = (".npz", ".safetensors")

FILE_UNITS = {
    "npz": "millimetres",
    "ict": "centimetres",
    "basel": "millimetres",
    "basel-2009": "micrometres",
    "basel-2009-front": "100 millimetres",
    "flame": "metres",
    "surrey": "millimetres",
}
"""By kind, or by the name that a reader gives its model; that the unit fits shows in the size of the face."""

TYPICAL_MODES = 100
"""No more identity modes are proposed for training; the rest is below what a photo shows."""

BORROWED_EXPRESSIONS = "expressions borrowed"
"""What the name of a model says whose expressions are the procedural face's."""

CHIN, BROWS, JAW_ENDS = 8, [21, 22], [0, 16]
RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)

SHOWN_NAMES = 60
"""More expressions are counted instead of named."""

Rows = list[tuple[str, str]]


def read_model_file(
    path: Path,
    *,
    kind: str = AUTO,
    landmarks: Path | None = None,
    region: str | None = None,
    identity_modes: int | None = None,
) -> tuple[MorphableModel, Rows]:
    """Read a face model of any kind; returns it with rows that say how it was read.

    `landmarks` says where the 68 points are if the file does not; `region` is a part of ICT-FaceKit; `identity_modes`
    None keeps all.
    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"{path}: a picture, expected a face model; say with --out where a preview shall go")
    found = detect_kind(path) if kind == AUTO else kind
    model, notes = with_notes(
        lambda: build_face_model(found, path=path, landmarks=landmarks, region=region, identity_modes=identity_modes)
    )
    rows = [("read from", str(path)), ("kind", found)]
    unit = FILE_UNITS.get(found if found == "npz" else model.name.split(",")[0], FILE_UNITS.get(found))
    rows += [("unit of the file", unit)] if unit else []
    rows += [("landmarks from", str(landmarks))] if landmarks is not None else []
    return model, rows + notes


def with_notes(build: Callable[[], MorphableModel]) -> tuple[MorphableModel, Rows]:
    """Build a model; what its reader warns of becomes rows, such as landmarks that were found and not given."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        model = build()
    return model, [("note", " ".join(str(note.message).split())) for note in notes]


def convert_face_model(
    source: Path,
    out: Path,
    *,
    kind: str = AUTO,
    landmarks: Path | None = None,
    region: str | None = None,
    identity_modes: int | None = None,
    overwrite: bool = False,
) -> tuple[MorphableModel, Rows]:
    """Write a face model as our `.npz` or `.safetensors`, read it back and compare; returns it with its description.

    Raises: ValueError or FileNotFoundError with a one-line remedy; then nothing is written.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if out.exists() and (not overwrite or out.samefile(source)):
        raise ValueError(f"{out}: exists already; choose another name{'' if overwrite else ', or add --force'}")
    model, rows = read_model_file(source, kind=kind, landmarks=landmarks, region=region, identity_modes=identity_modes)
    with replace_file(out) as temporary:
        save_face_model(model, temporary)
        written = build_face_model("npz", path=temporary, identity_modes=None)
        if written.stamp() != model.stamp():
            raise ValueError(f"{out}: does not read back as it was written; is the disk full or broken?")
    return model, rows + describe_face_model(model)


def describe_face_model(model: MorphableModel) -> Rows:
    """What a face model consists of and how large it is, as labels and values."""
    names = model.expression_names
    expressions = f"{len(names)}: {', '.join(names[:SHOWN_NAMES])}" if names else "none"
    expressions += f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    skinning = model.skinning
    counts = [f"{name} {int(model.part(name).sum()):,}" for name in PART_NAMES if model.part(name).any()]
    on_vertices = bool((model.landmark_weights.amax(1) > 1.0 - 1e-6).all())
    rows = [
        ("name", model.name),
        ("licence", " ".join(model.licence.split())),
        ("vertices, triangles", f"{model.vertex_count:,}, {len(model.triangles):,}"),
        ("identity modes", str(model.identity_size)),
        ("expressions", expressions),
        ("albedo modes", str(model.albedo_size)),
        ("joints", ", ".join(skinning.joint_names) if skinning is not None else "none"),
        ("landmarks", f"68 {'vertices' if on_vertices else 'points within triangles'}"),
        ("parts", ", ".join(counts)),
        ("size", face_size(model)),
        ("borrowed", ", ".join(borrowed_from_procedural(model)) or "nothing"),
        ("hash", model.content_hash()),
    ]
    return rows + ([("SHA-256 of the source", model.source_sha256)] if model.source_sha256 else [])


def face_size(model: MorphableModel) -> str:
    """Distances of the mean face in millimetres that everybody can judge."""
    points = model.landmark_mean
    eyes = torch.stack([points[RIGHT_EYE].mean(0), points[LEFT_EYE].mean(0)])
    height = (points[BROWS].mean(0) - points[CHIN]).norm()
    apart, width = (pair.diff(dim=0).norm() for pair in (eyes, points[JAW_ENDS]))
    return f"chin to brows {height:.0f} mm, eyes {apart:.0f} mm apart, {width:.0f} mm wide between the ears"


def borrowed_from_procedural(model: MorphableModel) -> list[str]:
    """What a model has from the procedural face because its own file lacked it; found out by borrowing it again."""
    if model.name == "procedural":
        return []
    found = [BORROWED_EXPRESSIONS.split()[0]] if BORROWED_EXPRESSIONS in model.name + model.licence else []
    mean, points, parts = model.mean.numpy(), model.landmark_mean.numpy(), model.parts.numpy()
    # Insides of mouth and eyes are never borrowed.
    inside = np.isin(parts, [PART_NAMES.index("eyes"), PART_NAMES.index("mouth")])
    unknown = np.where(inside, parts, UNKNOWN_PART)
    albedo_mean, albedo_basis, labels = borrow_appearance(mean, points, parts=unknown)
    if _agree(albedo_mean, model.albedo_mean.numpy()) and _agree(albedo_basis, model.albedo_basis.numpy()):
        found.append("albedo")
    if (labels == parts).mean() > 0.999:
        found.append("parts")
    if _agree(cylindrical_uv(mean, points), model.uv.numpy()):
        found.append("uv (a cylinder)")
    return found


def next_steps(model: MorphableModel, path: Path) -> str:
    """The lines of params.yaml that name a converted file."""
    return f"""To train with it, in params.yaml:

  face_model:
    kind: npz
    path: {path.resolve()}
    identity_modes: {min(model.identity_size, TYPICAL_MODES)}

To look at it: mien model preview {path}"""


def _agree(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and bool(np.allclose(first, second, atol=1e-4))
