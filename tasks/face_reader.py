"""A trained model with its detector, ready for photos: the registry's champion, or a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from models.face.formats import build_face_model
from models.face.morphable import MorphableModel
from models.landmarks.detector import LandmarkDetector, build_detector
from models.reconstruction.photos import PhotoReader
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor
from tasks.artifacts import Workspace, load_checkpoint, read_json
from tasks.detect import open_detector
from tasks.face_model import load_face_model
from tasks.params import Params
from tasks.promotion import CHAMPION
from tasks.register import PACKAGE_FILES, find_version
from tasks.tracking import tracking_client, tracking_uri


@dataclass(frozen=True)
class FaceReader:
    """A trained model with its detector, ready for photos."""

    reconstructor: Reconstructor
    origin: dict[str, Any]
    """Where the weights come from, for the record."""
    max_image_bytes: int
    max_image_pixels: int
    max_side_px: int
    """Detection looks at photos reduced to this, as training did; the crop is cut from the full photo."""
    find_detector: Callable[[], LandmarkDetector]
    device: str = "cpu"
    """Where the networks run; meshes and pictures are made on the processor."""
    package: Path | None = None
    """Folder of the registered version with its files."""

    @cached_property
    def photos(self) -> PhotoReader:
        """Network and detector for photos in memory."""
        return PhotoReader(
            self.reconstructor, lambda: self.detector, max_side_px=self.max_side_px, device=self.device
        )  # fmt: skip

    @cached_property
    def detector(self) -> LandmarkDetector:
        """Opened when the first photo without given landmarks comes."""
        return self.find_detector()


def chosen_device(name: str) -> str:
    """`auto` is CUDA where there is one.

    Raises: ValueError if there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise ValueError(f"--device {name}: cannot be used here ({reason}); give cpu, cuda or auto") from None
    if found.type == "cuda" and found.index is not None:
        # Kinds of devices, without a number, are what autocast and the detectors' builders take.
        torch.cuda.set_device(found)
    return found.type


def open_champion(params: Params, workspace: Workspace, *, device: str = "cpu") -> FaceReader:
    """The model that the registry holds as champion, with the face model and detector that belong to it.

    Raises: FileNotFoundError if there is none.
    """
    name, uri = params.register.model_name, tracking_uri(params, workspace)
    local = params.register.tracking_uri is None
    version = None
    # Asking would create an empty registry in a workspace that has none.
    if not local or (workspace.root / "mlruns" / "mlflow.db").exists():
        client = tracking_client(params, workspace)
        version = find_version(client, name, CHAMPION)
    if version is None:
        raise FileNotFoundError(f"no champion of {name} in {uri}; run `make run` first or give --checkpoint")
    from mlflow.artifacts import download_artifacts

    location = client.get_model_version_download_uri(name, version.version)
    folder = Path(download_artifacts(artifact_uri=f"{location}/artifacts", tracking_uri=uri))
    settings = read_json(folder / PACKAGE_FILES["settings"])
    model = build_face_model("npz", path=folder / PACKAGE_FILES["face_model"], identity_modes=sys.maxsize)
    reconstructor = _load(folder / PACKAGE_FILES["reconstructor_checkpoint"], model)

    def find_detector() -> LandmarkDetector:
        kind = settings["landmarks"]
        if kind != "hierarchical":
            return build_detector(kind) if kind == "provided" else build_detector(kind, device=device)
        path = folder / PACKAGE_FILES["detector_checkpoint"]
        content = load_checkpoint(path)
        with _fitting_weights(path):
            score = settings["detector"]["min_face_score"]
            return build_detector(kind, content=content, exported=folder, min_face_score=score, device=device)

    return FaceReader(
        reconstructor=reconstructor,
        origin={"name": name, "version": int(version.version), "alias": CHAMPION},
        max_image_bytes=settings["max_image_bytes"],
        max_image_pixels=settings["max_image_pixels"],
        max_side_px=settings["max_side_px"],
        find_detector=find_detector,
        device=device,
        package=folder,
    )


def open_checkpoint(
    path: Path, params: Params, workspace: Workspace, *, device: str = "cpu", model: MorphableModel | None = None
) -> FaceReader:
    """The model of a checkpoint file, or of the folder that holds one; face model and detector as the params say.

    `model`: another face model than the params name.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    path = path / "checkpoint.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; name one such as artifacts/refusion/checkpoint.pt")

    def find_detector() -> LandmarkDetector:
        with _fitting_weights(workspace.folder("train_detector") / "checkpoint.pt"):
            return open_detector(on_device(params, device), workspace)

    return FaceReader(
        reconstructor=_load(path, load_face_model(params, workspace) if model is None else model),
        origin={"checkpoint": str(path)},
        max_image_bytes=params.ingest.max_image_bytes,
        max_image_pixels=params.ingest.max_image_pixels,
        max_side_px=params.ingest.max_side_px,
        find_detector=find_detector,
        device=device,
    )


def on_device(params: Params, device: str) -> Params:
    """Parameters whose networks run where the command says."""
    kind = "cpu" if device == "cpu" else "cuda"
    return params.model_copy(update={"project": params.project.model_copy(update={"device": kind})})


def _load(path: Path, model: MorphableModel) -> Reconstructor:
    content = load_checkpoint(path)
    with _fitting_weights(path):
        return load_reconstructor(content, model)


@contextmanager
def _fitting_weights(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, KeyError, TypeError):  # what torch and dataclasses say of weights and settings that differ
        raise ValueError(
            f"{path}: made by another version of Mien; train again, or check out the code of its run"
        ) from None
