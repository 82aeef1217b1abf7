"""The trained model as a folder for other programs: ONNX graphs, weights and face model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.landmarks.portable import export_detector, is_exported
from models.reconstruction.package import save_package
from models.reconstruction.reconstructor import Reconstructor
from tasks.artifacts import Workspace, load_checkpoint, replace_folder
from tasks.face_reader import open_champion, open_checkpoint
from tasks.params import load_params
from tasks.register import PACKAGE_FILES


def export_package(out: Path, *, workspace: Workspace, checkpoint: Path | None = None) -> tuple[list[Path], float]:
    """Write the champion, or a checkpoint with the workspace's detector, into a folder of its own.

    Returns the files, and how far the exported reconstructor lies from its network.
    Raises: ValueError or FileNotFoundError with a one-line remedy; then nothing is written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is not an empty folder; name another one")
    params = load_params(workspace.params)
    if checkpoint is None:
        reader = open_champion(params, workspace)
    else:
        reader = open_checkpoint(checkpoint, params, workspace)
    reconstructor: Reconstructor = reader.reconstructor
    settings: dict[str, Any] = {
        "model": reader.origin,
        "landmarks": params.detect_landmarks.detector,
        "detector": {"min_face_score": params.detect_landmarks.min_face_score},
        "max_image_bytes": reader.max_image_bytes,
        "max_image_pixels": reader.max_image_pixels,
        "max_side_px": reader.max_side_px,
        "units": "vertices in millimetres, pixels with centres at +0.5, rotation axis-angle in radians",
    }
    with replace_folder(out) as folder:
        detector = None
        if params.detect_landmarks.detector == "hierarchical":
            detector = reader.package or workspace.folder("train_detector")
            name = PACKAGE_FILES["detector_checkpoint"] if reader.package else "checkpoint.pt"
            content = load_checkpoint(detector / name)
            if not is_exported(detector, with_finder="finder" in content):
                export_detector(content, folder)
                detector = folder
        deviation = save_package(reconstructor, folder, settings=settings, detector=detector)
    return sorted(out.iterdir()), deviation
