"""Runs in a local MLflow store: what is logged, how runs nest, and how they end."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.artifacts import Workspace
from tasks.params import Params, RegisterParams, parse_params
from tasks.tracking import (
    TrackingError,
    data_versions,
    finite,
    flatten,
    track,
    track_experiment,
    tracking_client,
    tracking_uri,
)
from tests.local_servers import free_port, object_store, postgres, wait_until_healthy

SOURCE = {"source": "faces", "share": 1.0, "losses": {"photo": 1.9}}
TRAINING = {"init": "train_geometry", "steps": 1, "sources": [SOURCE]}


@pytest.fixture(scope="module")
def params() -> Params:
    return parse_params(
        {
            "ingest": {"sources": [{"kind": "synthetic", "name": "faces", "persons": 2}]},
            "train_self_supervised": TRAINING,
            "train_supervised": TRAINING,
            "train_fused": TRAINING,
        }
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    # One store for the module: making its tables is what takes the time.
    return Workspace(tmp_path_factory.mktemp("workspace"))


def test_run_keeps_parameters_curve_and_file(params: Params, workspace: Workspace, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("kept")
    with track(params, workspace, "train_fused") as run:
        run.curve({"step": step, "split": "train", "name": "photo", "value": 1.0 / (1 + step)} for step in range(1100))
        run.metrics({"similarity": 0.75, "scan_error_mm": None}, step=1100)
        run.artifact(note)
    stored = tracking_client(params, workspace).get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "train_fused"
    assert stored.data.params["train_fused.sources.0.losses.photo"] == "1.9"
    assert stored.data.params["encoder.width"] == "24"
    assert "train_detector.epochs" not in stored.data.params
    assert stored.data.metrics == {"train/photo": pytest.approx(1.0 / 1100), "similarity": 0.75}
    history = run.client.get_metric_history(run.run_id, "train/photo")
    assert sorted(point.step for point in history) == list(range(1100))
    kept = list((workspace.root / "mlruns" / "artifacts").rglob("note.txt"))
    assert [path.read_text() for path in kept] == ["kept"]


def test_run_knows_what_the_machine_did(params: Params, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.tracking.SYSTEM_INTERVAL_S", 0.05)
    deadline = time.monotonic() + 60.0
    with track(params, workspace, "train_fused") as run:
        while time.monotonic() < deadline:
            found = run.client.get_run(run.run_id).data.metrics
            if "system/cpu_utilization_percentage" in found:
                break
            time.sleep(0.1)
    found = run.client.get_run(run.run_id).data.metrics
    assert 0.0 <= found["system/cpu_utilization_percentage"] <= 100.0
    assert found["system/system_memory_usage_megabytes"] > 10.0
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_rounds_are_nested_runs(params: Params, workspace: Workspace) -> None:
    with track(params, workspace, "refusion") as run:
        for number in (1, 2):
            with run.child(f"round_{number}") as round_run:
                round_run.metrics({"similarity": 0.5 + 0.1 * number})
    rounds = run.client.search_runs([run.experiment_id], f"tags.mlflow.parentRunId = '{run.run_id}'")
    assert {found.info.run_name: found.data.metrics["similarity"] for found in rounds} == {
        "round_1": pytest.approx(0.6),
        "round_2": pytest.approx(0.7),
    }


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_run_that_breaks_is_closed(
    params: Params, workspace: Workspace, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), track(params, workspace, "evaluate") as run:
        raise error
    assert tracking_client(params, workspace).get_run(run.run_id).info.status == status


def test_an_experiment_goes_on_in_its_run(params: Params, workspace: Workspace) -> None:
    with pytest.raises(KeyboardInterrupt), track_experiment(params, workspace, "ablation") as first:
        raise KeyboardInterrupt
    with track_experiment(params, workspace, "ablation", run_id=first.run_id) as again, again.child("one") as child:
        assert again.client.get_run(first.run_id).info.status == "RUNNING"
    assert again.run_id == first.run_id
    stored = again.client.get_run(first.run_id)
    assert (stored.info.status, stored.data.tags["mien.experiment"]) == ("FINISHED", "ablation")
    assert again.client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == first.run_id
    again.client.delete_run(first.run_id)
    for gone in (first.run_id, "0" * 32):
        with track_experiment(params, workspace, "ablation", run_id=gone) as new:
            pass
        assert new.run_id not in (first.run_id, gone)


def test_unknown_stage_is_refused(params: Params, workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="stage 'train' is unknown"), track(params, workspace, "train"):
        pass


def test_local_address_is_absolute(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(params, Workspace(Path())) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def test_unusable_address_is_one_line(params: Params, workspace: Workspace) -> None:
    wrong = params.model_copy(update={"register": RegisterParams(tracking_uri="gopher://nowhere")})
    with pytest.raises(TrackingError, match=r"change register\.tracking_uri") as caught:
        tracking_client(wrong, workspace)
    assert "\n" not in str(caught.value)


def test_inputs_are_named_by_the_hash_of_dvc(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {refusion: {cmd: x, deps: [tasks, artifacts/ingest]}}")
    (tmp_path / "dvc.lock").write_text(
        "stages: {ingest: {outs: [{path: artifacts/ingest, md5: 12ab.dir}]},"
        " evaluate: {outs: [{path: artifacts/evaluate, md5: 34cd}]}}"
    )
    assert data_versions(Workspace(tmp_path), "refusion") == {"dvc.ingest": "12ab.dir"}
    assert data_versions(Workspace(tmp_path / "elsewhere"), "refusion") == {}


def test_nested_values_become_dotted_names() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, 2], "e": [{"f": None}]}) == {"a.b": 1, "d": [1, 2], "e.0.f": None}
    assert finite({"a": {"b": 1, "c": math.nan, "d": None}, "e": "x", "f": True}) == {"a.b": 1.0}


@pytest.mark.slow
def test_a_team_server_on_postgresql_and_an_object_store(params: Params, tmp_path: Path) -> None:
    """`mlflow server` as docs/operations.md starts it; runs, files and versions as in a workspace of one's own."""
    pytest.importorskip("psycopg2", reason="needs the extra team-test")
    (tmp_path / "note.txt").write_text("kept")
    with object_store("mlflow") as store, postgres("mlflow") as database:
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"postgresql://{database}/mlflow", "--artifacts-destination", "s3://mlflow"]
        keys = {"AWS_ACCESS_KEY_ID": "mien", "AWS_SECRET_ACCESS_KEY": "secret", "MLFLOW_S3_ENDPOINT_URL": store}
        keys |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (
            (tmp_path / "log").open("w") as log,
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env=os.environ | keys,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as server,
        ):
            try:
                wait_until_healthy(address, tmp_path / "log", server)
                section = params.register.model_copy(update={"tracking_uri": address})
                remote, place = params.model_copy(update={"register": section}), Workspace(tmp_path / "workspace")
                with track(remote, place, "train_fused") as run:
                    run.metrics({"similarity": 0.75})
                    run.artifact(tmp_path / "note.txt")
                run.client.create_registered_model("faces")
                source = run.client.get_run(run.run_id).info.artifact_uri
                version = run.client.create_model_version("faces", source, run_id=run.run_id)
                run.client.set_registered_model_alias("faces", "champion", version.version)
                found = tracking_client(remote, place)
                assert found.get_run(run.run_id).data.metrics["similarity"] == 0.75
                kept = found.download_artifacts(run.run_id, "note.txt", str(tmp_path / "workspace"))
                assert Path(kept).read_text() == "kept"
                assert str(found.get_model_version_by_alias("faces", "champion").version) == "1"
                assert not (place.root / "mlruns").exists()
            finally:
                os.killpg(server.pid, signal.SIGKILL)


def test_what_a_killed_run_left_open_is_ended(params: Params, workspace: Workspace) -> None:
    client = tracking_client(params, workspace)
    left = []
    for stage, place in (
        ("train_fused", workspace),
        ("refusion", workspace),
        ("train_fused", Workspace(Path("/other"))),
    ):
        with track(params, workspace, "evaluate") as run:
            tags = {"mien.stage": stage, "mien.workspace": str(place.root.resolve())}
            left.append(client.create_run(run.experiment_id, tags=tags).info.run_id)
    child = client.create_run(run.experiment_id, tags={"mlflow.parentRunId": left[0]}).info.run_id
    with track(params, workspace, "train_fused"):
        pass
    assert [client.get_run(one).info.status for one in (*left, child)] == ["KILLED", "RUNNING", "RUNNING", "KILLED"]


def test_a_server_that_is_lost_midway_is_one_line(
    params: Params, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def lost(*_: object, **__: object) -> None:
        raise MlflowException("API request failed:\nconnection refused")

    def work() -> None:
        with track(params, workspace, "train_fused") as run:
            for name in ("log_batch", "set_terminated"):
                monkeypatch.setattr(MlflowClient, name, lost)
            run.metrics({"similarity": 0.75})

    with pytest.raises(TrackingError, match=r"MLflow at .* cannot be used .*; start its server") as caught:
        work()
    assert "\n" not in str(caught.value)
