"""The benchmark of scan errors runs at a small size, and says when an aim is missed."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from benchmarks import scan_distance
from benchmarks.scan_distance import measure, missed_aims


def test_a_small_run_is_exact() -> None:
    row = measure(faces=1, subdivide=0, checked=12)
    assert row["largest_difference_mm"] < 1e-9
    assert row["points"] > 1000
    assert row["times_trimesh"] > 1.0


def test_missed_aims_are_named() -> None:
    row = {"seconds_per_1000_faces": 61.0, "largest_difference_mm": 1e-3}
    assert [line.split()[0] for line in missed_aims(row)] == ["seconds_per_1000_faces", "largest_difference_mm"]
    assert missed_aims({"seconds_per_1000_faces": 20.0, "largest_difference_mm": 0.0}) == []


def test_the_numbers_are_written(tmp_path: Path, monkeypatch) -> None:
    row = {"seconds_per_1000_faces": 61.0, "largest_difference_mm": 0.0}
    monkeypatch.setattr(scan_distance, "measure", lambda **_: row)
    app = scan_distance.typer.Typer()
    app.command()(scan_distance.main)
    result = CliRunner().invoke(app, ["--json", str(tmp_path / "numbers.json")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "numbers.json").read_text()) == row
    assert "missed: seconds_per_1000_faces 61.0, aim 60" in result.output
