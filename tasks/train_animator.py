"""Stage train_animator: the network of method E learns coefficients from speech, emotion and style."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from models.animation.animator import Animator, AnimatorSettings, reach_of_layers
from models.animation.clip import FRAME_RATE_HZ
from models.animation.lips import (
    LipCalibration,
    calibrate_lips,
    closing_loss,
    count_closures,
    lip_closure,
    lip_distance,
    opening_loss,
)
from models.animation.streaming import animate_features
from models.face.procedural_expressions import ARKIT_NAMES
from models.training.loop import LoopResult, LoopSettings, build_fabric, train
from tasks.animator_checkpoint import checkpoint_content
from tasks.animator_data import (
    PreparedClip,
    WindowBatch,
    draw_windows,
    feature_shape,
    manner_index,
    prepare_clips,
)
from tasks.artifacts import Workspace, replace_folder, save_checkpoint, write_curve, write_json
from tasks.face_model import load_face_model
from tasks.params import Params
from tasks.speech_params import TrainAnimatorParams
from tasks.tracking import finite, track

LIP_CHANNELS = torch.tensor([ARKIT_NAMES.index(name) for name in ("jawOpen", "mouthClose")])
"""A clip that knows neither says nothing about closed lips."""


def train_animator(params: Params, workspace: Workspace) -> None:
    """Train on the clips of ingest_speech; writes checkpoint.pt, curve.csv and metrics.json.

    Raises: ValueError or FileNotFoundError with a one-line remedy.
    """
    section = params.train_animator
    calibration = calibrate_lips(load_face_model(params, workspace), mode=section.lip_distance)
    clips = prepare_clips(workspace, splits=["train"], encoder=section.encoder)
    validation = prepare_clips(workspace, splits=["validation"], encoder=section.encoder)
    with (
        track(params, workspace, "train_animator") as run,
        replace_folder(workspace.folder("train_animator")) as folder,
    ):
        animator, result = fit_animator(
            params, section, clips, validation, calibration=calibration, workspace=workspace, name="train_animator"
        )
        save_checkpoint(folder / "checkpoint.pt", checkpoint_content(animator, calibration, section.encoder))
        write_curve(folder / "curve.csv", result.curve)
        metrics = {
            **{key: value for key, value in finite(result.best).items() if key != "score"},
            "best_step": result.best_step,
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "parameters": sum(parameter.numel() for parameter in animator.parameters()),
            "clips": len(clips),
            "minutes_of_speech": round(sum(clip.frames for clip in clips) / FRAME_RATE_HZ / 60.0, 2),
        }
        write_json(folder / "metrics.json", metrics)
        run.curve(result.curve)
        run.metrics(metrics)


def fit_animator(
    params: Params,
    section: TrainAnimatorParams,
    clips: Sequence[PreparedClip],
    validation: Sequence[PreparedClip],
    *,
    calibration: LipCalibration,
    workspace: Workspace,
    name: str,
) -> tuple[Animator, LoopResult]:
    """Train one network with the given section, which may differ from that of the params in the weights of its losses.

    `name` tells the progress of runs apart.
    """
    torch.manual_seed(params.project.seed)
    settings = animator_settings(section, clips)
    animator = Animator(settings)
    frames = sum(clip.frames for clip in clips)
    animator.start_from(torch.stack([clip.coefficients.sum(0) for clip in clips]).sum(0) / frames)
    fabric = build_fabric(device=params.project.device, precision=params.project.precision)

    def loss(network: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch = draw_windows(
            clips,
            section.batch_size,
            settings=settings,
            window_s=section.window_s,
            unknown_share=section.unknown_share,
            generator=generator,
        ).to(fabric.device)
        predicted = network(batch.features, batch.emotion, batch.style).float()
        parts = animator_losses(predicted, batch, calibration, section)
        return weighted_sum(parts, section), {key: value.detach() for key, value in parts.items()}

    def validate(_: nn.Module) -> dict[str, float]:
        found: dict[str, list[Tensor]] = {}
        closures = None
        for clip in validation:
            predicted = predict(animator, clip)
            parts = animator_losses(predicted[None], _whole(clip, settings), calibration, section)
            for key, value in {**parts, "score": weighted_sum(parts, section)}.items():
                found.setdefault(key, []).append(value * clip.frames)
            if bool(clip.known[LIP_CHANNELS].all()):
                distances = (lip_distance(curves, calibration.gaps) for curves in (predicted, clip.coefficients))
                counts = count_closures(*distances, threshold=section.closed_distance)
                closures = counts if closures is None else closures + counts
        total = sum(clip.frames for clip in validation)
        means = {key: float(torch.stack(values).sum()) / total for key, values in found.items()}
        return means if closures is None else {**means, "closure_f1": closures.f1}

    result = train(
        fabric,
        animator,
        settings=LoopSettings(
            steps=section.steps,
            learning_rate=section.learning_rate,
            warmup_steps=min(section.warmup_steps, section.steps // 5),
            weight_decay=section.weight_decay,
            clip_norm=section.clip_norm,
            validate_every=section.validate_every,
            patience=section.patience,
            seed=params.project.seed,
        ),
        loss=loss,
        validate=validate,
        progress_folder=workspace.progress(name),
        fingerprint=_fingerprint(params, section, calibration, workspace.folder("ingest_speech") / "clips.parquet"),
        name=name,
    )
    return animator.to("cpu"), result


def animator_settings(section: TrainAnimatorParams, clips: Sequence[PreparedClip]) -> AnimatorSettings:
    """The network that the params describe, for the emotions and styles that the clips show."""
    return AnimatorSettings(
        emotions=tuple(sorted({clip.clip.emotion for clip in clips})),
        styles=tuple(sorted({clip.clip.style for clip in clips})),
        **feature_shape(section.encoder, clips),
        width=section.width,
        layers=section.layers,
        heads=section.heads,
        feed_forward=section.feed_forward,
        emotion_size=section.condition_width,
        style_size=section.condition_width,
        dropout=section.dropout,
        **reach_of_layers(
            layers=section.layers,
            position_kernel=section.position_kernel,
            memory=round(section.memory_s * FRAME_RATE_HZ),
            lookahead=round(section.lookahead_s * FRAME_RATE_HZ),
        ),
    )


def animator_losses(
    predicted: Tensor, batch: WindowBatch, calibration: LipCalibration, section: TrainAnimatorParams
) -> dict[str, Tensor]:
    """First loss, velocity, and the closing and opening parts of the second loss, each a mean over what is known."""
    target, known = batch.coefficients, batch.known
    pairs = known[:, 1:] * known[:, :-1]
    gaps = calibration.gaps.to(predicted.device)
    lips = known[..., LIP_CHANNELS.to(known.device)].amin(-1)
    found, true = lip_distance(predicted, gaps), lip_distance(target, gaps)
    closure = lip_closure(
        target,
        calibration,
        open_ratio=section.open_ratio,
        closed_ratio=section.closed_ratio,
        closed_distance=section.closed_distance,
    )
    closing = closing_loss(found, closure, bilabial=batch.bilabial, bilabial_weight=section.bilabial_weight)
    return {
        "first": _mean((predicted - target).square(), known),
        "velocity": _mean((predicted.diff(dim=1) - target.diff(dim=1)).square(), pairs),
        "closing": _mean(closing, lips),
        "opening": _mean(opening_loss(found, true, closure), lips),
    }


def weighted_sum(parts: dict[str, Tensor], section: TrainAnimatorParams) -> Tensor:
    """What training minimises."""
    return (
        section.first_weight * parts["first"]
        + section.velocity_weight * parts["velocity"]
        + section.lip_weight * parts["closing"]
        + section.lip_match_weight * parts["opening"]
    )


def predict(animator: Animator, clip: PreparedClip) -> Tensor:
    """Coefficients (T, 52) of a clip under its own emotion and style, on the processor."""
    emotion, style = manner_index(clip.clip, animator.settings)
    device = animator.output.weight.device
    return animate_features(animator, clip.features.to(device), emotion=emotion, style=style).float().cpu()


def _whole(clip: PreparedClip, settings: AnimatorSettings) -> WindowBatch:
    emotion, style = manner_index(clip.clip, settings)
    return WindowBatch(
        features=clip.features[None],
        coefficients=clip.coefficients[None],
        known=clip.known.expand(1, clip.frames, -1),
        bilabial=clip.bilabial[None],
        emotion=torch.tensor([emotion]),
        style=torch.tensor([style]),
    )


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1.0)


def _fingerprint(params: Params, section: TrainAnimatorParams, calibration: LipCalibration, clips: Path) -> str:
    parts = [params.project, section, calibration.gaps.tolist()]
    return hashlib.sha256(repr(parts).encode() + clips.read_bytes()).hexdigest()
