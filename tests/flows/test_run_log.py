"""The log of stages: one line each, with counts and reasons."""

from __future__ import annotations

import json
from pathlib import Path

from flows.run_log import LOG, record
from tasks.artifacts import write_json


def lines(workspace: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (workspace / LOG).read_text(encoding="utf-8").splitlines()]


def test_counts_and_reasons_of_stages_that_ran(tmp_path: Path) -> None:
    total = {"found": 12, "accepted": 10, "quarantined": 2, "reasons": {"too_small": 2}, "share": 0.5}
    write_json(tmp_path / "artifacts" / "ingest" / "summary.json", {"total": total, "sources": {"a": {"found": 12}}})
    write_json(
        tmp_path / "artifacts" / "validate_labels" / "summary.json", {"in": 10, "gate": {"passed": True}, "ok": True}
    )
    assert record(tmp_path, "ingest", seconds=1.234) == "found 12, accepted 10, quarantined 2 (too_small 2)"
    assert record(tmp_path, "validate_labels", seconds=1.0) == "in 10"
    assert record(tmp_path, "train_fused", seconds=1.0) == ""
    first, second, _ = lines(tmp_path)
    assert (first["stage"], first["event"], first["seconds"]) == ("ingest", "done", 1.23)
    assert first["counts"] == {"found": 12, "accepted": 10, "quarantined": 2}
    assert first["reasons"] == {"too_small": 2}
    assert second["counts"] == {"in": 10}
    assert isinstance(first["peak_memory_mib"], int)
    assert 10 < first["peak_memory_mib"] < 100_000


def test_a_failure_says_what_it_was(tmp_path: Path) -> None:
    record(tmp_path, "ingest", seconds=0.5, error=ValueError("no photos in Ü"))
    (entry,) = lines(tmp_path)
    assert (entry["event"], entry["error"]) == ("failed", {"kind": "ValueError", "message": "no photos in Ü"})
