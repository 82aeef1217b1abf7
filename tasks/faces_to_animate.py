"""The face that speaks: the mean of the face model, one that `mien reconstruct` made, or any with ARKit's shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.animation.gltf import MorphFace, read_glb
from models.animation.gltf_container import read_container
from models.animation.rig import NEEDED, arkit_basis
from models.face.inner_parts import find_openings, make_inner_parts
from models.face.inner_shapes import IRIS, RGB
from models.face.morphable import MorphableModel
from models.face.procedural_expressions import ARKIT_NAMES

SIDES = {"_L": "Left", "_R": "Right"}


def open_face(path: Path | None, model: MorphableModel) -> tuple[MorphFace, dict[str, str]]:
    """A face with the 52 shapes in our order, and the stamp of the face model that it belongs to, empty for others.

    Without a file the mean face. JSON of `mien reconstruct`: the neutral face of that person in the colours of the face
    model. GLB: a mesh with ARKit's morph targets, with its skin, or one in the topology of the face model.
    Raises: ValueError or FileNotFoundError naming the file, what was found and the remedy.
    """
    if path is None:
        return _of_model(model, model.mean, model.albedo_mean), model.stamp()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such face; give a .json or .glb file of mien reconstruct or mien animate")
    if path.suffix.lower() == ".json":
        return _of_document(path, model), model.stamp()
    if path.suffix.lower() != ".glb":
        raise ValueError(f"{path}: unknown kind of face, expected .json of mien reconstruct or .glb")
    face, _ = read_glb(path)
    if face.target_names:
        return with_arkit_shapes(face, path), _stamp_in(path)
    if len(face.vertices) != model.vertex_count:
        raise ValueError(
            f"{path}: {len(face.vertices)} vertices and no morph targets, expected ARKit's morph targets or the "
            f"{model.vertex_count} vertices of the face model {model.name}; give the .json of mien reconstruct"
        )
    return replace(_of_model(model, model.mean, model.albedo_mean), vertices=face.vertices), model.stamp()


def with_arkit_shapes(face: MorphFace, path: Path) -> MorphFace:
    """The face with its morph targets in the order of `ARKIT_NAMES`; those that it lacks do nothing.

    Halves such as browInnerUpLeft are added up; `_L` and `_R` stand for Left and Right, case does not matter.
    Raises: ValueError naming the shapes that a speaking face needs and this one lacks.
    """
    found: dict[str, np.ndarray] = {}
    within: dict[str, np.ndarray] = {}
    known = {name.lower(): name for name in ARKIT_NAMES}
    for place, (name, target) in enumerate(zip(face.target_names, face.targets, strict=True)):
        plain = name.rsplit(".", 1)[-1]
        for short, long in SIDES.items():
            plain = plain.removesuffix(short) + long if plain.endswith(short) else plain
        key = known.get(plain.lower()) or known.get(plain.lower().removesuffix("left").removesuffix("right"))
        if key is not None:
            found[key] = found.get(key, 0.0) + target
            if face.inner is not None:
                within[key] = within.get(key, 0.0) + face.inner.targets[place]
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise ValueError(
            f"{path}: no morph targets {', '.join(missing)} among {len(face.target_names)}, expected ARKit's names; "
            "rename them or give the .json of mien reconstruct"
        )
    targets = np.stack([found.get(name, np.zeros_like(face.vertices)) for name in ARKIT_NAMES])
    inner = face.inner
    if inner is not None:
        moved = np.stack([within.get(name, np.zeros_like(inner.vertices)) for name in ARKIT_NAMES])
        inner = replace(inner, targets=moved.astype(np.float32))
    return replace(face, target_names=ARKIT_NAMES, targets=targets.astype(np.float32), inner=inner)


def _stamp_in(path: Path) -> dict[str, str]:
    """What a GLB of ours says of its face model, licence included; empty for others."""
    asset = read_container(path)[0].get("asset")
    extras = asset.get("extras") if isinstance(asset, dict) else None
    stamp = extras.get("face_model") if isinstance(extras, dict) else None
    return {str(key): str(value) for key, value in stamp.items()} if isinstance(stamp, dict) else {}


def _of_document(path: Path, model: MorphableModel) -> MorphFace:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        stamp, coefficients = document["face_model"], document["coefficients"]
        identity = torch.tensor(coefficients["identity"], dtype=torch.float32)
        albedo = torch.tensor(coefficients["albedo"], dtype=torch.float32)
        name, found = str(stamp["name"]), str(stamp["hash"])
        iris = _iris(document)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: not the .json of a face, expected one that mien reconstruct wrote") from None
    if found != model.content_hash():
        raise ValueError(
            f"{path}: belongs to the face model {name} ({found}), expected {model.name} ({model.content_hash()}); "
            "name its workspace with --workspace"
        )
    if identity.shape != (model.identity_size,) or albedo.shape != (model.albedo_size,):
        raise ValueError(f"{path}: {len(identity)} identity coefficients, expected {model.identity_size}; make it anew")
    return _of_model(model, model.vertices(identity[None])[0], model.albedo(albedo[None])[0], iris=iris)


def _iris(document: Any) -> RGB:
    """The colour that stands in a document; brown in older ones."""
    if "iris" not in document:
        return IRIS
    red, green, blue = (float(value) for value in document["iris"]["rgb"])
    if not all(0.0 <= value <= 1.0 for value in (red, green, blue)):
        raise ValueError
    return red, green, blue


def _of_model(model: MorphableModel, vertices: torch.Tensor, albedo: torch.Tensor, *, iris: RGB = IRIS) -> MorphFace:
    targets = arkit_basis(model).numpy()
    inner = make_inner_parts(
        find_openings(model), vertices.numpy(), names=ARKIT_NAMES, targets=targets, light=np.ones(3), iris=iris
    )  # fmt: skip
    return MorphFace(
        vertices=vertices.numpy(),
        triangles=model.triangles.numpy(),
        colours=albedo.numpy(),
        target_names=ARKIT_NAMES,
        targets=targets,
        inner=inner,
    )
