"""A small DVC project beside the real pipeline, and the command line in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GRAPH = """
stages:
  last:
    cmd: echo last >> ../order; touch last.txt
    deps: [broken.txt]
    outs: [last.txt]
  broken:
    cmd: echo broken >> ../order; exit 3
    deps: [shaky.txt]
    outs: [broken.txt]
  shaky:
    cmd: echo shaky >> ../order; test -e ../tried || { touch ../tried; exit 1; }; touch shaky.txt
    deps: [first.txt]
    outs: [shaky.txt]
  first:
    cmd: echo first >> ../order; touch first.txt
    outs: [first.txt]
"""
"""Against the order of the file; one stage fails once, one always."""


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Commands prepare the process for their workspace; the next test has another."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def project(tmp_path: Path, repository: Path) -> Path:
    folder = tmp_path / "project"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "dvc.yaml").write_text(GRAPH)
    shutil.copyfile(repository / "params.yaml", folder / "params.yaml")
    return folder


@pytest.fixture(scope="session")
def call(repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m …` as a user would, with our environment first."""

    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = str(repository)
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run
