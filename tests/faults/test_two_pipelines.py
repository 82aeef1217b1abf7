"""Two pipelines of one workspace at once, as processes: the second is refused, the first one's outputs are whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

GRAPH = """
stages:
  ingest:
    cmd: >-
      mkdir -p artifacts/ingest && echo half > artifacts/ingest/photos && touch begun &&
      until test -e go_on; do sleep 0.05; done && echo whole >> artifacts/ingest/photos
    outs: [artifacts/ingest]
"""


def test_the_second_of_two_pipelines_is_refused_and_changes_nothing(tmp_path: Path, repository: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    shutil.copyfile(repository / "params.yaml", tmp_path / "params.yaml")
    # A server that is configured is not started, and no stage of this graph asks it.
    environment = {**os.environ, "PYTHONPATH": str(repository), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows.cli", "run", "ingest"]
    photos = tmp_path / "artifacts" / "ingest" / "photos"
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as first:
        try:
            while not (tmp_path / "begun").exists():
                assert first.poll() is None
                time.sleep(0.05)
            second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert first.poll() is None
            assert second.returncode == 1, second.stderr
            assert "is busy, it is being blocked by" in second.stderr
            assert "error: the pipeline stopped" in second.stderr
            assert photos.read_text() == "half\n"
        finally:
            (tmp_path / "go_on").touch()
        assert first.wait(120) == 0
    assert photos.read_text() == "half\nwhole\n"
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[0] == "Data and pipelines are up to date."
