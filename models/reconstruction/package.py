"""A trained reconstructor with its face model and detector as one folder that needs no workspace and no registry.

The folder holds what the registry keeps of a version: `settings.json`, `face_model.npz`, `reconstructor.pt`,
`reconstructor.onnx` and, unless points are always given, `landmarks.onnx` with `finder.onnx`.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps

from models.face.formats import build_face_model, save_face_model
from models.landmarks.detector import LandmarkDetector, build_detector
from models.landmarks.portable import FINDER_FILE, LANDMARK_FILE, load_portable
from models.network_export import export_reconstructor
from models.reconstruction.photos import PhotoReader
from models.reconstruction.reconstructor import Reconstructor, load_reconstructor, reconstructor_content

SETTINGS, FACE_MODEL, WEIGHTS, GRAPH = "settings.json", "face_model.npz", "reconstructor.pt", "reconstructor.onnx"
MIN_FACE_SCORE = 0.5
MAX_PIXELS = 64_000_000


def load_package(folder: Path | str, *, device: str = "cpu") -> PhotoReader:
    """Network, face model and detector of a folder, ready for photos.

    Raises: FileNotFoundError or ValueError naming the file and the remedy.
    """
    place = Path(folder)
    for name in (SETTINGS, FACE_MODEL, WEIGHTS):
        if not (place / name).is_file():
            raise FileNotFoundError(f"{place / name}: no such file; make the folder with `mien export`")
    settings = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
    model = build_face_model("npz", path=place / FACE_MODEL, identity_modes=None)
    try:
        content = torch.load(place / WEIGHTS, map_location="cpu", weights_only=True)
        reconstructor = load_reconstructor(content, model)
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{place / WEIGHTS}: not weights of this version of Mien ({type(error).__name__}); export again"
        ) from None

    def find_detector() -> LandmarkDetector:
        kind = str(settings.get("landmarks", "hierarchical"))
        if kind == "hierarchical":
            score = float((settings.get("detector") or {}).get("min_face_score", MIN_FACE_SCORE))
            return load_portable(place, min_face_score=score)
        return build_detector(kind) if kind == "provided" else build_detector(kind, device=device)

    return PhotoReader(reconstructor, find_detector, max_side_px=int(settings.get("max_side_px", 1024)), device=device)


def save_package(
    reconstructor: Reconstructor, folder: Path, *, settings: Mapping[str, Any], detector: Path | None = None
) -> float:
    """Write a folder for `load_package`; `detector` names the folder of its ONNX files.

    Returns the largest relative difference between graph and network.
    Raises: ValueError if the exported graph differs from the network, FileNotFoundError without the detector's files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = reconstructor.model
    save_face_model(model, folder / FACE_MODEL)
    torch.save(reconstructor_content(reconstructor), folder / WEIGHTS)
    deviation = export_reconstructor(reconstructor, folder / GRAPH)
    if detector is not None:
        if not (detector / LANDMARK_FILE).is_file():
            raise FileNotFoundError(f"{detector / LANDMARK_FILE}: no exported detector; run train_detector again")
        for name in (LANDMARK_FILE, FINDER_FILE):
            if (detector / name).is_file() and not (folder / name).exists():
                shutil.copy(detector / name, folder / name)
    written = {
        "crop_size_px": reconstructor.settings.crop_size_px,
        "crop_scale": reconstructor.settings.crop_scale,
        "face_model": model.stamp(),
        "expression_names": list(model.expression_names),
        **settings,
    }
    (folder / SETTINGS).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return deviation


def read_photo(path: Path | str) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a photo, upright, RGB.

    Raises: ValueError if it is no picture or too large a one, OSError if it cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{path}: {image.width} x {image.height}, expected at most {MAX_PIXELS} pixels")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a picture ({type(error).__name__}); give JPEG or PNG") from None
