"""Drift starts one training, not two; photos like the old ones start none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import drift
from flows.deployments import deployment_file, register_deployments
from flows.monitor import TRAIN, monitor, start_training
from flows.server import prefect_server
from tasks.artifacts import Workspace, write_json
from tasks.monitor import DriftReport
from tasks.register import register
from tests.tasks.trained_workspace import METRICS
from tests.tiny_face import tiny_face
from tests.tiny_workspace import clean_rows, tiny_params, tiny_workspace, write_clean

KNOWN_COPIES = 6
"""Of sixty photos, which the champion knows; fifty-five new ones are fewer than a fifth of them."""

NEW = 55

GRAPH = """
stages:
  train_fused:
    cmd: mkdir -p artifacts/train_fused && touch artifacts/train_fused/made
    deps: [artifacts/validate_labels]
    outs: [artifacts/train_fused]
"""


def report(reasons: tuple[str, ...] = (), new_photos: int = 80, measured: int = 80) -> DriftReport:
    return DriftReport(3, 1000, new_photos, measured, (), reasons, "abcd")


SINCE = "new photos since version 3 (1000 photos) was trained"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (report(), f"80 {SINCE}; no limit is passed"),
        (report(new_photos=4, measured=0), f"4 {SINCE}; too few to say anything"),
        (report(("yaw_deg: PSI 0.9",)), f"80 {SINCE}; time to train again: yaw_deg: PSI 0.9"),
    ],
)
def test_a_sentence_for_every_finding(found: DriftReport, text: str) -> None:
    assert drift.describe(found) == text


def test_the_same_finding_asks_for_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("prefect.deployments.run_deployment", lambda name, **options: asked.append((name, options)))
    start_training(TRAIN, report(("x",)))
    ((name, options),) = asked
    assert name == "pipeline/train"
    assert options["idempotency_key"] == "drift-abcd"
    # The training goes on when the run that asked for it has ended.
    assert (options["timeout"], options["as_subflow"]) == (0, False)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose champion is the real thing, but for exported graphs, which nobody asks here."""
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    (project / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (project / "dvc.yaml").write_text(GRAPH)
    params = tiny_params(detect_landmarks={"detector": "provided"})
    (project / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    workspace = tiny_workspace(project, tiny_face())
    shutil.copytree(workspace.folder("train_geometry"), workspace.folder("refusion"))
    write_json(workspace.folder("evaluate") / "metrics.json", METRICS)
    write_photos(workspace, new=0)
    monkeypatch.setattr("tasks.register.export_reconstructor", lambda _, path: path.write_bytes(b"") * 0.0)
    monkeypatch.setattr("tasks.registered_model._input_example", lambda *_, **__: None)
    register(params, workspace)
    return project


def write_photos(workspace: Workspace, *, new: int, lit: bool = False) -> None:
    """What refresh leaves behind: the photos that the champion knows, and some more, which may be overexposed."""
    rows, meshes, crops = clean_rows(tiny_face(), 60)
    stored, pixels = [], []
    for copy in range(KNOWN_COPIES):
        stored += [row | {"sample_id": f"{row['sample_id']}-{copy}"} for row in rows]
        pixels += crops
    names = [f"new-{'lit' if lit else 'alike'}-{place}" for place in range(new)]
    stored += [row | {"sample_id": name} for name, row in zip(names, rows, strict=False)]
    bright = bytes(min(255, 2 * value) for value in range(256))
    pixels += [crop.translate(bright) if lit else crop for crop in crops[:new]]
    write_clean(workspace, stored, meshes, pixels)


@pytest.mark.slow
def test_photos_beyond_the_limits_start_a_training_and_others_do_not(
    watched: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the flows, limits, deployments and server that a team has; the worker's part is its own command."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("PREFECT_HOME", str(watched / ".mien" / "prefect"))
    unscheduled = [f"{name}.schedules=[]" for name in ("refresh", "monitor", "train", "promote")]
    with (
        prefect_server(watched) as address,
        temporary_settings({PREFECT_API_URL: address}),
        get_client(sync_client=True) as client,
    ):
        register_deployments(watched, deployment_file(watched, unscheduled))
        train = client.read_deployment_by_name(TRAIN).id

        def trainings() -> list[Any]:
            return [run for run in client.read_flow_runs() if run.deployment_id == train]

        def found() -> str:
            state: Any = monitor(str(watched), return_state=True)
            assert state.is_completed(), state
            return str(state.message)

        assert found() == "0 new photos since version 1 (360 photos) was trained; too few to say anything"
        write_photos(Workspace(watched), new=NEW)
        assert found() == "55 new photos since version 1 (360 photos) was trained; no limit is passed"
        assert trainings() == []
        write_photos(Workspace(watched), new=NEW, lit=True)
        sentence = found()
        assert sentence.startswith("55 new photos since version 1 (360 photos) was trained; time to train again: ")
        assert "brightness: PSI " in sentence
        assert "yaw_deg" not in sentence
        (run,) = trainings()
        assert (run.name, run.state.is_scheduled()) == ("drift since version 1", True)
        # The next night finds the same photos.
        assert found() == sentence
        assert [one.id for one in trainings()] == [run.id]
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)],
            cwd=watched, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        state = client.read_flow_run(run.id).state
    assert done.returncode == 0, done.stderr
    assert (state.type.value, state.message) == ("COMPLETED", "every stage is up to date")
    assert (watched / "artifacts" / "train_fused" / "made").is_file()
