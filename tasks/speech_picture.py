"""A picture of some clips: sound, mouth and closed lips over time, to see at a glance whether they go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.animation.clip import SAMPLE_RATE_HZ, SpeechClip, frame_times
from models.animation.phonemes import BILABIALS
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.speech_clips import read_clips

CLIPS_SHOWN = 6
MAX_SECONDS = 6.0
CURVES = {
    "jawOpen": "#c8453b",
    "mouthClose": "#3b6fc8",
    "mouthPucker": "#5aa469",
    "mouthFunnel": "#c9972b",
    "mouthSmileLeft": "#8a63b8",
}


def draw_clips(folder: Path, path: Path) -> None:
    """Write a picture of the first clip of several speakers; frames of p, b and m are shaded."""
    shown: dict[tuple[str, str], SpeechClip] = {}
    for clip in read_clips(folder, splits=("train", "validation", "test")):
        shown.setdefault((clip.source, clip.speaker), clip)
        if len(shown) == CLIPS_SHOWN:
            break
    figure = Figure(figsize=(13, 2.1 * max(len(shown), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(max(len(shown), 1), squeeze=False)[:, 0]
    for plot, clip in zip(plots, shown.values(), strict=False):
        _draw(plot, clip)
    if shown:
        plots[0].legend(loc="upper right", fontsize=7, ncols=len(CURVES) + 1, frameon=False)
        plots[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _draw(axes: Any, clip: SpeechClip) -> None:
    times = frame_times(len(clip.coefficients))
    step = 16
    envelope = np.abs(clip.audio[: len(clip.audio) // step * step]).reshape(-1, step).max(1)
    seconds = np.arange(len(envelope)) * step / SAMPLE_RATE_HZ
    axes.fill_between(seconds, -0.15 - 0.3 * envelope, -0.15 + 0.3 * envelope, color="#9aa0a6", linewidth=0)
    closed = np.isin(clip.phonemes, BILABIALS)
    axes.fill_between(times, 0, 1, where=closed, step="mid", color="#3b6fc8", alpha=0.12, label="p b m", linewidth=0)
    for name, colour in CURVES.items():
        place = ARKIT_NAMES.index(name)
        if clip.known[place]:
            axes.plot(times, clip.coefficients[:, place], color=colour, linewidth=1.1, label=name)
    said = f" “{clip.text}”" if clip.text else ""
    axes.set_title(f"{clip.speaker}, {clip.emotion}, {clip.style}{said}", fontsize=8, loc="left")
    axes.set(xlim=(0, min(MAX_SECONDS, float(times[-1]))), ylim=(-0.5, 1.0))
    axes.tick_params(labelsize=7)
