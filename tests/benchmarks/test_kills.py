from __future__ import annotations

import json
from pathlib import Path

from benchmarks.kills import contents

TABLE = "# What\n\n| variant | error | s |\n|---|---|---|\n| three stages | {error} | {seconds} |\n"


def written(folder: Path, *, error: float, seconds: int) -> Path:
    folder.mkdir()
    (folder / "table.md").write_text(TABLE.format(error=error, seconds=seconds))
    (folder / "table.json").write_text(json.dumps({"rows": [{"error": error, "seconds": seconds}]}))
    return folder


def test_outputs_are_compared_without_the_seconds_they_took(tmp_path: Path) -> None:
    first = contents(written(tmp_path / "first", error=3.1, seconds=1))
    assert contents(written(tmp_path / "slower", error=3.1, seconds=2)) == first
    other = contents(written(tmp_path / "other", error=3.2, seconds=1))
    assert all(other[name] != first[name] for name in first)
