"""Face models by kind, and our own files of them: `.npz` or `.safetensors`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.face.adapters.archive import npz_names, read_npz
from models.face.adapters.assemble import assemble
from models.face.adapters.landmarks import read_landmarks
from models.face.adapters.source import file_sha256, require_file, require_keys
from models.face.morphable import MorphableModel
from models.face.skinning import Skinning

OWN_KEYS = (
    "name",
    "licence",
    "mean",
    "identity_basis",
    "expression_basis",
    "expression_names",
    "albedo_mean",
    "albedo_basis",
    "triangles",
    "landmark_vertices",
    "uv",
    "parts",
)

OPTIONAL_KEYS = ("landmark_weights",)
"""Barycentric weights (68, 3), where `landmark_vertices` are the corners (68, 3) of the triangles that hold them."""

SOURCE_KEY = "source_sha256"
"""Optional: SHA-256 of the file that the model was converted from."""

SKINNING_PREFIX = "skinning_"
"""Optional arrays of models/face/skinning.py, all of them or none."""

SAFETENSORS = ".safetensors"

ALL_MODES = sys.maxsize


@dataclass(frozen=True, kw_only=True)
class FaceModelFile:
    """What the params say of a face model besides its kind."""

    path: Path | None = None
    landmarks: Path | None = None
    identity_modes: int | None = None
    region: str | None = None

    def required(self, kind: str) -> Path:
        """The path of a kind that needs one.

        Raises: ValueError if there is none.
        """
        if self.path is None:
            raise ValueError(f"face model kind {kind} needs a path; set face_model.path")
        return self.path


def build_face_model(
    kind: str,
    *,
    path: Path | None = None,
    landmarks: Path | None = None,
    identity_modes: int | None = 40,
    region: str | None = None,
) -> MorphableModel:
    """The face model of a kind of `FACE_MODELS`, with at most `identity_modes` identity modes, or all.

    `landmarks` is a file that says where the 68 points are, see models/face/adapters/landmarks.py; `region` chooses a
    part of ICT-FaceKit, see models/face/adapters/ict.py.
    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    if kind not in FACE_MODELS:
        raise ValueError(f"face model kind {kind!r} is unknown, expected one of {', '.join(FACE_MODELS)}")
    if region is not None and kind != "ict":
        raise ValueError(f"face model kind {kind} has no regions; remove face_model.region = {region!r}")
    file = FaceModelFile(path=path, landmarks=landmarks, identity_modes=identity_modes, region=region)
    if path is None:
        return FACE_MODELS[kind](file)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such face model; set face_model.path to one of kind {kind}, or face_model.kind to procedural"
        )
    try:
        return FACE_MODELS[kind](file)
    except (ValueError, IndexError, TypeError) as error:
        message = " ".join(str(error).split())
        if any(message.startswith(str(known)) for known in (path, landmarks) if known is not None):
            raise ValueError(message) from None
        raise ValueError(f"{path}: {message}; is it a file of kind {kind}, and complete?") from None


def detect_kind(path: Path) -> str:
    """Which kind of face model lies at a path, by what it holds rather than by its name where both could differ.

    Raises: ValueError or FileNotFoundError if it is none that is known.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        if (path / "generic_neutral_mesh.obj").is_file():
            return "ict"
        raise ValueError(
            f"{path}: a folder without generic_neutral_mesh.obj, expected ICT-FaceKit's FaceXModel or a file"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such face model")
    if suffix == ".npz":
        names = npz_names(path)
        for kind, key in (("ict", "arkit52_to_expression"), ("npz", "identity_basis"), ("flame", "v_template")):
            if key in names:
                return kind
    if suffix in SUFFIX_KINDS:
        return SUFFIX_KINDS[suffix]
    raise ValueError(
        f"{path}: no known face model, expected ICT-FaceKit's folder or a file ending in "
        f"{', '.join(('.npz', *SUFFIX_KINDS))}; name the kind if the file is called otherwise"
    )


def save_face_model(model: MorphableModel, path: Path) -> None:
    """Write a face model as `.npz` or `.safetensors` that `build_face_model("npz", path=…)` reads back bit by bit.

    Raises: ValueError for another suffix; then nothing is written.
    """
    arrays = {name.replace(".", "_"): buffer.detach().cpu().numpy() for name, buffer in model.named_buffers()}
    arrays["landmark_vertices"] = arrays.pop("landmark_corners")
    texts: dict[str, Any] = {"name": model.name, "licence": model.licence, SOURCE_KEY: model.source_sha256}
    lists = {"expression_names": model.expression_names}
    if model.skinning is not None:
        lists[f"{SKINNING_PREFIX}joint_names"] = model.skinning.joint_names
    suffix = path.suffix.lower()
    if suffix not in (".npz", SAFETENSORS):
        raise ValueError(f"{path}: a face model is saved as .npz or {SAFETENSORS}; choose one of these names")
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        if suffix == SAFETENSORS:
            from safetensors.numpy import save_file

            save_file(arrays, temporary, metadata=texts | {key: json.dumps(names) for key, names in lists.items()})
        else:
            strings = {key: np.array(names, dtype=np.str_) for key, names in lists.items()}
            np.savez_compressed(temporary, **texts, **strings, **arrays)  # type: ignore[arg-type]
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _procedural(file: FaceModelFile) -> MorphableModel:
    from models.face.procedural import procedural_face

    for key in ("path", "landmarks"):
        if getattr(file, key) is not None:
            raise ValueError(f"face model kind procedural is made by code; remove face_model.{key}")
    return procedural_face() if file.identity_modes is None else procedural_face(identity_modes=file.identity_modes)


def _own(file: FaceModelFile) -> MorphableModel:
    path = file.required("npz")
    require_file(path, expected="an .npz or .safetensors file")
    data = _read_safetensors(path) if path.suffix.lower() == SAFETENSORS else read_npz(path)
    if "arkit52_to_expression" in data:
        from models.face.adapters.ict import read_ict

        return assemble(read_ict(path, landmarks=file.landmarks, identity_modes=file.identity_modes))
    require_keys(data, OWN_KEYS, path)
    data["identity_basis"] = data["identity_basis"][: file.identity_modes]
    texts = ("name", "licence", "expression_names")
    keys = (*OWN_KEYS, *(key for key in OPTIONAL_KEYS if key in data))
    arrays: dict[str, Any] = {key: _tensor(data[key]) for key in keys if key not in texts}
    if file.landmarks is not None:
        mean, triangles = data["mean"], data["triangles"].astype(np.int64)
        vertices, weights = read_landmarks(file.landmarks, mean=mean, triangles=triangles)
        arrays["landmark_vertices"] = _tensor(vertices)
        arrays["landmark_weights"] = None if weights is None else _tensor(weights)
    return MorphableModel(
        name=str(data["name"]),
        licence=str(data["licence"]),
        # A file without the note is itself the source.
        source_sha256=str(data[SOURCE_KEY]) if SOURCE_KEY in data else file_sha256(path),
        expression_names=[str(name) for name in data["expression_names"]],
        skinning=_skinning(data),
        **arrays,
    )


def _skinning(data: dict[str, np.ndarray]) -> Skinning | None:
    found = {key.removeprefix(SKINNING_PREFIX): value for key, value in data.items() if key.startswith(SKINNING_PREFIX)}
    if not found:
        return None
    names = [str(name) for name in found.pop("joint_names", np.array([], dtype=np.str_))]
    arrays: dict[str, Any] = {key: _tensor(value) for key, value in found.items()}
    return Skinning(joint_names=names, **arrays)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            data = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            texts: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a .safetensors file ({error}); convert the model again") from None
    for key, text in texts.items():
        data[key] = np.array(json.loads(text) if key.endswith("_names") else text, dtype=np.str_)
    return data


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _ict(file: FaceModelFile) -> MorphableModel:
    from models.face.adapters.ict import read_ict

    return assemble(
        read_ict(
            file.required("ict"),
            landmarks=file.landmarks,
            identity_modes=file.identity_modes,
            region=file.region or "narrow_face",
        )
    )


def _basel(file: FaceModelFile) -> MorphableModel:
    from models.face.adapters.basel import read_basel

    return assemble(read_basel(file.required("basel"), landmarks=file.landmarks, identity_modes=file.identity_modes))


def _flame(file: FaceModelFile) -> MorphableModel:
    from models.face.adapters.flame import read_flame

    return assemble(read_flame(file.required("flame"), landmarks=file.landmarks, identity_modes=file.identity_modes))


def _surrey(file: FaceModelFile) -> MorphableModel:
    from models.face.adapters.surrey import read_surrey

    return assemble(read_surrey(file.required("surrey"), landmarks=file.landmarks, identity_modes=file.identity_modes))


FACE_MODELS: dict[str, Callable[[FaceModelFile], MorphableModel]] = {
    "procedural": _procedural,
    "npz": _own,
    "ict": _ict,
    "basel": _basel,
    "flame": _flame,
    "surrey": _surrey,
}
"""Kinds of face model. `npz` is our own file, also as `.safetensors`, and reads ICT-FaceKit's `.npz` too."""

SUFFIX_KINDS = {
    SAFETENSORS: "npz",
    **{".mat": "basel", ".h5": "basel", ".hdf5": "basel"},
    **{".pkl": "flame", ".bin": "surrey"},
}
"""Kinds that a file's name alone tells."""
