"""Speed of the landmark detectors: `python -m benchmarks.landmarks --json FILE`.

On two threads, one photo at a time, taking turns, so that their ratios hold on a busy machine too. A row holds:

- `detector`: `hierarchical` (ours, by onnxruntime), `hierarchical_torch` (the same by torch), `face_alignment` (FAN);
- `ms_per_face`: median of the network alone on one crop; `ms_per_photo`: median of `detect` on a photo of 640 x 480 px
  with one face: box, three looks and the one in the mirror. FAN has none without the weights of its face detector;
- `times_faster`: FAN's milliseconds per face over ours; `threads`, `input_px`, `parameters`, `boxes`.

Ours is that of `--weights` (a checkpoint, by default the one in `artifacts/train_detector`); without one a network of
random weights. Without `--photo` the photo is noise, and the finder's scores are made up for one face in it. Those
of FAN are random, too: they cost as much as learned ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.rendering.timing import median_milliseconds
from models.landmarks.cascade import (
    LIKELY_BOX_SCORE,
    HierarchicalDetector,
    detector_content,
    load_hierarchical,
    load_network,
)
from models.landmarks.finder import FaceFinder, FinderRun, cell_grid, find_faces, finder_content
from models.landmarks.hierarchical import HierarchicalNetwork, NetworkWidths
from models.landmarks.portable import export_detector, load_portable
from tasks.artifacts import load_checkpoint, write_json

THREADS = 2
PHOTO_SIZE = (480, 640)
FACE = (330.0, 250.0, 200.0)
"""Centre x, y and side of the face in the photo without weights."""

SECONDS_PER_NUMBER = 4.0
FAN_MODULES, FAN_INPUT_PX = 4, 256
NETWORK_AIM_MS, PHOTO_AIM_MS, FAN_AIM = 5.0, 15.0, 50.0
DEFAULT_WEIGHTS = Path("artifacts/train_detector/checkpoint.pt")

Row = dict[str, Any]


def measure(content: dict[str, Any], photo: np.ndarray, *, seconds: float, made_up: bool) -> list[Row]:
    """A row per detector, as the module's heading says."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as scratch:
        export_detector(content, Path(scratch))
        options: dict[str, Any] = {"min_face_score": 0.0 if made_up else 0.5}
        detectors = {
            "hierarchical": load_portable(Path(scratch), threads=THREADS, **options),
            "hierarchical_torch": load_hierarchical(content, **options),
        }
        size = detectors["hierarchical"].input_size_px
        crop = cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA)[None]
        runs: dict[str, Callable[[], Any]] = {}
        for name, detector in detectors.items():
            if made_up and detector.finder is not None:
                detector.finder = _sees_one_face(detector.finder)
            runs[f"{name} face"] = _bound(detector.read_crops, crop)
            runs[f"{name} photo"] = _bound(detector.detect, [photo])
        network = fan_network()
        pixels = torch.rand(1, 3, FAN_INPUT_PX, FAN_INPUT_PX)
        runs["face_alignment face"] = _without_gradients(network, pixels)
        taken = median_milliseconds(runs, seconds=seconds)
        boxes = {name: _boxes(detector, photo) for name, detector in detectors.items()}
    fan = taken["face_alignment face"]
    rows = [
        _row(name, load_network(content), size, taken, boxes=boxes[name], times=fan / taken[f"{name} face"])
        for name in detectors
    ]
    return [*rows, _row("face_alignment", network, FAN_INPUT_PX, taken, boxes=None, times=None)]


def _row(
    name: str,
    network: torch.nn.Module,
    input_px: int,
    taken: dict[str, float],
    *,
    boxes: str | None,
    times: float | None,
) -> Row:
    photo = taken.get(f"{name} photo")
    return {
        "detector": name,
        "ms_per_face": round(taken[f"{name} face"], 3),
        "ms_per_photo": None if photo is None else round(photo, 3),
        "times_faster": None if times is None else round(times, 1),
        "threads": THREADS,
        "input_px": input_px,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "boxes": boxes,
    }


def random_content(widths: NetworkWidths | None = None) -> dict[str, Any]:
    """A detector as training starts with."""
    torch.manual_seed(0)
    turn = np.arange(68) * (2 * np.pi / 68)
    shape = 0.5 * np.stack([np.cos(turn), np.sin(turn)], 1)
    # Beside the middle, so that every look moves the frame and none is spared.
    mean = torch.from_numpy(shape / 1.25 + [0.15, 0.0]).float().flatten()
    network = HierarchicalNetwork(widths=widths or NetworkWidths(), modes=(mean, 0.01 * torch.eye(len(mean)))).eval()
    # A network that is sure, as a trained one is of a face: the photo as a whole is not looked at.
    return detector_content(network, mean_shape=shape, sigma_scale=0.1, finder=finder_content(FaceFinder().eval()))


def fan_network() -> torch.nn.Module:
    """FAN as the package builds it, with random weights."""
    from face_alignment.models.fan import FAN

    return FAN(FAN_MODULES).eval()


def drawn_photo() -> np.ndarray:
    """Noise, so that nothing can be skipped."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (PHOTO_SIZE[0] // 8, PHOTO_SIZE[1] // 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, PHOTO_SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def _sees_one_face(finder: Any) -> FinderRun:
    """The finder's own work, then the scores of a single face."""

    def run(pixels: np.ndarray) -> tuple[Any, Any, Any, Any]:
        score, offset, log_side, turn = (np.asarray(values) for values in _call(finder, pixels))
        centres, scales = cell_grid(*pixels.shape[2:])
        factor = pixels.shape[3] / PHOTO_SIZE[1]
        wrong = np.abs(np.log(24.0 * scales / (FACE[2] * factor))) * 1e3
        score = np.full_like(score, -9.0)
        score[:, (np.linalg.norm(centres - np.array(FACE[:2]) * factor, axis=1) + wrong).argmin()] = 9.0
        return score, offset, log_side, turn

    return run


def _call(finder: Any, pixels: np.ndarray) -> tuple[Any, Any, Any, Any]:
    if not isinstance(finder, torch.nn.Module):
        score, offset, log_side, turn = finder(pixels)
        return score, offset, log_side, turn
    with torch.inference_mode():
        score, offset, log_side, turn = finder(torch.from_numpy(pixels))
        return score, offset, log_side, turn


def _boxes(detector: HierarchicalDetector, photo: np.ndarray) -> str:
    if detector.finder is None:
        return "windows"
    found = len(find_faces(detector.finder, [photo], min_score=LIKELY_BOX_SCORE)[0])
    return f"finder: {found}" if found else "whole photo"


def _bound(run: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
    return lambda: run(argument)


def _without_gradients(network: torch.nn.Module, pixels: torch.Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return network(pixels)

    return run


def table_of(rows: list[Row]) -> Table:
    table = Table(title=f"milliseconds, {THREADS} threads, one photo of {PHOTO_SIZE[1]} px at a time")
    names = ("detector", "ms_per_face", "ms_per_photo", "times_faster", "boxes")
    for name in names:
        table.add_column(name, justify="left" if name == "detector" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*("–" if row[name] is None else f"{row[name]}" for name in names))
    return table


def missed_aims(rows: list[Row]) -> list[str]:
    """A line for every number of ours, by onnxruntime, that lies beyond its aim."""
    missed = []
    for row in rows:
        if row["detector"] != "hierarchical":
            continue
        for name, limit in (("ms_per_face", NETWORK_AIM_MS), ("ms_per_photo", PHOTO_AIM_MS)):
            if row[name] > limit:
                missed.append(f"{name} {row[name]}, aim {limit}")
        if row["times_faster"] is not None and row["times_faster"] < FAN_AIM:
            missed.append(f"{row['times_faster']} times FAN, aim {FAN_AIM:.0f}")
    return missed


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows there")] = None,
    weights: Annotated[Path | None, typer.Option(help="checkpoint of our detector")] = None,
    photo: Annotated[Path | None, typer.Option(help="photo with a face, for a trained detector")] = None,
    quick: Annotated[bool, typer.Option(help="few repeats, to see that everything runs")] = False,
) -> None:
    """Measure the detectors and print a table."""
    console = Console()
    checkpoint = weights or (DEFAULT_WEIGHTS if DEFAULT_WEIGHTS.is_file() else None)
    pixels = drawn_photo() if photo is None else read_photo(photo)
    content = random_content() if checkpoint is None else load_checkpoint(checkpoint)
    # A trained finder sees no face in noise, so its scores are made up as well.
    rows = measure(content, pixels, seconds=0.05 if quick else SECONDS_PER_NUMBER, made_up=photo is None)
    if json_file:
        write_json(json_file, rows)
    console.print(table_of(rows))
    for line in missed_aims(rows):
        console.print(f"missed: {line}", highlight=False)


def read_photo(path: Path) -> np.ndarray:
    """A photo whose longer side has 640 px."""
    from tasks.images import decode, read_file

    photo = decode(read_file(path, max_bytes=64 * 2**20))
    factor = PHOTO_SIZE[1] / max(photo.shape[:2])
    size = [max(1, round(extent * factor)) for extent in photo.shape[1::-1]]
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    typer.run(main)
