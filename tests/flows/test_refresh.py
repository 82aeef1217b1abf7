"""What a refresh says it changed."""

from __future__ import annotations

import json
from pathlib import Path

from flows.refresh import REFRESHED, compare_summaries, summaries
from tasks.artifacts import STAGES


def write(workspace: Path, stage: str, summary: object) -> None:
    folder = workspace / "artifacts" / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))


def test_nothing_is_trained() -> None:
    assert set(REFRESHED) <= set(STAGES)
    assert not [name for name in REFRESHED if name.startswith("train")]


def test_counts_before_and_after_with_reasons(tmp_path: Path) -> None:
    write(tmp_path, "ingest", {"total": {"accepted": 10, "quarantined": 1, "reasons": {"too_small": 1}}})
    before = summaries(tmp_path)
    write(tmp_path, "ingest", {"total": {"accepted": 12, "quarantined": 3, "reasons": {"too_small": 3}}})
    write(tmp_path, "detect_landmarks", {"found": 11, "quarantined": 1})
    write(tmp_path, "validate_labels", {"clean": 9, "quarantined": 2, "reasons": {"confidence_low": 2}})
    assert compare_summaries(before, summaries(tmp_path)) == [
        {"stage": "ingest", "before": 10, "now": 12, "refused": 3, "reasons": {"too_small": 3}},
        {"stage": "detect_landmarks", "before": None, "now": 11, "refused": 1, "reasons": {}},
        {"stage": "validate_labels", "before": None, "now": 9, "refused": 2, "reasons": {"confidence_low": 2}},
    ]
