"""Another face model than the workspace's, for one command: with the checkpoint that belongs to it, or fitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.landmarks.detector import LandmarkDetector
from models.reconstruction.face_fitter import FaceFitter
from tasks.artifacts import Workspace
from tasks.convert import read_model_file
from tasks.detect import open_detector
from tasks.ensembles import open_ensemble
from tasks.face_reader import FaceReader, on_device, open_checkpoint
from tasks.params import Params

FITTED_MODES = 80
"""Identity modes of a fitted model: what further ones do is below what a photo shows."""


def open_with_face_model(
    path: Path,
    params: Params,
    workspace: Workspace,
    checkpoint: Path | Sequence[Path] | None,
    *,
    device: str = "cpu",
) -> FaceReader:
    """The checkpoint with its face model; without one, the face model fitted photo by photo, with no network at all.

    The landmarks come from the workspace's detector in either case.
    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    if checkpoint is not None:
        model, _ = read_model_file(path, identity_modes=params.face_model.identity_modes)
        paths = [checkpoint] if isinstance(checkpoint, Path) else list(checkpoint)
        # Each must have been trained with this face model; an ensemble alone would take the one that it knows.
        readers = [open_checkpoint(one, params, workspace, device=device, model=model) for one in paths]
        if len(readers) == 1:
            return readers[0]
        return open_ensemble(paths, params, workspace, device=device, model=model)
    model, _ = read_model_file(path, identity_modes=FITTED_MODES)

    def find_detector() -> LandmarkDetector:
        return open_detector(on_device(params, device), workspace)

    return FaceReader(
        reconstructor=FaceFitter(model),
        origin={"fitted": str(path), "network": None},
        max_image_bytes=params.ingest.max_image_bytes,
        max_image_pixels=params.ingest.max_image_pixels,
        max_side_px=params.ingest.max_side_px,
        find_detector=find_detector,
        device=device,
    )
