"""The real pipeline, every stage of it, at a small size: `dvc repro` in a workspace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.workspace import create_workspace, preset_path
from tasks.artifacts import CLEAN, SAMPLES, STAGES, Workspace, read_json, read_table

METRICS = {
    "scan_error_mm_median",
    "scan_error_mm_mean",
    "vertex_error_mm",
    "normal_error_deg",
    "depth_slope",
    "landmark_nme",
    "pose_error_deg",
    "similarity",
}
MODELS = ("mean_face", "self_supervised", "supervised", "fused", "refusion")

pytestmark = pytest.mark.slow


def run_pipeline(workspace: Path) -> tuple[str, float]:
    """`mien run`, which is `dvc repro` with one Prefect server for all stages."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    environment["OMP_NUM_THREADS"] = "1"  # threads cost more than they give at this size
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=workspace, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr, time.monotonic() - started


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """A workspace in which everything ran once, and what was printed."""
    root = tmp_path_factory.mktemp("end_to_end") / "workspace"
    create_workspace(root, preset=preset_path("smoke"))
    output, _ = run_pipeline(root)
    return Workspace(root), output


def test_every_stage_runs_once_and_leaves_its_folder(made: tuple[Workspace, str]) -> None:
    workspace, output = made
    assert [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")] == list(STAGES)
    for stage in STAGES:
        assert any(workspace.folder(stage).iterdir())
    assert "Warning" not in output
    assert not [path for path in (workspace.root / "artifacts").iterdir() if path.name not in (*STAGES, ".gitignore")]


def test_what_comes_in_is_accepted_or_quarantined(made: tuple[Workspace, str]) -> None:
    workspace, _ = made
    samples = read_table(workspace.folder("ingest") / "samples.parquet", SAMPLES).to_pandas()
    clean = read_table(workspace.folder("validate_labels") / "clean.parquet", CLEAN).to_pandas()
    assert set(clean.sample_id) <= set(samples.sample_id)
    assert samples.groupby("person").split.nunique().max() == 1
    assert set(clean.split) == {"train", "validation", "test"}


def test_every_model_is_measured_on_the_test_split(made: tuple[Workspace, str]) -> None:
    metrics = read_json(made[0].folder("evaluate") / "metrics.json")
    for model in MODELS:
        assert set(metrics[model]) >= METRICS, model
    assert metrics["mean_face"]["scan_error_mm_median"] > 0.0
    report = (made[0].folder("evaluate") / "report.html").read_text(encoding="utf-8")
    assert "<img" in report
    assert 'src="http' not in report


def test_the_model_is_registered(made: tuple[Workspace, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{made[0].root}/mlruns/mlflow.db")
    assert client.get_model_version_by_alias("mien-reconstructor", "challenger").version == 1
    summary = read_json(made[0].folder("register") / "summary.json")
    aliases = client.get_registered_model("mien-reconstructor").aliases
    assert ("champion" in aliases) == (summary["alias"] == "champion")


def test_every_stage_is_a_flow_run_and_an_mlflow_run(made: tuple[Workspace, str]) -> None:
    import sqlite3

    from mlflow import MlflowClient

    with sqlite3.connect(made[0].root / ".mien" / "prefect" / "prefect.db") as database:
        rows = database.execute("select flow.name, state_type from flow_run join flow on flow.id = flow_id").fetchall()
    database.close()
    assert sorted(rows) == sorted((stage, "COMPLETED") for stage in STAGES)
    client = MlflowClient(f"sqlite:///{made[0].root}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("mien")
    assert experiment is not None
    runs = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    trained = {
        "train_detector",
        "train_geometry",
        "train_self_supervised",
        "train_supervised",
        "train_fused",
        "refusion",
    }
    assert {name for name, status in runs.items() if status == "FINISHED"} >= trained | {"evaluate", "register"}


def test_a_second_run_trains_nothing(made: tuple[Workspace, str]) -> None:
    before = {stage: made[0].folder(stage).stat().st_mtime_ns for stage in STAGES}
    output, seconds = run_pipeline(made[0].root)
    assert "Running stage" not in output
    assert {stage: made[0].folder(stage).stat().st_mtime_ns for stage in STAGES} == before
    assert seconds < 60.0


def test_a_changed_parameter_makes_stale_what_depends_on_it(made: tuple[Workspace, str]) -> None:
    params = made[0].root / "params.yaml"
    original = params.read_text(encoding="utf-8")
    params.write_text(original.replace("pictures: 2", "pictures: 3"), encoding="utf-8")
    try:
        status = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--json"],
            cwd=made[0].root,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        params.write_text(original, encoding="utf-8")
    assert list(json.loads(status.stdout)) == ["evaluate"]
