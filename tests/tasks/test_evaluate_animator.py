from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models.animation.accuracy import SpeakingFace
from models.animation.lips import calibrate_lips
from models.face.procedural_expressions import ARKIT_NAMES
from tasks.animate import animate_speech, open_network
from tasks.animator_data import prepare_clips
from tasks.artifacts import read_json
from tasks.evaluate_animator import evaluate_animator, mean_curves, measure, report, silence
from tasks.train_animator import train_animator
from tests.speaking_face import JAW_MM, speaking_face
from tests.spoken_toy import toy_params, toy_workspace
from tests.wav_files import hum, write_wav


def test_measures_of_the_truth_and_of_silence(tmp_path: Path) -> None:
    workspace, params = toy_workspace(tmp_path), toy_params()
    clips = prepare_clips(workspace, splits=["test"], encoder="log_mel")
    train = prepare_clips(workspace, splits=["train"], encoder="log_mel")
    model = speaking_face()
    face, calibration = SpeakingFace.of(model), calibrate_lips(model)

    def numbers(curves: list[torch.Tensor]) -> dict[str, float]:
        return measure(list(zip(curves, clips, strict=True)), face, calibration, params)

    truth = numbers([clip.coefficients for clip in clips])
    assert (truth["lip_vertex_error_mm2"], truth["coefficient_error"], truth["closure_f1"]) == (0.0, 0.0, 1.0)
    assert truth["clips"] == 3
    still = numbers(silence(clips))
    jaw = torch.cat([clip.coefficients for clip in clips])[:, ARKIT_NAMES.index("jawOpen")]
    # Lips that the jaw parts by 20 mm; where closed they are pressed by what mouthClose adds.
    assert still["lip_vertex_error_mm"] == pytest.approx(JAW_MM * float(jaw.mean()), rel=0.2)
    assert still["closure_recall"] == 1.0
    assert still["closure_precision"] < 0.6
    constant = mean_curves(train, clips)
    assert all(bool((curve == curve[0]).all()) for curve in constant)
    assert numbers(constant)["lip_vertex_error_mm2"] < still["lip_vertex_error_mm2"]


@pytest.mark.slow
def test_the_stage_measures_draws_and_registers(tmp_path: Path) -> None:
    """Lip losses close the toy's lips, and the version can be loaded by us and by anybody."""
    workspace, params = toy_workspace(tmp_path), toy_params(steps=40)
    workspace.params.write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)), encoding="utf-8")
    train_animator(params, workspace)
    evaluate_animator(params, workspace)
    folder = workspace.folder("evaluate_animator")
    metrics = read_json(folder / "metrics.json")
    assert set(metrics) == {"animator", "without_lip_losses", "silence", "mean_curve", "speed"}
    assert metrics["animator"]["lip_vertex_error_mm2"] < 0.6 * metrics["silence"]["lip_vertex_error_mm2"]
    assert set(metrics["animator"]["by_emotion"]) == {"joy", "neutral"}
    assert metrics["speed"]["stream_difference"] < 1e-4
    assert "| animator |" in (folder / "report.md").read_text()
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["curves-1.png", "mouths-1.png"]
    summary = read_json(folder / "summary.json")
    assert (summary["model"], summary["version"]) == ("mien-animator", 1)
    assert summary["rules"]["lips_beat_silence"]["outcome"] == "passed"
    assert summary["export_deviation"] < 1e-3
    if summary["alias"] == "champion":
        assert open_network(None, params, workspace).origin == {
            "name": "mien-animator",
            "version": 1,
            "alias": "champion",
        }
    speech = write_wav(tmp_path / "a.wav", hum(1.0))
    animate_speech(speech, tmp_path, workspace=workspace, checkpoint=workspace.folder("train_animator"), preview=False)
    ours = np.array(json.loads((tmp_path / "a.json").read_text())["weights"])
    import mlflow
    import pandas

    mlflow.set_tracking_uri(summary["tracking_uri"])
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/mien-animator/{summary['version']}")
    finally:
        mlflow.set_tracking_uri(None)
    rows = pandas.DataFrame([{"speech": speech.read_bytes()}, {"speech": speech.read_bytes(), "emotion": "glee"}])
    answer = loaded.predict(rows)
    assert np.abs(np.array(answer["weights"][0]) - ours).max() < 0.05
    assert "emotion 'glee' is unknown" in answer["error"][1]


def test_the_report_shows_what_was_not_measured() -> None:
    row = dict.fromkeys(
        (
            *("coefficient_error", "mouth_error", "lip_vertex_error_mm2", "lip_vertex_error_mm", "jitter"),
            *("upper_face_deviation_mm2", "closure_f1", "spoken_closure_f1"),
        ),
        0.25,
    )
    row |= {"bilabial_closure_f1": None, "true_jitter": 0.1}  # type: ignore[dict-item]
    groups = {name: {"all": row} for name in ("by_source", "by_held_out", "by_emotion", "by_style")}
    text = report({"animator": {**row, **groups}, "speed": {"times_real_time": 80.0}})
    assert "| animator | 0.2500 |" in text
    assert "| – |" in text
    assert "80 times real time" in text
