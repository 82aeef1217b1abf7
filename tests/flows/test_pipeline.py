"""Order, retry and gate of the scheduled run, on a small DVC project."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.failures import Failure, failure_path
from flows.pipeline import may_help, stage_order, workspace_limit
from tasks.artifacts import STAGES


def test_the_order_is_that_of_the_graph_not_of_the_file(project: Path) -> None:
    assert stage_order(project) == ["first", "shaky", "broken", "last"]


def test_the_order_of_our_own_graph_is_that_of_the_stages(repository: Path) -> None:
    assert stage_order(repository) == list(STAGES)


@pytest.mark.slow
def test_a_shaky_stage_is_tried_again_and_a_broken_one_stops_the_run(
    project: Path, call: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = call("flows", "pipeline", "--retries", "1", "--retry-delay", "0", cwd=project)
    assert "Running stage 'first'" in done.stdout, done.stderr
    assert (project.parent / "order").read_text().split() == ["first", "shaky", "shaky", "broken", "broken"]
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: broken: dvc repro ended with code 255"
    assert "Traceback" not in done.stderr + done.stdout
    assert (project / ".mien" / "prefect" / "prefect.db").is_file()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    server = [line for line in running.splitlines() if "flows.server" in line and str(project) in line]
    assert not server


@pytest.mark.parametrize(
    ("message", "expected"), [("x: refused: 3 photos", False), ("x: no space left", True), (None, True)]
)
def test_refused_input_is_not_tried_again(message: str | None, expected: bool) -> None:
    assert may_help(None, None, SimpleNamespace(message=message)) is expected


def test_a_stage_fails_with_its_own_message(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import pipeline

    def stage_that_refuses(_command: list[str], *, cwd: Path, timeout_s: float | None) -> int:
        Failure("photos: folder is empty", 2, "").save(failure_path(cwd, "first"))
        return 255

    monkeypatch.setattr(pipeline, "run_child", stage_that_refuses)
    with pytest.raises(pipeline.StageError, match=r"^first: refused: photos: folder is empty$"):
        pipeline.reproduce.fn(str(project), "first")


def test_a_stage_that_takes_too_long_is_ended(project: Path) -> None:
    from flows import pipeline

    (project / "dvc.yaml").write_text("stages: {first: {cmd: sleep 600}}")
    with pytest.raises(pipeline.StageError, match=r"^first: took longer than 3 s and was ended; give it more time"):
        pipeline.reproduce.fn(str(project), "first", 3.0)


def test_every_workspace_has_a_limit_of_its_own(tmp_path: Path) -> None:
    names = {workspace_limit(tmp_path / name) for name in ("Faces 1", "other/Faces 1", "b")}
    assert len(names) == 3
    assert workspace_limit(tmp_path / "x" / ".." / "b") in names
    assert all(name.startswith("mien-workspace-") for name in names)
