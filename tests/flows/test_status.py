"""What `mien run` passes over when there is nothing to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from flows import cli
from flows.status import up_to_date

GRAPH = """
stages:
  ingest:
    cmd: mkdir -p artifacts/ingest && cp photos artifacts/ingest/photos
    deps: [photos]
    outs: [artifacts/ingest]
  train_fused:
    cmd: mkdir -p artifacts/train_fused && touch artifacts/train_fused/made
    deps: [artifacts/ingest]
    outs: [artifacts/train_fused]
"""


@pytest.fixture
def made(project: Path) -> Path:
    """A project in which both stages ran."""
    (project / "dvc.yaml").write_text(GRAPH)
    (project / "photos").write_text("two")
    assert not up_to_date(project)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=project, check=True)
    return project


def test_what_comes_before_counts_and_what_comes_after_does_not(made: Path) -> None:
    assert up_to_date(made)
    (made / "artifacts" / "train_fused" / "made").unlink()
    assert not up_to_date(made)
    assert up_to_date(made, ["ingest"])
    (made / "photos").write_text("three")
    assert not up_to_date(made, ["train_fused"])
    assert not up_to_date(made, ["ingest"])
    (made / "dvc.yaml").write_text("stages: [")
    assert not up_to_date(made), "dvc repro says what is wrong"


def test_a_run_with_nothing_to_do_starts_no_server(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_server(_: Path) -> None:
        raise ValueError("a server was asked for")

    monkeypatch.setattr(cli, "prefect_server", no_server)
    run = ["run", "train_fused", "--workspace", str(made)]
    done = typer.testing.CliRunner().invoke(cli.app, run)
    assert (done.exit_code, done.output.splitlines()) == (
        0,
        ["Data and pipelines are up to date.", "Done: train_fused and what comes before."],
    )
    (made / "photos").write_text("three")
    asked = typer.testing.CliRunner().invoke(cli.app, run)
    assert (asked.exit_code, asked.output.strip()) == (2, "error: a server was asked for")
