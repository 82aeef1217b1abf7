"""Pictures of the animator's report: curves against the truth, and the mouth over time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.animation.clip import frame_times
from models.animation.lips import CLOSED_BELOW, LipCalibration, lip_distance
from models.animation.portrait import Framing, draw_faces
from models.animation.rig import arkit_basis
from models.face.morphable import MorphableModel
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.animator_data import PreparedClip
from tasks.artifacts import replace_file
from tasks.face_model import png_stamp

SHOWN = ("jawOpen", "mouthClose", "mouthPucker", "mouthFunnel", "mouthSmileLeft", "browInnerUp")
COLOURS = {"animator": "#c8453b", "without_lip_losses": "#6aa5d8"}
TITLES = {"animator": "animator", "without_lip_losses": "without lip losses"}
TRUTH = "#303036"
DPI = 100
SHOWN_S = 5.0
"""Of a longer clip only the beginning is drawn."""

MOUTH_PX = 92
MOUTHS = 14
CAPTION_PX = 18
PAPER, INK, MARK = (255, 255, 255), (60, 60, 66), (200, 69, 59)


def draw_curves(
    path: Path, clip: PreparedClip, predicted: Mapping[str, Tensor], calibration: LipCalibration, *, title: str
) -> None:
    """Write a PNG with the most telling coefficients and the lip distance over time, the truth beside predictions."""
    frames = min(clip.frames, round(SHOWN_S * 50))
    times = frame_times(frames)
    figure = Figure(figsize=(11.0, 8.4))
    plots = figure.subplots(len(SHOWN) + 1, 1, sharex=True)
    for plot, name in zip(plots, (*SHOWN, "lip distance"), strict=True):

        def values(curves: Tensor, name: str = name) -> np.ndarray:
            if name == "lip distance":
                return lip_distance(curves, calibration.gaps)[:frames].numpy()
            return curves[:frames, ARKIT_NAMES.index(name)].numpy()

        plot.plot(times, values(clip.coefficients), color=TRUTH, linewidth=2.2, alpha=0.65, label="truth")
        for block, curves in predicted.items():
            plot.plot(times, values(curves), color=COLOURS[block], linewidth=1.2, label=TITLES[block])
        if name == "lip distance":
            plot.axhline(CLOSED_BELOW, color="#888888", linewidth=0.7, linestyle=":")
        else:
            plot.set_ylim(0.0, max(0.3, 1.1 * float(values(clip.coefficients).max())))
        for start, end in _spans(clip.bilabial[:frames].numpy()):
            plot.axvspan(start / 50, end / 50, color="#e6eaf6", linewidth=0)
        plot.set_ylabel(name, fontsize=8)
        plot.tick_params(labelsize=7)
        plot.spines[["top", "right"]].set_visible(False)
    plots[0].set_title(f"{title}\nshaded: p, b, m; dotted: closed below", fontsize=8, loc="left")
    plots[0].legend(loc="upper right", fontsize=7, frameon=False, ncols=3)
    plots[-1].set_xlabel("seconds", fontsize=8)
    plots[-1].set_xlim(0.0, frames / 50)
    figure.tight_layout()
    FigureCanvasAgg(figure)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def draw_mouths(
    path: Path, clip: PreparedClip, predicted: Mapping[str, Tensor], model: MorphableModel, *, title: str
) -> None:
    """Write a PNG with the mouth at moments of a clip, a row for the truth and one for each prediction.

    The moments are the middles of p, b and m, marked by a line, and the widest openings between them.
    """
    moments = telling_frames(clip, MOUTHS)
    rows = {"truth": clip.coefficients * clip.known, **{TITLES[name]: curves for name, curves in predicted.items()}}
    basis = arkit_basis(model)
    framing = mouth_framing(model)
    width = 2 + len(moments) * (MOUTH_PX + 2)
    sheet = Image.new("RGB", (width, 2 * CAPTION_PX + len(rows) * (MOUTH_PX + CAPTION_PX)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    draw.text((4, CAPTION_PX / 2), title, fill=INK, font=font, anchor="lm")
    top = CAPTION_PX
    for name, curves in rows.items():
        draw.text((4, top + CAPTION_PX / 2), name, fill=INK, font=font, anchor="lm")
        top += CAPTION_PX
        worn = model.mean + torch.einsum("tc,cvx->tvx", curves[moments], basis)
        pictures = draw_faces(worn, model.triangles, model.albedo_mean, framing=framing, size_px=MOUTH_PX)
        for place, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (2 + place * (MOUTH_PX + 2), top))
        top += MOUTH_PX
    for place, frame in enumerate(moments):
        left = 2 + place * (MOUTH_PX + 2)
        closed = bool(clip.bilabial[frame])
        text = f"{(frame + 0.5) / 50:.2f} s" + (" p b m" if closed else "")
        draw.text(
            (left + MOUTH_PX / 2, top + CAPTION_PX / 2), text, fill=MARK if closed else INK, font=font, anchor="mm"
        )
    with replace_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True, pnginfo=png_stamp(model))


def mouth_framing(model: MorphableModel) -> Framing:
    """The mouth with room to open."""
    mouth = model.landmark_mean[48:68]
    width = float(mouth[:, 0].max() - mouth[:, 0].min())
    centre = mouth.mean(0) - torch.tensor([0.0, 0.1 * width, 0.0])
    return Framing(centre=centre, height_mm=1.6 * width)


def telling_frames(clip: PreparedClip, count: int) -> list[int]:
    """Up to `count` frames in order: by turns middles of p, b and m and the widest openings between them."""
    closures = [(start + end) // 2 for start, end in _spans(clip.bilabial.numpy())]
    jaw = clip.coefficients[:, ARKIT_NAMES.index("jawOpen")].numpy()
    edges = [0, *closures, clip.frames]
    openings = [low + int(jaw[low:high].argmax()) for low, high in pairwise(edges) if high > low]
    found = sorted({*closures, *openings})
    if len(found) < count:
        found = sorted({*found, *np.linspace(0, clip.frames - 1, count - len(found) + 2)[1:-1].astype(int).tolist()})
    return found[:count]


def _spans(marked: np.ndarray) -> list[tuple[int, int]]:
    """First frame and frame after the last of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked.astype(bool), [False]]).astype(int)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
