"""Stage evaluate_animator: the animator on held-out speech, beside silence, a mean curve and itself without lip losses.

The version is registered as challenger, judged by mlflow/animator_promotion.yaml, and becomes champion if it passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.animation.accuracy import (
    MOUTH_AND_JAW,
    SpeakingFace,
    jitter,
    lip_vertex_error,
    upper_face_deviation,
)
from models.animation.animator import Animator
from models.animation.clip import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from models.animation.lips import ClosureCounts, LipCalibration, calibrate_lips, count_closures, lip_distance, widen
from models.animation.streaming import AnimationStream, animate_features
from models.face.morphable import MorphableModel
from tasks.animator_checkpoint import open_animator
from tasks.animator_data import LOG_MEL, PreparedClip, clip_features, prepare_clips
from tasks.animator_pictures import draw_curves, draw_mouths
from tasks.artifacts import Workspace, replace_folder, without_nan, write_json
from tasks.face_model import load_face_model
from tasks.params import Params
from tasks.register_animator import register_animator
from tasks.tracking import finite, track
from tasks.train_animator import LIP_CHANNELS, fit_animator, predict

NEAR_BILABIAL_FRAMES = 5
"""A wrong closure this near to a p, b or m counts against its precision there."""

DRAWN = ("animator", "without_lip_losses")

Curves = list[Tensor]
NO_FRAMES = ClosureCounts(0, 0, 0, 0)


def evaluate_animator(params: Params, workspace: Workspace) -> None:
    """Measure and register; writes metrics.json, report.md, summary.json and pictures/.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    section, training = params.evaluate_animator, params.train_animator
    model = load_face_model(params, workspace)
    face = SpeakingFace.of(model)
    animator = open_animator(workspace.folder("train_animator") / "checkpoint.pt")
    calibration = calibrate_lips(model, mode=training.lip_distance)
    train = prepare_clips(workspace, splits=["train"], encoder=training.encoder)
    test = prepare_clips(workspace, splits=["test"], encoder=training.encoder)
    with (
        track(params, workspace, "evaluate_animator") as run,
        replace_folder(workspace.folder("evaluate_animator")) as folder,
    ):
        curves: dict[str, Curves] = {"animator": [predict(animator, clip) for clip in test]}
        if section.ablation and training.lip_weight + training.lip_match_weight > 0.0:
            validation = prepare_clips(workspace, splits=["validation"], encoder=training.encoder)
            without, _ = fit_animator(
                params,
                training.model_copy(update={"lip_weight": 0.0, "lip_match_weight": 0.0}),
                train,
                validation,
                calibration=calibration,
                workspace=workspace,
                name="evaluate_animator",
            )
            curves["without_lip_losses"] = [predict(without, clip) for clip in test]
        curves |= {"silence": silence(test), "mean_curve": mean_curves(train, test)}
        metrics: dict[str, Any] = {
            block: measure_groups(found, test, face, calibration, params) for block, found in curves.items()
        }
        metrics["speed"] = measure_speed(animator, test, workspace, params)
        metrics = without_nan(metrics)
        write_json(folder / "metrics.json", metrics)
        (folder / "pictures").mkdir()
        draw_pictures(folder / "pictures", curves, test, model, calibration, count=section.pictures)
        (folder / "report.md").write_text(report(metrics), encoding="utf-8")
        run.metrics(finite(metrics))
        run.artifact(folder / "metrics.json", "evaluate")
        write_json(folder / "summary.json", register_animator(params, workspace, run, metrics, test))


def silence(clips: Sequence[PreparedClip]) -> Curves:
    """A face that never moves."""
    return [torch.zeros_like(clip.coefficients) for clip in clips]


def mean_curves(train: Sequence[PreparedClip], clips: Sequence[PreparedClip]) -> Curves:
    """A face that wears the mean of the training clips all the time, of of the same source where there are any."""

    def mean(chosen: Sequence[PreparedClip]) -> Tensor:
        return torch.cat([clip.coefficients for clip in chosen]).mean(0)

    sources = {clip.clip.source for clip in train}
    means = {source: mean([clip for clip in train if clip.clip.source == source]) for source in sources}
    overall = mean(train)
    return [means.get(clip.clip.source, overall).expand_as(clip.coefficients) for clip in clips]


def measure_groups(
    curves: Curves, clips: Sequence[PreparedClip], face: SpeakingFace, calibration: LipCalibration, params: Params
) -> dict[str, Any]:
    """Numbers over all clips, and by source, by what was held out, by emotion and by style."""
    groups: dict[str, Callable[[PreparedClip], str]] = {
        "by_source": lambda clip: clip.clip.source,
        "by_held_out": lambda clip: clip.clip.held_out or "clips",
        "by_emotion": lambda clip: clip.clip.emotion,
        "by_style": lambda clip: clip.clip.style,
    }
    pairs = list(zip(curves, clips, strict=True))
    metrics: dict[str, Any] = measure(pairs, face, calibration, params)
    for name, key in groups.items():
        values = sorted({key(clip) for clip in clips})
        metrics[name] = {
            value: measure([pair for pair in pairs if key(pair[1]) == value], face, calibration, params)
            for value in values
        }
    return metrics


def measure(
    pairs: Sequence[tuple[Tensor, PreparedClip]], face: SpeakingFace, calibration: LipCalibration, params: Params
) -> dict[str, float]:
    """Numbers over some clips: means over frames, but the upper face over clips; closures counted together."""
    sums: dict[str, float] = {}
    frames = 0
    closures = {"": NO_FRAMES, "spoken_": NO_FRAMES, "bilabial_": NO_FRAMES}
    for predicted, clip in pairs:
        known = clip.known.bool()
        shown, true = predicted * clip.known, clip.coefficients * clip.known
        squared, plain = lip_vertex_error(shown, true, face)
        mouth = known & MOUTH_AND_JAW
        row = {
            "coefficient_error": float((shown - true)[:, known].abs().mean()),
            "mouth_error": float((shown - true)[:, mouth].abs().mean()),
            "mouth_square": float((shown - true)[:, mouth].square().mean()),
            "lip_vertex_error_mm2": float(squared.mean()),
            "lip_vertex_error_mm": float(plain.mean()),
            "upper_face_deviation_mm2": upper_face_deviation(shown, true, face),
            "jitter": jitter(shown, known),
            "true_jitter": jitter(true, known),
        }
        for name, value in row.items():
            sums[name] = sums.get(name, 0.0) + value * clip.frames
        frames += clip.frames
        if bool(clip.known[LIP_CHANNELS].all()):
            distances = (lip_distance(shown, calibration.gaps), lip_distance(true, calibration.gaps))
            considered = {
                "": None,
                "spoken_": clip.spoken,
                "bilabial_": widen(clip.bilabial, NEAR_BILABIAL_FRAMES) if bool(clip.bilabial.any()) else None,
            }
            for name, chosen in considered.items():
                if name != "bilabial_" or chosen is not None:
                    closures[name] += count_closures(
                        *distances,
                        considered=chosen,
                        threshold=params.train_animator.closed_distance,
                        tolerance_frames=params.evaluate_animator.tolerance_frames,
                    )
    numbers = {name: value / frames for name, value in sums.items()}
    numbers["mouth_rms_error"] = numbers.pop("mouth_square") ** 0.5
    for name, counts in closures.items():
        numbers |= {
            f"{name}closure_precision": counts.precision,
            f"{name}closure_recall": counts.recall,
            f"{name}closure_f1": counts.f1,
        }
    numbers = {name: round(value, 6) for name, value in numbers.items()}
    return {**numbers, "clips": len(pairs), "seconds": round(frames / FRAME_RATE_HZ, 1)}


def measure_speed(
    animator: Animator, clips: Sequence[PreparedClip], workspace: Workspace, params: Params
) -> dict[str, float]:
    """How many times faster than real time speech becomes curves, features included, and what streaming costs.

    `first_chunk_ms` is the time until the first half second of a stream has been turned into its frames, and
    `stream_difference` the largest difference of a coefficient between the chunks of a clip and its whole.
    """
    encoder = params.train_animator.encoder
    animate_features(animator, clips[0].features)
    started, seconds = time.perf_counter(), 0.0
    for clip in clips:
        features, _ = clip_features(clip.clip, encoder, workspace)
        animate_features(animator, features)
        seconds += clip.frames / FRAME_RATE_HZ
    speed = {"times_real_time": round(seconds / (time.perf_counter() - started), 1)}
    if encoder != LOG_MEL:
        return speed
    sound = torch.from_numpy(clips[0].clip.audio)
    stream = AnimationStream(animator)
    first, *others = torch.split(sound, SAMPLE_RATE_HZ // 2)
    started = time.perf_counter()
    found = [stream.push(first)]
    speed["first_chunk_ms"] = round(1e3 * (time.perf_counter() - started), 1)
    found += [*(stream.push(piece) for piece in others), stream.finish()]
    whole = animate_features(animator, clips[0].features)
    speed["stream_difference"] = float((torch.cat(found)[: len(whole)] - whole).abs().max())
    return speed


def draw_pictures(
    folder: Path,
    curves: dict[str, Curves],
    clips: Sequence[PreparedClip],
    model: MorphableModel,
    calibration: LipCalibration,
    *,
    count: int,
) -> None:
    """Curves against truth and mouths over time of some clips, those with the most p, b and m of each emotion first."""
    order = sorted(range(len(clips)), key=lambda place: -int(clips[place].bilabial.sum()))
    first = {clips[place].clip.emotion: place for place in reversed(order)}
    chosen = [*first.values(), *(place for place in order if place not in first.values())][:count]
    for number, place in enumerate(chosen, 1):
        shown = {name: found[place] for name, found in curves.items() if name in DRAWN}
        clip = clips[place]
        title = f"{clip.clip.speaker}, {clip.clip.emotion}, {clip.clip.style}" + (
            f": “{clip.clip.text}”" if clip.clip.text else ""
        )
        draw_curves(folder / f"curves-{number}.png", clip, shown, calibration, title=title)
        draw_mouths(folder / f"mouths-{number}.png", clip, shown, model, title=title)


COLUMNS = {
    "coefficient_error": ("coefficient error", 4),
    "mouth_error": ("mouth and jaw", 4),
    "lip_vertex_error_mm2": ("lips mm²", 2),
    "lip_vertex_error_mm": ("lips mm", 2),
    "upper_face_deviation_mm2": ("upper face mm²", 3),
    "closure_f1": ("closure F1", 3),
    "spoken_closure_f1": ("… while speaking", 3),
    "bilabial_closure_f1": ("… near p b m", 3),
    "jitter": ("jitter", 5),
}


def report(metrics: dict[str, Any]) -> str:
    """The numbers as tables in Markdown."""
    blocks = [block for block in metrics if block != "speed"]
    parts = ["# The animator on held-out speech\n", _table({block: metrics[block] for block in blocks}, "face")]
    for group in ("by_source", "by_held_out", "by_emotion", "by_style"):
        parts.append(f"\n## The animator {group.replace('_', ' ')}\n")
        parts.append(_table(metrics["animator"][group], group.removeprefix("by_").replace("_", " ")))
    true = metrics["animator"]["true_jitter"]
    parts.append(
        f"\nJitter of the truth: {true:.5f}. Speed: {metrics['speed']['times_real_time']:g} times real time.\n"
    )
    return "\n".join(parts)


def _table(rows: dict[str, Any], first: str) -> str:
    lines = [
        f"| {first} | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for name, row in rows.items():
        cells = ["–" if row[key] is None else f"{row[key]:.{digits}f}" for key, (_, digits) in COLUMNS.items()]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
