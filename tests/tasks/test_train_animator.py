from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.animation.lips import calibrate_lips
from models.face.procedural_expressions import ARKIT_NAMES
from tasks import train_animator as stage
from tasks.animator_checkpoint import open_animator
from tasks.animator_data import prepare_clips
from tasks.artifacts import read_json
from tasks.train_animator import animator_losses, predict, train_animator, weighted_sum
from tests.speaking_face import speaking_face
from tests.spoken_toy import toy_params, toy_workspace
from tests.tiny_workspace import Recorder


def test_the_toy_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, params, recorder = toy_workspace(tmp_path), toy_params(), Recorder()
    monkeypatch.setattr(stage, "track", recorder.track)
    train_animator(params, workspace)
    folder = workspace.folder("train_animator")
    metrics = read_json(folder / "metrics.json")
    with (folder / "curve.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "validation" and row["name"] == "score"]
    assert float(rows[-1]["value"]) < 0.5 * float(rows[0]["value"])
    assert metrics["closure_f1"] > 0.6
    assert (metrics["clips"], metrics["steps"]) == (6, 60)
    animator = open_animator(folder / "checkpoint.pt")
    assert animator.settings.emotions == ("joy", "neutral")
    (clip,) = prepare_clips(workspace, splits=["test"], encoder="log_mel")[:1]
    jaw = ARKIT_NAMES.index("jawOpen")
    true, found = clip.coefficients[:, jaw], predict(animator, clip)[:, jaw]
    assert float((found - true).square().mean()) < 0.5 * float(true.var())
    assert not (workspace.progress("train_animator") / "state.pt").exists()
    assert [name for name, _ in recorder.calls] == ["curve", "metrics"]


def test_losses_vanish_on_the_truth_and_heed_their_weights(tmp_path: Path) -> None:
    workspace, params = toy_workspace(tmp_path), toy_params(lip_weight=3.0, lip_match_weight=5.0, velocity_weight=7.0)
    section = params.train_animator
    calibration = calibrate_lips(speaking_face())
    (clip,) = prepare_clips(workspace, splits=["test"], encoder="log_mel")[:1]
    batch = stage._whole(clip, stage.animator_settings(section, [clip]))
    perfect = animator_losses(clip.coefficients[None], batch, calibration, section)
    assert {key: float(value) for key, value in perfect.items()} == pytest.approx(dict.fromkeys(perfect, 0.0), abs=1e-7)
    # A mouth that hangs open by a constant: no velocity, but lips apart where they should be closed.
    ajar = clip.coefficients[None] + 0.1
    parts = animator_losses(ajar, batch, calibration, section)
    assert float(parts["first"]) == pytest.approx(0.01, rel=1e-4)
    assert float(parts["velocity"]) == pytest.approx(0.0, abs=1e-9)
    assert float(parts["closing"]) > 0.0
    expected = parts["first"] + 7.0 * parts["velocity"] + 3.0 * parts["closing"] + 5.0 * parts["opening"]
    assert torch.equal(weighted_sum(parts, section), expected)


def test_unknown_coefficients_teach_nothing(tmp_path: Path) -> None:
    workspace, section = toy_workspace(tmp_path), toy_params().train_animator
    (clip,) = prepare_clips(workspace, splits=["test"], encoder="log_mel")[:1]
    batch = stage._whole(clip, stage.animator_settings(section, [clip]))
    known = batch.known.clone()
    known[..., 3] = 0.0
    batch = replace(batch, known=known)
    wrong = clip.coefficients[None].clone()
    wrong[..., 3] += 0.5
    parts = animator_losses(wrong, batch, calibrate_lips(speaking_face()), section)
    assert float(parts["first"]) == 0.0
    assert float(parts["velocity"]) == 0.0
