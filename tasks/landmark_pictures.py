"""Pictures of an evaluation: the worst photos with both sets of points, and the curves."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.landmarks.accuracy import MeasuredFaces, ReliabilityBin, face_errors
from models.landmarks.framing import landmark_box
from tasks.artifacts import replace_file
from tasks.images import Pixels, encode_png

CELL_PX, CAPTION_PX, COLUMNS, WORST = 320, 22, 4, 12
MARGIN = 1.35
"""Side of what is shown relative to the larger side of the box around both sets of points."""
ANNOTATED, FOUND = (60, 220, 60), (240, 60, 60)
CURVE_LIMIT = 0.2


def worst_first(faces: MeasuredFaces, count: int = WORST) -> list[int]:
    """Numbers of the faces with the largest errors by box, which a turned head does not inflate; missed ones first."""
    errors = np.where(faces.hits(), face_errors(faces).box68, np.inf)
    return [int(row) for row in np.argsort(-errors, kind="stable")[:count]]


def write_sheet(path: Path, faces: MeasuredFaces, names: Sequence[str], read: Callable[[int], Pixels]) -> None:
    """The worst photos as a PNG: annotated points green, found ones red, joined by a line."""
    rows, errors = worst_first(faces), face_errors(faces)
    lines = -(-len(rows) // COLUMNS)
    sheet = np.full((lines * (CELL_PX + CAPTION_PX), min(COLUMNS, len(rows)) * CELL_PX, 3), 255, np.uint8)
    for place, row in enumerate(rows):
        top, left = place // COLUMNS * (CELL_PX + CAPTION_PX), place % COLUMNS * CELL_PX
        sheet[top : top + CELL_PX, left : left + CELL_PX] = _cell(read(row), faces.annotated[row], faces.found[row])
        eyes, box = 100.0 * errors.eyes68[row], 100.0 * errors.box68[row]
        error = "missed" if np.isnan(eyes) else f"eyes {eyes:.1f} box {box:.1f} %"
        caption = f"{error}  {faces.yaw_deg[row]:+.0f} deg  {names[row][-20:]}"
        at = (left + 4, top + CELL_PX + CAPTION_PX - 7)
        cv2.putText(sheet, caption, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    with replace_file(path) as temporary:
        temporary.write_bytes(encode_png(sheet))


def write_curves(path: Path, faces: MeasuredFaces, reliability: Sequence[ReliabilityBin]) -> None:
    """Share of faces over their largest error, and observed over expected error of the points, as a PNG."""
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    cumulative, calibration = figure.subplots(1, 2)
    errors = face_errors(faces)
    for label, values, colour in (("68 points", errors.eyes68, "#08519c"), ("51 inner", errors.eyes51, "#c8453b")):
        ordered = np.sort(values[np.isfinite(values)])
        shares = np.arange(1, len(ordered) + 1) / len(values)
        cumulative.step([0.0, *100 * ordered], [0.0, *shares], where="post", color=colour, label=label)
    cumulative.set(xlim=(0.0, 100 * CURVE_LIMIT), ylim=(0.0, 1.0))
    cumulative.set(xlabel="mean error in % of the eyes' distance", ylabel="share of faces")
    cumulative.legend(frameon=False, loc="lower right")
    if reliability:
        expected, observed = [one.expected * 100 for one in reliability], [one.observed * 100 for one in reliability]
        every = [value for value in [*expected, *observed] if value > 0.0]
        ends = [0.8 * min(every), 1.25 * max(every)] if every else [0.1, 10.0]
        calibration.plot(ends, ends, color="#9aa0a6", linewidth=0.8, linestyle="--", label="the truth told")
        calibration.plot(
            expected, observed, color="#08519c", marker="o", markersize=4, label="bins of equally many points"
        )
        # A few faces gone wrong must not press all other bins into a corner.
        calibration.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        ticks = [tick for tick in (2.0**power for power in range(-6, 10)) if ends[0] <= tick <= ends[1]]
        calibration.minorticks_off()
        calibration.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        calibration.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        calibration.legend(frameon=False)
    calibration.set(xlabel="expected error in % of the face", ylabel="observed")
    for axes in (cumulative, calibration):
        axes.grid(linewidth=0.3, color="#cccccc")
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png")
    with replace_file(path) as temporary:
        temporary.write_bytes(picture.getvalue())


def _cell(image: Pixels, annotated: np.ndarray, found: np.ndarray) -> Pixels:
    hit = bool(np.isfinite(found).all())
    # A detection far off would shrink the face to nothing, so it may only double what is shown.
    box = landmark_box(annotated[None])[0]
    centre, side = (box[:2] + box[2:]) / 2.0, float((box[2:] - box[:2]).max())
    if hit:
        reach = np.abs(found - centre).max()
        side = float(np.clip(2.0 * reach, side, 2.0 * side))
    scale = CELL_PX / (MARGIN * side)
    matrix = np.array(
        [[scale, 0.0, CELL_PX / 2.0 - scale * centre[0]], [0.0, scale, CELL_PX / 2.0 - scale * centre[1]]]
    )
    shifted = matrix.copy()
    shifted[:, 2] += 0.5 * scale - 0.5
    method = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
    grey = (200, 200, 200)
    cell: Pixels = np.asarray(
        cv2.warpAffine(image, shifted, (CELL_PX, CELL_PX), flags=method, borderValue=grey), np.uint8
    )

    def in_cell(points: np.ndarray) -> np.ndarray:
        return np.asarray(np.rint((points * scale + matrix[:, 2] - 0.5) * 16), np.int32)

    truth, guess = in_cell(annotated), in_cell(np.clip(found, -1e4, 1e4)) if hit else None
    for number, (x, y) in enumerate(truth.tolist()):
        if guess is not None:
            end = tuple(guess[number].tolist())
            cv2.line(cell, (x, y), end, (255, 220, 60), 1, cv2.LINE_AA, 4)
            cv2.circle(cell, end, 2 * 16, FOUND, -1, cv2.LINE_AA, 4)
        cv2.circle(cell, (x, y), 2 * 16, ANNOTATED, -1, cv2.LINE_AA, 4)
    return cell
