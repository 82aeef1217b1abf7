"""The detector as ONNX files that onnxruntime runs: the landmark network, and the finder beside it where there is one.

Everything that the detector needs to know stands in the files' metadata, as JSON; nothing is executed but graphs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from models.landmarks import finder as face_finder
from models.landmarks.cascade import NO_OUTLINE, HierarchicalDetector, load_network
from models.landmarks.finder import FinderRun, load_finder
from models.landmarks.folding import without_norms
from models.landmarks.guesses import CropReader, CropReading
from models.landmarks.hierarchical import HierarchicalNetwork
from models.onnx_graph import BATCH_ONLY, check_graph, open_session, write_graph
from models.types import JAW_COUNT

LANDMARK_FILE, FINDER_FILE = "landmarks.onnx", "finder.onnx"

LANDMARK_OUTPUTS = ("points", "annotated", "log_sigma", "presence")
DENSE_OUTPUTS = ("dense", "dense_log_sigma")
OUTLINE_OUTPUT = "outline"
FINDER_OUTPUTS = ("score", "offset", "log_side", "turn")
INPUTS = ("image",)

SETTINGS = "settings"
"""Key of the JSON in a file's metadata."""

EXAMPLE_BATCH, CHECKED_BATCH = 2, 3
EXAMPLE_SIZE, CHECKED_SIZE = (96, 128), (64, 160)
"""Inputs of the finder, height and width; the check sees another size than the export."""

Checked = TypeVar("Checked")


class LandmarkGraph(nn.Module):
    """Crops in [0, 1] to `LANDMARK_OUTPUTS`, to `DENSE_OUTPUTS` and to `OUTLINE_OUTPUT` where it finds those."""

    def __init__(self, network: HierarchicalNetwork) -> None:
        super().__init__()
        self.network = network
        self.outputs = LANDMARK_OUTPUTS + (DENSE_OUTPUTS if network.dense_points else ())
        self.outputs += () if network.outline_head is None else (OUTLINE_OUTPUT,)

    def forward(self, image: Float[Tensor, "B 3 S S"]) -> tuple[Tensor, ...]:
        """Points in crop pixels, logarithms of their errors in crop pixels, logit of a face."""
        found = self.network(image)
        return tuple(getattr(found, name) for name in self.outputs)


class FinderGraph(nn.Module):
    """Photos in [0, 1] to `FINDER_OUTPUTS`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, ...]:
        """See `FinderOutput`."""
        return tuple(self.network(image))


def export_detector(content: dict[str, Any], folder: Path) -> dict[str, float]:
    """Write the networks of a checkpoint's content; returns by file how far its graph lies from its network.

    Raises: ValueError if a graph differs from its network, or the content is not that of a landmark network.
    """
    network = load_network(content)
    settings = {
        "kind": "landmarks",
        "input_size_px": int(content["input_size_px"]),
        "mean_shape": content["mean_shape"].tolist(),
        "sigma_scale": float(content["sigma_scale"]),
    }
    _export_landmarks(network, folder / LANDMARK_FILE, settings)
    if "finder" in content:
        _export_finder(load_finder(content["finder"]), folder / FINDER_FILE)
    return check_exported(content, folder)


def check_exported(content: dict[str, Any], folder: Path) -> dict[str, float]:
    """How far the graphs of a folder lie from the networks of a checkpoint's content, by file.

    Raises: ValueError if one differs.
    """
    network = LandmarkGraph(load_network(content)).eval()
    path = folder / LANDMARK_FILE
    deviations = {
        path.name: check_graph(
            network, _crops(CHECKED_BATCH, content["input_size_px"]), path, inputs=INPUTS, outputs=network.outputs
        )
    }
    if "finder" in content:
        finder, path = FinderGraph(load_finder(content["finder"])).eval(), folder / FINDER_FILE
        example = _photos(CHECKED_BATCH, CHECKED_SIZE)
        deviations[path.name] = check_graph(finder, example, path, inputs=INPUTS, outputs=FINDER_OUTPUTS)
    return deviations


def is_exported(folder: Path, *, with_finder: bool) -> bool:
    """Whether a folder holds the networks of a detector."""
    return (folder / LANDMARK_FILE).is_file() and (not with_finder or (folder / FINDER_FILE).is_file())


def load_portable(place: Path, *, threads: int = 0, **options: Any) -> HierarchicalDetector:
    """Detector of exported files, run by onnxruntime: of a folder, or of `landmarks.onnx` and what lies beside it.

    `threads`: 0 for as many as there are cores; options as in `HierarchicalDetector`.
    Raises: FileNotFoundError or ValueError naming the file and the remedy.
    """
    path = place / LANDMARK_FILE if place.is_dir() else place
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no exported landmark network; run train_detector first, or name its folder")
    reader, settings, outlined = _open_landmarks(path, threads)
    if options.get("convention") == "handmade" and not outlined:
        raise ValueError(NO_OUTLINE.format(path))
    finder = path.with_name(FINDER_FILE)
    if finder.is_file():
        options.setdefault("finder", _open_finder(finder, threads))
    return HierarchicalDetector(
        reader,
        input_size_px=_field(path, settings, "input_size_px", int),
        mean_shape=_field(path, settings, "mean_shape", _shape),
        sigma_scale=_field(path, settings, "sigma_scale", float),
        outlined=outlined,
        **options,
    )


def finder_settings() -> dict[str, int | float]:
    """What whoever decodes the finder's cells must know, by the names in models/landmarks/finder.py."""
    names = ("LONGEST_PX", "SIZE_MULTIPLE", "LEVELS", "STRIDE", "REFERENCE_SIDE", "OFFSET_UNIT")
    return {name.lower(): getattr(face_finder, name) for name in names}


def _export_landmarks(network: HierarchicalNetwork, path: Path, settings: dict[str, Any]) -> None:
    graph = LandmarkGraph(without_norms(network)).eval()
    example = _crops(EXAMPLE_BATCH, network.input_size_px)
    write_graph(graph, example, path, inputs=INPUTS, outputs=graph.outputs, metadata={SETTINGS: json.dumps(settings)})


def _export_finder(network: nn.Module, path: Path) -> None:
    sides = {
        axis: face_finder.SIZE_MULTIPLE * torch.export.Dim(name, min=2) for axis, name in ((2, "rows"), (3, "columns"))
    }
    write_graph(
        FinderGraph(without_norms(network)).eval(),
        _photos(EXAMPLE_BATCH, EXAMPLE_SIZE),
        path,
        inputs=INPUTS,
        outputs=FINDER_OUTPUTS,
        metadata={SETTINGS: json.dumps({"kind": "finder", **finder_settings()})},
        dynamic={**BATCH_ONLY, **sides},
    )


def _crops(count: int, size_px: int) -> tuple[Tensor, ...]:
    return _photos(count, (size_px, size_px))


def _photos(count: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    return (torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count)),)


def _open_landmarks(path: Path, threads: int) -> tuple[CropReader, dict[str, Any], bool]:
    """What runs the network, its settings, and whether it finds the outline."""
    session = open_session(path, threads=threads)
    settings = _settings(path, session, "landmarks")
    names = [output.name for output in session.get_outputs()]

    def read(crops: UInt8[np.ndarray, "N S S 3"]) -> CropReading:
        pixels = np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32)
        pixels *= 1.0 / 255.0
        found = dict(zip(names, session.run(names, {INPUTS[0]: pixels}), strict=True))
        if "dense" not in found:
            found |= {"dense": np.zeros((len(crops), 0, 2)), "dense_log_sigma": np.zeros((len(crops), 0))}
        found.setdefault(OUTLINE_OUTPUT, found["points"][:, :JAW_COUNT])
        return CropReading(*(found[name] for name in CropReading._fields))

    return read, settings, OUTLINE_OUTPUT in names


def _open_finder(path: Path, threads: int) -> FinderRun:
    session = open_session(path, threads=threads)
    settings = _settings(path, session, "finder")
    for name, expected in finder_settings().items():
        if settings.get(name) != expected:
            raise ValueError(f"{path}: {name} is {settings.get(name)}, expected {expected}; run train_detector again")

    def run(pixels: Float[np.ndarray, "B 3 H W"]) -> tuple[Any, Any, Any, Any]:
        score, offset, log_side, turn = session.run(list(FINDER_OUTPUTS), {INPUTS[0]: pixels})
        return score, offset, log_side, turn

    return run


def _settings(path: Path, session: Any, kind: str) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(SETTINGS, "{}")
    try:
        settings = json.loads(text)
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict) or settings.get("kind") != kind:
        raise ValueError(f"{path}: not our exported {kind} network; run train_detector again")
    return settings


def _field(path: Path, settings: dict[str, Any], name: str, convert: Callable[[Any], Checked]) -> Checked:
    try:
        return convert(settings[name])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: {name} in its metadata is missing or broken; run train_detector again") from None


def _shape(values: Any) -> Float[np.ndarray, "68 2"]:
    return np.asarray(values, np.float64).reshape(-1, 2)
